"""From a general context-free grammar to Chomsky normal form with separate preterminals, and trees back.

Long rules are split from the left with helper symbols; a word beside other symbols gets a preterminal of its own;
chains of unary rules are summed, (I − U)⁻¹; and a symbol that rewrites both to pairs and to words becomes two, chosen
between by its parent. The probability of every sentence is unchanged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_em.distributions.grammar_text import Production, Word, read_productions
from ppl_em.distributions.trees import Node, ParseTree
from ppl_em.errors import DataError, ModelError, message

if TYPE_CHECKING:
    from ppl_em.distributions.pcfg import PCFG

__all__ = ["Grammar", "from_text"]

Floats = NDArray[np.float64]
K = TypeVar("K")


@dataclass(frozen=True)
class _Flat:
    """A grammar whose rules are binary, unary or lexical.

    Attributes:
        names: Symbols of the grammar; helpers begin with ``~``, words' own preterminals with a quote.
        binary: For each symbol the probability of each ordered pair of symbols.
        lexical: For each symbol the probability of each word.
        unary: (n, n) probability of each unary rule.
    """

    names: list[str]
    binary: list[dict[tuple[int, int], float]]
    lexical: list[dict[str, float]]
    unary: Floats


@dataclass(frozen=True)
class Grammar:
    """A grammar in normal form, with its names.

    Attributes:
        root: (NT,), or (NT + PT,) if the grammar has sentences of one word.
        rules: (NT, S, S), entry [a, b, c] the probability of a → b c.
        emissions: (PT, V).
        symbols: Names of the S symbols, nonterminals first. A symbol that has both kinds of rules occurs in both.
        vocabulary: The V words.
    """

    root: Tensor
    rules: Tensor
    emissions: Tensor
    symbols: tuple[str, ...]
    vocabulary: tuple[str, ...]
    _flat: _Flat = field(repr=False)
    _origin: tuple[int, ...] = field(repr=False)

    def distribution(self, lengths: Tensor | None = None) -> PCFG:
        """Returns the distribution over sentences."""
        from ppl_em.distributions.pcfg import PCFG

        return PCFG(self.root, self.rules, self.emissions, lengths)

    def encode(self, sentences: Iterable[str | Sequence[str]]) -> Tensor:
        """Returns the numbers of the words, (sentences, longest length) int64, padded with −1.

        Args:
            sentences: Strings of words separated by blanks, or sequences of words.

        Raises:
            DataError: If a word is not in the vocabulary.
        """
        number = {word: index for index, word in enumerate(self.vocabulary)}
        split = [s.split() if isinstance(s, str) else list(s) for s in sentences]
        if unknown := sorted({word for words in split for word in words} - number.keys()):
            value = ", ".join(unknown[:5])
            raise DataError(
                message("words that the grammar does not have", value=value, hint="adding rules for them")
            )
        width = max((len(words) for words in split), default=0)
        rows = [[number[word] for word in words] + [-1] * (width - len(words)) for words in split]
        return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), width)

    def tree(self, parse: ParseTree) -> str:
        """Returns a tree of the normal form as a tree of the original grammar, in brackets.

        Helpers are spliced out; where a chain of unary rules was summed, the most probable chain is shown.
        """
        best, step = _best_chains(self._flat.unary)
        nodes = iter(parse.nodes)
        return " ".join(self._subtree(next(nodes), nodes, parse, best, step)[1])

    def _subtree(
        self, node: Node, nodes: Iterable[Node], parse: ParseTree, best: Floats, step: NDArray[np.int64]
    ) -> tuple[int, list[str]]:
        """Returns the original symbol of a node and its subtrees as text; one, unless it is a helper."""
        flat, top = self._flat, self._origin[node.symbol]
        if node.symbol >= parse.num_nonterminals:
            word = self.vocabulary[parse.words[node.start]]
            weights = [best[top, b] * words.get(word, 0.0) for b, words in enumerate(flat.lexical)]
            inner = [word]
        else:
            iterator = iter(nodes)
            children = [self._subtree(next(iterator), iterator, parse, best, step) for _ in range(2)]
            pair = (children[0][0], children[1][0])
            weights = [best[top, b] * pairs.get(pair, 0.0) for b, pairs in enumerate(flat.binary)]
            inner = [text for _, texts in children for text in texts]
        chain, last = [top], int(np.argmax(weights))
        while chain[-1] != last:
            chain.append(int(step[chain[-1], last]))
        for symbol in reversed(chain):
            name = flat.names[symbol]
            if not name.startswith(("~", "'")):
                inner = [f"({name} {' '.join(inner)})"]
        return top, inner


def from_text(text: str, dtype: torch.dtype | None = None) -> Grammar:
    """Converts a context-free grammar in NLTK's text form to the normal form.

    Args:
        text: One rule a line, words in quotes, probabilities in brackets; rules of any length but empty.
        dtype: Of the tables; torch's default if None.

    Returns:
        The grammar.

    Raises:
        ModelError: If the text cannot be read, or a cycle of unary rules does not end.

    Example:
        >>> grammar = from_text("S -> NP 'sleeps' [1.0]\\nNP -> 'the' N [1.0]\\nN -> 'cat' [0.5] | 'dog' [0.5]")
        >>> grammar.distribution().log_prob(grammar.encode(["the cat sleeps", "cat the sleeps"])).exp()
        tensor([0.5000, 0.0000])
    """
    start, productions = read_productions(text)
    flat = _flatten(productions)
    closure = _sum_chains(flat)
    binary = [_mix(row, flat.binary) for row in closure]
    lexical = [_mix(row, flat.lexical) for row in closure]
    branching = np.array([sum(pairs.values()) for pairs in binary])
    branching = np.where([not words for words in lexical], 1.0, branching)  # exactly, against rounding
    kept = _reachable(flat.names.index(start), binary)
    wide, single = [a for a in kept if binary[a]], [a for a in kept if lexical[a]]
    if not wide:
        raise ModelError(
            message("the grammar has only sentences of one word", hint="a rule with two children")
        )
    vocabulary = tuple(dict.fromkeys(word for a in single for word in lexical[a]))
    share = _shares(wide, single, branching)
    rules = np.zeros((len(wide), share.shape[1], share.shape[1]))
    for row, a in enumerate(wide):
        for (b, c), prob in binary[a].items():
            rules[row] += prob / branching[a] * np.outer(share[b], share[c])
    emissions = np.array([[lexical[a].get(word, 0.0) for word in vocabulary] for a in single])
    emissions /= emissions.sum(-1, keepdims=True)
    root = share[flat.names.index(start)]
    if not root[len(wide) :].any():
        root = root[: len(wide)]
    dtype = dtype or torch.get_default_dtype()
    tables = (torch.as_tensor(x, dtype=dtype) for x in (root, rules, emissions))
    names = tuple(flat.names[a] for a in (*wide, *single))
    return Grammar(*tables, names, vocabulary, flat, (*wide, *single))


def _flatten(productions: list[Production]) -> _Flat:
    """Splits long rules and gives words beside other symbols a preterminal of their own."""
    number: dict[str, int] = {}
    binary: list[dict[tuple[int, int], float]] = []
    lexical: list[dict[str, float]] = []
    unary: dict[tuple[int, int], float] = {}

    def symbol(name: str) -> int:
        if name not in number:
            number[name] = len(number)
            binary.append({})
            lexical.append({})
        return number[name]

    def child(name: str) -> int:
        if not isinstance(name, Word):
            return symbol(name)
        index = symbol(f"'{name}'")
        lexical[index][str(name)] = 1.0
        return index

    def rest(children: tuple[str, ...]) -> int:
        if len(children) == 1:
            return child(children[0])
        index = symbol("~" + " ".join(repr(c) if isinstance(c, Word) else c for c in children))
        binary[index][child(children[0]), rest(children[1:])] = 1.0
        return index

    for production in productions:
        symbol(production.parent)
    for production in productions:
        parent, children, prob = number[production.parent], production.children, production.prob
        if len(children) > 1:
            pair = (child(children[0]), rest(children[1:]))
            binary[parent][pair] = binary[parent].get(pair, 0.0) + prob
        elif isinstance(children[0], Word):
            lexical[parent][str(children[0])] = lexical[parent].get(str(children[0]), 0.0) + prob
        else:
            edge = (parent, symbol(children[0]))
            unary[edge] = unary.get(edge, 0.0) + prob
    matrix = np.zeros((len(number), len(number)))
    for edge, prob in unary.items():
        matrix[edge] = prob
    return _Flat(list(number), binary, lexical, matrix)


def _sum_chains(flat: _Flat) -> Floats:
    """Returns (I − U)⁻¹, the expected visits to each symbol by chains of unary rules."""
    if max(abs(np.linalg.eigvals(flat.unary))) > 1 - 1e-12:
        raise ModelError(
            message("a cycle of unary rules has probability one", hint="a rule that leaves the cycle")
        )
    closure = np.linalg.inv(np.eye(len(flat.names)) - flat.unary)
    reachable = np.linalg.matrix_power(np.eye(len(flat.names)) + (flat.unary > 0), len(flat.names)) > 0
    return np.where(reachable, closure, 0.0)


def _mix(weights: Floats, tables: list[dict[K, float]]) -> dict[K, float]:
    """Returns the weighted sum of tables."""
    total: dict[K, float] = {}
    for index in np.flatnonzero(weights):
        for key, prob in tables[index].items():
            total[key] = total.get(key, 0.0) + float(weights[index]) * prob
    return total


def _reachable(start: int, binary: list[dict[tuple[int, int], float]]) -> list[int]:
    """Returns the symbols that occur in trees from `start`."""
    found, agenda = {start}, [start]
    while agenda:
        for pair in binary[agenda.pop()]:
            agenda += [c for c in dict.fromkeys(pair) if c not in found]
            found.update(pair)
    return sorted(found)


def _shares(wide: list[int], single: list[int], branching: Floats) -> Floats:
    """Returns, for each symbol, its probability of being each symbol of the normal form."""
    share = np.zeros((len(branching), len(wide) + len(single)))
    for column, a in enumerate(wide):
        share[a, column] = branching[a]
    for column, a in enumerate(single, start=len(wide)):
        share[a, column] = 1 - branching[a]
    return share


def _best_chains(unary: Floats) -> tuple[Floats, NDArray[np.int64]]:
    """Returns the probability of the best unary chain between symbols, and the next symbol on it."""
    n = len(unary)
    best, step = unary.copy(), np.tile(np.arange(n), (n, 1))
    for k in range(n):
        through = best[:, [k]] * best[[k], :]
        better = through > best
        step = np.where(better, step[:, [k]], step)
        best = np.where(better, through, best)
    np.fill_diagonal(best, 1.0)
    return best, step
