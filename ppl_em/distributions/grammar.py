"""A grammar in normal form with its names: words to numbers, and trees back to the grammar as written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_em.distributions.trees import Node, ParseTree
from ppl_em.errors import DataError, message

if TYPE_CHECKING:
    from ppl_em.distributions.pcfg import PCFG

__all__ = ["FlatGrammar", "Grammar"]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class FlatGrammar:
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
        symbols: Names of the S symbols, nonterminals first. A symbol that has both kinds of rules occurs in
            both.
        vocabulary: The V words.
    """

    root: Tensor
    rules: Tensor
    emissions: Tensor
    symbols: tuple[str, ...]
    vocabulary: tuple[str, ...]
    _flat: FlatGrammar = field(repr=False)
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
            raise DataError(message("words that the grammar does not have", value=value, hint="adding rules for them"))
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
        self, node: Node, nodes: Iterator[Node], parse: ParseTree, best: Floats, step: NDArray[np.int64]
    ) -> tuple[int, list[str]]:
        """Returns the original symbol of a node and its subtrees as text; one, unless it is a helper."""
        flat, top = self._flat, self._origin[node.symbol]
        if node.symbol >= parse.num_nonterminals:
            word = self.vocabulary[parse.words[node.start]]
            weights = [best[top, b] * words.get(word, 0.0) for b, words in enumerate(flat.lexical)]
            inner = [word]
        else:
            children = [self._subtree(next(nodes), nodes, parse, best, step) for _ in range(2)]
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
