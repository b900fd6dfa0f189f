"""The inside algorithm: total probability of every span of a sentence, vectorised over diagonals and batch.

Every cell of the chart is scaled by its own largest entry, and the logarithm of the scale is kept in float64,
so that the recursion runs on matrix products in probability space without underflow. A grammar's rules split
into four blocks by whether a child is a nonterminal (it spans two words or more) or a preterminal (exactly
one word):

* nonterminal × nonterminal: the outer products of the children, summed over split points by one batched
  matrix product, then multiplied with the rules;
* preterminal × nonterminal and its mirror image: the word's rules are contracted with its preterminals once,
  a small matrix per word, so that each cell costs one matrix–vector product;
* preterminal × preterminal: spans of two words only.

Axes throughout: G grammars, M sentences of each grammar, N words, NT nonterminals, PT preterminals, S = NT +
PT.

Reference:
    Baker, J. K. (1979). Trainable grammars for speech recognition.
    Lari, K. and Young, S. J. (1990). The estimation of stochastic context-free grammars using the
    inside–outside algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Chart", "Rules", "inside", "split_scales"]

NEG_INF = float("-inf")


@dataclass(frozen=True)
class Rules:
    """The four blocks of the binary rules, each (G, NT, left, right)."""

    nn: Tensor
    np: Tensor
    pn: Tensor
    pp: Tensor

    @staticmethod
    def split(rules: Tensor) -> Rules:
        """Splits `rules` (G, NT, S, S), nonterminals first, into its blocks."""
        nt = rules.shape[-3]
        left, right = rules[..., :nt, :], rules[..., nt:, :]
        blocks = (left[..., :nt], left[..., nt:], right[..., :nt], right[..., nt:])
        return Rules(*(block.contiguous() for block in blocks))

    def join(self) -> Tensor:
        """Returns the blocks as one tensor (G, NT, S, S)."""
        left = torch.cat([self.nn, self.np], -1)
        right = torch.cat([self.pn, self.pp], -1)
        return torch.cat([left, right], -2)


@dataclass(frozen=True)
class Chart:
    """Scaled inside probabilities of all spans.

    The probability that nonterminal a yields the w words from position i on is
    ``by_start[g, m, i, w, a] * exp(scale_by_start[g, m, i, w])``. The same numbers stand in `by_end` at
    ``[g, m, i + w, N - w, a]``, so that the right children of a span's split points lie side by side.

    Attributes:
        by_start: (G, M, N + 1, N + 1, NT), axes start and width.
        by_end: (G, M, N + 1, N + 1, NT), axes end and N − width.
        scale_by_start: (G, M, N + 1, N + 1), float64, natural log; −inf where no symbol yields the span.
        scale_by_end: the same by end and N − width.
        terminals: (G, M, N, PT), probability of each word under each preterminal, largest entry one.
        from_left: (G, M, N, NT, NT), entry [a, c]: the word as left child of a rule a → word c.
        from_right: (G, M, N, NT, NT), entry [a, b]: the word as right child of a rule a → b word.
        alive: for each width, how many sentences (sorted by falling length) are that long.
    """

    by_start: Tensor
    by_end: Tensor
    scale_by_start: Tensor
    scale_by_end: Tensor
    terminals: Tensor
    from_left: Tensor
    from_right: Tensor
    alive: tuple[int, ...]

    @property
    def num_words(self) -> int:
        """Width N of the widest span."""
        return self.by_start.shape[2] - 1

    def store(self, w: int, cell: Tensor, scale: Tensor) -> None:
        """Writes the spans of width w, `cell` (G, m, N − w + 1, NT) and `scale` (G, m, N − w + 1)."""
        n, m = self.num_words, cell.shape[1]
        self.by_start[:, :m, : n - w + 1, w] = cell
        self.by_end[:, :m, w:, n - w] = cell
        self._store_scale(w, m, scale)

    def _store_scale(self, w: int, m: int, scale: Tensor) -> None:
        n = self.num_words
        self.scale_by_start[:, :m, : n - w + 1, w] = scale
        self.scale_by_end[:, :m, w:, n - w] = scale

    def children(self, w: int, m: int) -> tuple[Tensor, Tensor]:
        """Returns the nonterminal children of the spans of width w, each (G, m, N − w + 1, w − 3, NT)."""
        n = self.num_words
        return self.by_start[:, :m, : n - w + 1, 2 : w - 1], self.by_end[:, :m, w:, n - w + 2 : n - 1]


def inside(rules: Tensor, terminals: Tensor, lengths: Tensor) -> Chart:
    """Fills the chart bottom-up.

    Args:
        rules: (G, NT, S, S), probability of a → b c.
        terminals: (G, M, N, PT), probability of each word under each preterminal; zero beyond a sentence's
            end.
        lengths: (G, M) int64, falling along M.

    Returns:
        The chart, in the dtype of `rules`.
    """
    blocks = Rules.split(rules)
    chart = _empty_chart(blocks, terminals, lengths)
    num_words = chart.num_words
    for w in range(2, num_words + 1):
        m = chart.alive[w]
        if m == 0:
            break
        weights, top = split_weights(chart, w, m)
        cell = _cell(chart, blocks, weights, w, m)
        largest = cell.amax(-1, keepdim=True)
        cell = cell / largest.masked_fill(largest == 0, 1)
        chart.store(w, cell, top + largest.squeeze(-1).double().log())
    return chart


def split_scales(chart: Chart, w: int, m: int) -> Tensor:
    """Returns the log scales of the splits of the spans of width w, (G, m, N − w + 1, w − 1), float64."""
    n = chart.num_words
    left = chart.scale_by_start[:, :m, : n - w + 1, 1:w]
    return left + chart.scale_by_end[:, :m, w:, n - w + 1 : n]


def split_weights(chart: Chart, w: int, m: int) -> tuple[Tensor, Tensor]:
    """Returns weights of the splits relative to the likeliest, (G, m, n, w − 1), and its log scale."""
    scales = split_scales(chart, w, m)
    top = scales.amax(-1)
    shift = top.masked_fill(top == NEG_INF, 0.0)
    return (scales - shift.unsqueeze(-1)).exp().to(chart.by_start.dtype), top


def _cell(chart: Chart, rules: Rules, weights: Tensor, w: int, m: int) -> Tensor:
    """Returns the unscaled cells of width w, (G, m, N − w + 1, NT)."""
    n = chart.num_words - w + 1
    if w == 2:
        pairs = outer(chart.terminals[:, :m, :n], chart.terminals[:, :m, 1:])
        return apply_rules(pairs, rules.pp) * weights
    right_child = chart.by_start[:, :m, 1 : n + 1, w - 1].unsqueeze(-1)
    cell = (chart.from_left[:, :m, :n] @ right_child).squeeze(-1) * weights[..., :1]
    left_child = chart.by_start[:, :m, :n, w - 1].unsqueeze(-1)
    cell += (chart.from_right[:, :m, w - 1 :] @ left_child).squeeze(-1) * weights[..., -1:]
    if w >= 4:
        left, right = chart.children(w, m)
        pairs = (left * weights[..., 1:-1, None]).mT @ right
        cell += apply_rules(pairs, rules.nn)
    return cell


def outer(left: Tensor, right: Tensor) -> Tensor:
    """Returns the outer product of the last axes."""
    return left.unsqueeze(-1) * right.unsqueeze(-2)


def apply_rules(pairs: Tensor, block: Tensor) -> Tensor:
    """Multiplies pairs of children (G, M, n, B, C) with a block of rules (G, A, B, C) to (G, M, n, A)."""
    g, m, n = pairs.shape[:3]
    flat = pairs.reshape(g, m * n, -1)
    return torch.bmm(flat, block.reshape(g, block.shape[1], -1).mT).reshape(g, m, n, -1)


def _empty_chart(rules: Rules, terminals: Tensor, lengths: Tensor) -> Chart:
    """Returns a chart that holds the spans of one word."""
    g, m, n, _ = terminals.shape
    nt = rules.nn.shape[1]
    largest = terminals.amax(-1, keepdim=True)
    scaled = (terminals / largest.masked_fill(largest == 0, 1)).contiguous()
    cells = (g, m, n + 1, n + 1)
    chart = Chart(
        by_start=rules.nn.new_zeros(*cells, nt),
        by_end=rules.nn.new_zeros(*cells, nt),
        scale_by_start=terminals.new_full(cells, NEG_INF, dtype=torch.float64),
        scale_by_end=terminals.new_full(cells, NEG_INF, dtype=torch.float64),
        terminals=scaled,
        from_left=_contract(scaled, rules.pn),
        from_right=_contract(scaled, rules.np.mT),
        alive=tuple(int((lengths >= w).sum(-1).amax()) for w in range(n + 1)),
    )
    chart._store_scale(1, m, largest.squeeze(-1).double().log())
    return chart


def _contract(terminals: Tensor, block: Tensor) -> Tensor:
    """Sums a block (G, A, P, C) over the preterminals of each word, to (G, M, N, A, C)."""
    g, m, n, p = terminals.shape
    a, c = block.shape[1], block.shape[3]
    matrix = block.transpose(1, 2).reshape(g, p, a * c)
    return torch.bmm(terminals.reshape(g, m * n, p), matrix).reshape(g, m, n, a, c)
