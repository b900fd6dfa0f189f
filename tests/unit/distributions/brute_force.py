"""Oracles by enumeration: all trees over a sentence, all paths of classes over frames."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from math import log

import torch
from torch import Tensor

from ppl_em.distributions import PCFG

# A tree: (symbol, word position) at a leaf, (symbol, left, right) above.
Tree = tuple


def random_grammar(nt: int, pt: int, v: int, *batch: int, one_word: bool = True) -> PCFG:
    """Returns a grammar with uniform Dirichlet tables; `root` over all symbols if `one_word`."""
    s = nt + pt
    root = torch.rand(*batch, s if one_word else nt).log().neg()
    rules = torch.rand(*batch, nt, s, s).log().neg()
    emissions = torch.rand(*batch, pt, v).log().neg()
    return PCFG(
        root / root.sum(-1, keepdim=True),
        rules / rules.sum((-1, -2), keepdim=True),
        emissions / emissions.sum(-1, keepdim=True),
        validate_args=True,
    )


def all_trees(symbol: int, start: int, end: int, nt: int, pt: int) -> Iterator[Tree]:
    """Yields every binary tree with `symbol` over words start … end − 1."""
    if symbol >= nt:
        if end - start == 1:
            yield (symbol, start)
        return
    for middle in range(start + 1, end):
        for left, right in itertools.product(range(nt + pt), repeat=2):
            for a in all_trees(left, start, middle, nt, pt):
                for b in all_trees(right, middle, end, nt, pt):
                    yield (symbol, a, b)


def uses(tree: Tree, words: list[int], nt: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the table entries that a subtree multiplies."""
    if len(tree) == 2:
        yield "emissions", (tree[0] - nt, words[tree[1]])
        return
    yield "rules", (tree[0], tree[1][0], tree[2][0])
    yield from uses(tree[1], words, nt)
    yield from uses(tree[2], words, nt)


def scored_trees(grammar: PCFG, words: list[int]) -> list[tuple[float, Tree, Counter]]:
    """Returns (log-probability, tree, uses of table entries) of all possible trees of a sentence."""
    nt, pt = grammar.num_nonterminals, grammar.num_preterminals
    tables = {"root": grammar.root_symbols, "rules": grammar.rules, "emissions": grammar.emissions}
    result = []
    for symbol in range(nt + pt):
        for tree in all_trees(symbol, 0, len(words), nt, pt):
            count = Counter([("root", (symbol,)), *uses(tree, words, nt)])
            probs = [float(tables[name][index]) for name, index in count.elements()]
            if all(p > 0 for p in probs):
                result.append((sum(map(log, probs)), tree, count))
    return result


def bracketed(tree: Tree, words: list[int], nt: int) -> str:
    """Returns a tree in brackets."""
    if len(tree) == 2:
        return f"(P{tree[0] - nt} {words[tree[1]]})"
    return f"(N{tree[0]} {bracketed(tree[1], words, nt)} {bracketed(tree[2], words, nt)})"


def collapse(path: tuple[int, ...], blank: int) -> tuple[int, ...]:
    """Merges repeats, then removes blanks."""
    return tuple(c for c, _ in itertools.groupby(path) if c != blank)


def scored_paths(log_probs: Tensor, blank: int) -> list[tuple[float, tuple[int, ...], tuple[int, ...]]]:
    """Returns (log-probability, path, labels) of all paths over frames (T, C)."""
    frames, classes = log_probs.shape
    table = log_probs.tolist()
    paths = itertools.product(range(classes), repeat=frames)
    return [(sum(table[t][c] for t, c in enumerate(path)), path, collapse(path, blank)) for path in paths]
