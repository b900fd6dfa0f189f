"""From a general context-free grammar to Chomsky normal form with separate preterminals, and trees back.

Long rules are split from the left with helper symbols; a word beside other symbols gets a preterminal of its
own; chains of unary rules are summed, (I − U)⁻¹; and a symbol that rewrites both to pairs and to words
becomes two, chosen between by its parent. The probability of every sentence is unchanged.
"""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_em.distributions.grammar import FlatGrammar, Grammar
from ppl_em.distributions.grammar_text import Production, Word, read_productions
from ppl_em.errors import ModelError, message

__all__ = ["from_text"]

Floats = NDArray[np.float64]
K = TypeVar("K")


def from_text(text: str, dtype: torch.dtype | None = None) -> Grammar:
    r"""Converts a context-free grammar in NLTK's text form to the normal form.

    Args:
        text: One rule a line, words in quotes, probabilities in brackets; rules of any length but empty.
        dtype: Of the tables; torch's default if None.

    Returns:
        The grammar.

    Raises:
        ModelError: If the text cannot be read, or a cycle of unary rules does not end.

    Example:
        >>> grammar = from_text("S -> NP 'sleeps' [1.0]\nNP -> 'the' N [1.0]\nN -> 'cat' [0.5] | 'dog' [0.5]")
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
        raise ModelError(message("the grammar has only sentences of one word", hint="a rule with two children"))
    vocabulary = tuple(dict.fromkeys(word for a in single for word in lexical[a]))
    share = _shares(wide, single, branching)
    rules = np.zeros((len(wide), share.shape[1], share.shape[1]))
    for row, a in enumerate(wide):
        for pair, prob in binary[a].items():
            rules[row] += prob / branching[a] * np.outer(*share[list(pair)])
    emissions = np.array([[lexical[a].get(word, 0.0) for word in vocabulary] for a in single])
    emissions /= emissions.sum(-1, keepdims=True)
    root = share[flat.names.index(start)]
    if not root[len(wide) :].any():
        root = root[: len(wide)]
    dtype = dtype or torch.get_default_dtype()
    return Grammar(
        root=torch.as_tensor(root, dtype=dtype),
        rules=torch.as_tensor(rules, dtype=dtype),
        emissions=torch.as_tensor(emissions, dtype=dtype),
        symbols=tuple(flat.names[a] for a in (*wide, *single)),
        vocabulary=vocabulary,
        _flat=flat,
        _origin=(*wide, *single),
    )


class _Flattening:
    """Numbers symbols as they turn up and collects their rules."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}
        self.binary: list[dict[tuple[int, int], float]] = []
        self.lexical: list[dict[str, float]] = []

    def symbol(self, name: str) -> int:
        """Returns the number of a nonterminal."""
        if name not in self.number:
            self.number[name] = len(self.number)
            self.binary.append({})
            self.lexical.append({})
        return self.number[name]

    def child(self, name: str) -> int:
        """Returns the number of a nonterminal, or of a word's own preterminal."""
        if not isinstance(name, Word):
            return self.symbol(name)
        index = self.symbol(f"'{name}'")
        self.lexical[index][str(name)] = 1.0
        return index

    def rest(self, children: list[str]) -> int:
        """Returns the number of the helper that rewrites to `children`, or of a single child."""
        if len(children) == 1:
            return self.child(children[0])
        index = self.symbol("~" + " ".join(repr(c) if isinstance(c, Word) else c for c in children))
        self.binary[index][self.child(children[0]), self.rest(children[1:])] = 1.0
        return index


def _flatten(productions: list[Production]) -> FlatGrammar:
    """Splits long rules and gives words beside other symbols a preterminal of their own."""
    flat = _Flattening()
    unary: list[tuple[int, int, float]] = []
    for production in productions:
        flat.symbol(production.parent)
    for production in productions:
        parent, prob = flat.number[production.parent], production.prob
        first, *others = production.children
        if others:
            pair = (flat.child(first), flat.rest(others))
            flat.binary[parent][pair] = flat.binary[parent].get(pair, 0.0) + prob
        elif isinstance(first, Word):
            flat.lexical[parent][str(first)] = flat.lexical[parent].get(str(first), 0.0) + prob
        else:
            unary.append((parent, flat.symbol(first), prob))
    matrix = np.zeros((len(flat.number), len(flat.number)))
    for parent, child, prob in unary:
        matrix[parent, child] += prob
    return FlatGrammar(list(flat.number), flat.binary, flat.lexical, matrix)


def _sum_chains(flat: FlatGrammar) -> Floats:
    """Returns (I − U)⁻¹, the expected visits to each symbol by chains of unary rules."""
    if max(abs(np.linalg.eigvals(flat.unary))) > 1 - 1e-12:
        raise ModelError(message("a cycle of unary rules has probability one", hint="a rule that leaves the cycle"))
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
