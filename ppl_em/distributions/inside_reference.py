"""The inside algorithm span by span: the slow twin of the vectorised chart, differentiable to any order."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.distributions.inside import NEG_INF, Rules

__all__ = ["inside_reference"]


def inside_reference(root: Tensor, rules: Tensor, terminals: Tensor, lengths: Tensor) -> Tensor:
    """Returns log Z by plain differentiable operations, one product for each width and split point.

    Args:
        root: (G, S), probability of each root symbol.
        rules: (G, NT, S, S), probability of a → b c, nonterminals first.
        terminals: (G, M, N, PT), probability of each word under each preterminal.
        lengths: (G, M) int64.

    Returns:
        (G, M), log-probability of each sentence; −inf, with zero derivatives, where it cannot be derived.
    """
    blocks, nt, num_words = Rules.split(rules), rules.shape[1], terminals.shape[2]
    cells, scales = {1: terminals}, {1: torch.zeros_like(terminals[..., 0])}
    for w in range(2, num_words + 1):
        cells[w], scales[w] = _diagonal(cells, scales, blocks, w, num_words - w + 1)
    result = torch.full_like(scales[1][:, :, 0], NEG_INF)
    for w in range(1, num_words + 1):
        root_part = root[:, nt:] if w == 1 else root[:, :nt]
        total = (cells[w][:, :, 0] * root_part.unsqueeze(1)).sum(-1)
        derived = (lengths == w) & (total > 0)
        log_z = total.where(derived, torch.ones_like(total)).log() + scales[w][:, :, 0]
        result = torch.where(derived, log_z, result)
    return result


def _diagonal(
    cells: dict[int, Tensor], scales: dict[int, Tensor], rules: Rules, w: int, n: int
) -> tuple[Tensor, Tensor]:
    """Returns the cells (G, M, n, NT) of width w and the log of the constant each was divided by."""
    splits = range(1, w)
    left_scales = torch.stack([scales[k][:, :, :n] for k in splits])
    right_scales = torch.stack([scales[w - k][:, :, k : k + n] for k in splits])
    top = (left_scales + right_scales).amax(0)
    weights = (left_scales + right_scales - top).exp()
    cell = torch.zeros((), dtype=top.dtype, device=top.device)
    for k in splits:
        block = (rules.nn, rules.np, rules.pn, rules.pp)[2 * (k == 1) + (k == w - 1)]
        left, right = cells[k][:, :, :n], cells[w - k][:, :, k : k + n]
        cell = cell + torch.einsum("gmn,gmnb,gmnc,gabc->gmna", weights[k - 1], left, right, block)
    largest = cell.detach().amax(-1)  # a constant: it divides the cell and is added back in the scale
    largest = largest.masked_fill(largest == 0, 1)
    return cell / largest.unsqueeze(-1), top + largest.log()
