"""The outside algorithm: the hand-written backward pass of the inside algorithm.

The derivative of a sentence's log-probability with respect to a scaled cell, *the cell's adjoint*, times the
cell is the posterior probability that the symbol covers the span. One pass from the widest spans to the words
gives all adjoints, and with them the derivatives by the rules, the words and the root. Products with split
points are recomputed rather than kept, so that memory grows with the square of the length.

Axes as in the inside algorithm.

Reference:
    Eisner, J. (2016). Inside-outside and forward-backward algorithms are just backprop.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.distributions.inside import NEG_INF, Chart, Rules, split_scales

__all__ = ["Adjoints", "outside"]


def ceiling(dtype: torch.dtype) -> float:
    """Returns where adjoints are cut: those of symbols that cannot be used are unbounded.

    In float64 the product of two stays finite. In float32 nothing is cut: an overflow shows as a value that
    is not finite, and the caller repeats the pass in float64.
    """
    return 1e150 if dtype is torch.float64 else float("inf")


@dataclass(frozen=True)
class Adjoints:
    """Derivatives of the weighted sum of log-probabilities.

    Attributes:
        cells: (G, M, N + 1, N + 1, NT), by start and width: derivative with respect to the chart's scaled
            cells.
        terminals: (G, M, N, PT): derivative with respect to the chart's scaled terminals.
        rules: (G, NT, S, S): derivative with respect to the rules.
    """

    cells: Tensor
    terminals: Tensor
    rules: Tensor


def outside(chart: Chart, rules: Tensor, seeds: Tensor, lengths: Tensor) -> Adjoints:
    """Runs from the roots to the words.

    Args:
        chart: The filled chart.
        rules: (G, NT, S, S), as given to the inside pass.
        seeds: (G, M, S): derivative with respect to the scaled symbols over the whole sentence.
        lengths: (G, M) int64.

    Returns:
        The adjoints.
    """
    blocks = Rules.split(rules)
    num_words, nt = chart.num_words, blocks.nn.shape[1]
    by_start, by_end = torch.zeros_like(chart.by_start), torch.zeros_like(chart.by_start)
    by_start[:, :, 0].scatter_(2, _root_index(lengths, nt), seeds[..., None, :nt])
    grad_nn = torch.zeros_like(blocks.nn)
    for w in range(num_words, 2, -1):
        m, n = chart.alive[w], num_words - w + 1
        if m == 0:
            continue
        adjoint = by_start[:, :m, :n, w]
        adjoint += by_end[:, :m, w:, num_words - w]
        adjoint.clamp_(max=ceiling(adjoint.dtype))
        _edges(chart, adjoint, by_start, w, m)
        if w >= 4:
            grad_nn += _interior(chart, blocks.nn, adjoint, by_start, by_end, w, m)
    if num_words >= 2:
        by_start[:, :, : num_words - 1, 2] += by_end[:, :, 2:, num_words - 2]
    by_start.clamp_(max=ceiling(by_start.dtype))
    return _finish(chart, blocks, by_start, grad_nn, _one_word(seeds[..., nt:], lengths, num_words))


def split_ratios(chart: Chart, w: int, m: int) -> Tensor:
    """Returns exp(scale of left + right − whole) of the splits of width w, (G, m, N − w + 1, w − 1)."""
    whole = chart.scale_by_start[:, :m, : chart.num_words - w + 1, w, None]
    return _ratio(split_scales(chart, w, m), whole, chart.by_start.dtype)


def _edges(chart: Chart, adjoint: Tensor, by_start: Tensor, w: int, m: int) -> None:
    """Passes the adjoints of width w to the children of w − 1 words, beside a single word."""
    n = chart.num_words - w + 1
    ratios = split_ratios(chart, w, m)
    first = (adjoint * ratios[..., :1]).unsqueeze(-2)
    last = (adjoint * ratios[..., -1:]).unsqueeze(-2)
    by_start[:, :m, 1 : n + 1, w - 1] += (first @ chart.from_left[:, :m, :n]).squeeze(-2)
    by_start[:, :m, :n, w - 1] += (last @ chart.from_right[:, :m, w - 1 :]).squeeze(-2)


def _interior(chart: Chart, block: Tensor, adjoint: Tensor, by_start: Tensor, by_end: Tensor, w: int, m: int) -> Tensor:
    """Passes the adjoints of width w to pairs of wider children; returns the derivative by the rules."""
    num_words, (g, nt) = chart.num_words, block.shape[:2]
    ratios = split_ratios(chart, w, m)[..., 1:-1, None]
    left, right = chart.children(w, m)
    weighted = left * ratios
    flat = adjoint.reshape(g, -1, nt)
    pairs = (weighted.mT @ right).reshape(g, -1, nt * nt)
    grad = torch.bmm(flat.mT, pairs).reshape(block.shape)
    by_pair = torch.bmm(flat, block.reshape(g, nt, nt * nt)).reshape(*adjoint.shape, nt)
    by_start[:, :m, : num_words - w + 1, 2 : w - 1] += (right @ by_pair.mT) * ratios
    by_end[:, :m, w:, num_words - w + 2 : num_words - 1] += weighted @ by_pair
    return grad


def _finish(chart: Chart, rules: Rules, cells: Tensor, grad_nn: Tensor, grad_terminals: Tensor) -> Adjoints:
    """Contracts the adjoints of all spans at once to the derivatives by words and their rules."""
    num_words = chart.num_words
    if num_words < 2:
        zeros = [torch.zeros_like(block) for block in (rules.np, rules.pn, rules.pp)]
        return Adjoints(cells, grad_terminals, Rules(grad_nn, *zeros).join())
    terminals = chart.terminals
    left, right = _edge_products(chart, cells)
    grad_pn = torch.einsum("gmiac,gmip->gapc", left, terminals)
    grad_np = torch.einsum("gmiab,gmip->gabp", right, terminals)
    grad_terminals += torch.einsum("gmiac,gapc->gmip", left, rules.pn)
    grad_terminals += torch.einsum("gmiab,gabp->gmip", right, rules.np)
    ratios = split_ratios(chart, 2, terminals.shape[1])
    pairs = cells[:, :, : num_words - 1, 2] * ratios
    first, second = terminals[:, :, :-1], terminals[:, :, 1:]
    grad_pp = torch.einsum("gmna,gmnp,gmnq->gapq", pairs, first, second)
    grad_terminals[:, :, :-1] += torch.einsum("gmna,gmnq,gapq->gmnp", pairs, second, rules.pp)
    grad_terminals[:, :, 1:] += torch.einsum("gmna,gmnp,gapq->gmnq", pairs, first, rules.pp)
    return Adjoints(cells, grad_terminals, Rules(grad_nn, grad_np, grad_pn, grad_pp).join())


def _edge_products(chart: Chart, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Returns, for each word as left and as right child, Σ parent adjoint × sibling, (G, M, N, NT, NT)."""
    num_words = chart.num_words
    left, right = torch.zeros_like(chart.from_left), torch.zeros_like(chart.from_right)
    if num_words < 3:
        return left, right
    word, scale = chart.scale_by_start[:, :, :num_words, 1, None], chart.scale_by_start
    # Parents that start at i, of widths 3 … N; siblings start at i + 1 and are one narrower.
    parents, siblings = cells[:, :, :-1, 3:], chart.by_start[:, :, 1:, 2:-1]
    ratio = _ratio(word + scale[:, :, 1:, 2:-1], scale[:, :, :-1, 3:], cells.dtype)
    left[:] = (parents * ratio.unsqueeze(-1)).mT @ siblings
    # Parents that end at i + 1; siblings end at i. By end and N − width, width N − 0 comes first.
    scale = chart.scale_by_end
    adjoints = _by_end(cells)
    parents, siblings = adjoints[:, :, 1:, : num_words - 2], chart.by_end[:, :, :-1, 1 : num_words - 1]
    ratio = _ratio(word + scale[:, :, :-1, 1 : num_words - 1], scale[:, :, 1:, : num_words - 2], cells.dtype)
    right[:] = (parents * ratio.unsqueeze(-1)).mT @ siblings
    return left, right


def _ratio(children: Tensor, whole: Tensor, dtype: torch.dtype) -> Tensor:
    """Returns exp(children − whole) in `dtype`, zero where the whole is impossible."""
    ratio = (children - whole.masked_fill(whole == NEG_INF, float("inf"))).exp()
    return ratio.clamp(max=ceiling(dtype)).to(dtype)


def _by_end(by_start: Tensor) -> Tensor:
    """Reorders cells (G, M, start, width, NT) to (G, M, end, N − width, NT), zero where there is no span."""
    n = by_start.shape[2] - 1
    end = torch.arange(n + 1, device=by_start.device).unsqueeze(-1)
    width = n - torch.arange(n + 1, device=by_start.device)
    start = end - width
    moved = by_start[:, :, start.clamp(min=0), width.expand_as(start)]
    return moved.masked_fill((start < 0)[..., None], 0)


def _root_index(lengths: Tensor, nt: int) -> Tensor:
    """Returns where the root of each sentence stands on the width axis, (G, M, 1, NT)."""
    width = lengths.masked_fill(lengths < 2, 0)  # sentences of one word have no nonterminal; cell 0 is unused
    return width[..., None, None].expand(*lengths.shape, 1, nt)


def _one_word(seeds: Tensor, lengths: Tensor, num_words: int) -> Tensor:
    """Returns the adjoints of the words that are whole sentences, (G, M, N, PT)."""
    grad = seeds.new_zeros(*lengths.shape, num_words, seeds.shape[-1])
    grad[:, :, 0] = seeds * (lengths == 1).unsqueeze(-1)
    return grad
