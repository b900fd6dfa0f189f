"""Descending a chart: from the root symbol of a sentence to trees, by the best split or by random ones.

The same descent serves the Viterbi parse (a chart of best scores, take the maximum) and posterior draws (a
chart of totals, draw in proportion). Draws that share a constituent share its table of splits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from ppl_em.distributions.trees import Node, ParseTree

__all__ = ["LogChart", "best", "descend", "random_choice"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Choose = Callable[[Floats, int], Ints]


@dataclass(frozen=True)
class LogChart:
    """Log scores of one sentence.

    Attributes:
        root: (S,) log-probability of each root symbol.
        rules: (NT, S, S) log-probability of a → b c.
        words: (N, PT) log-probability of each word under each preterminal.
        spans: (N + 1, N + 1, NT) log score of each nonterminal by start and width.
    """

    root: Floats
    rules: Floats
    words: Floats
    spans: Floats

    def roots(self) -> Floats:
        """Returns the log score of each root symbol with the whole sentence, (S,)."""
        n, nt = len(self.words), len(self.rules)
        score = np.full(len(self.root), -np.inf)
        if n == 1:
            score[nt:] = self.root[nt:] + self.words[0]
        else:
            score[:nt] = self.root[:nt] + self.spans[0, n]
        return score

    def blocks(self, node: Node) -> list[tuple[int, int, int, Floats]]:
        """Returns the log scores of all ways to split a constituent.

        Returns:
            Blocks (first left width, first left symbol, first right symbol, scores (widths, left, right)).
        """
        symbol, start, width = node
        nt = len(self.rules)
        result = []
        for first, last in _left_widths(width):
            k = np.arange(first, last)
            left, b = (self.words[[start]], nt) if first == 1 else (self.spans[start, k], 0)
            single = first == width - 1
            right, c = (self.words[[start + first]], nt) if single else (self.spans[start + k, width - k], 0)
            rule = self.rules[symbol, b : b + left.shape[1], c : c + right.shape[1]]
            result.append((first, b, c, left[:, :, None] + right[:, None, :] + rule))
        return result


def best(scores: Floats, count: int) -> Ints:
    """Chooses the largest score, `count` times."""
    return np.full(count, scores.argmax())


def random_choice(generator: torch.Generator | None = None) -> Choose:
    """Returns a chooser that draws in proportion to exp(score), by torch's random numbers."""

    def choose(scores: Floats, count: int) -> Ints:
        cumulative = np.exp(scores - scores.max()).cumsum()
        uniform = torch.rand(count, generator=generator, dtype=torch.float64).numpy() * cumulative[-1]
        return np.minimum(cumulative.searchsorted(uniform, side="right"), len(scores) - 1)

    return choose


def descend(chart: LogChart, words: tuple[int, ...], count: int, choose: Choose) -> list[ParseTree]:
    """Builds `count` trees over one sentence, top-down.

    Args:
        chart: Log scores; the root must be possible.
        words: The sentence.
        count: How many trees.
        choose: Called with log scores (K,) and a count, returns that many indices.

    Returns:
        The trees, each with its log-probability under the grammar.
    """
    n, nt = len(words), len(chart.rules)
    log_prob = np.zeros(count)
    found: list[list[Node]] = [[] for _ in range(count)]
    agenda: dict[int, dict[Node, list[Ints]]] = {width: {} for width in range(n, 0, -1)}
    _group(agenda, choose(chart.roots(), count), np.arange(count), lambda symbol: (Node(symbol, 0, n),))
    for draws in agenda[n]:
        log_prob[agenda[n][draws][0]] += chart.root[draws.symbol]
    for width in range(n, 0, -1):
        for node, groups in agenda[width].items():
            draws = np.concatenate(groups)
            for draw in draws:
                found[draw].append(node)
            if node.symbol >= nt:
                log_prob[draws] += chart.words[node.start, node.symbol - nt]
            else:
                log_prob[draws] += _expand(chart, node, draws, choose, agenda)
    trees = []
    for nodes, score in zip(found, log_prob, strict=True):
        ordered = sorted(nodes, key=lambda node: (node.start, -node.width))
        trees.append(ParseTree(tuple(ordered), words, nt, float(score)))
    return trees


def _expand(
    chart: LogChart, node: Node, draws: Ints, choose: Choose, agenda: dict[int, dict[Node, list[Ints]]]
) -> Floats:
    """Splits a constituent in all draws that hold it; returns the log-probability of the rules used."""
    blocks = chart.blocks(node)
    offsets = np.cumsum([0, *(scores.size for *_, scores in blocks)])
    chosen = choose(np.concatenate([scores.ravel() for *_, scores in blocks]), len(draws))
    used = np.empty(len(draws))

    def children(index: int) -> tuple[Node, Node]:
        which = int(offsets.searchsorted(index, side="right")) - 1
        first, b, c, scores = blocks[which]
        k, left, right = np.unravel_index(index - offsets[which], scores.shape)
        width = first + int(k)
        used[chosen == index] = chart.rules[node.symbol, b + left, c + right]
        tail = Node(c + int(right), node.start + width, node.width - width)
        return Node(b + int(left), node.start, width), tail

    _group(agenda, chosen, draws, children)
    return used


def _group(
    agenda: dict[int, dict[Node, list[Ints]]],
    chosen: Ints,
    draws: Ints,
    nodes: Callable[[int], tuple[Node, ...]],
) -> None:
    """Puts the nodes of each chosen index on the agenda, with the draws that chose it."""
    for index in np.unique(chosen):
        for node in nodes(int(index)):
            agenda[node.width].setdefault(node, []).append(draws[chosen == index])


def _left_widths(width: int) -> list[tuple[int, int]]:
    """Returns ranges of left widths for which both children are of one kind: a word, or wider."""
    if width == 2:
        return [(1, 2)]
    middle = [(2, width - 1)] if width >= 4 else []
    return [(1, 2), *middle, (width - 1, width)]
