"""One long chain as many blocks side by side: the messages at the blocks' boundaries.

A chain forgets: the message after a block hardly depends on the message before it. So all blocks run at once
from a guess, each then starts from what its predecessor ended with, and when the starts no longer change they
are the messages of the chain. Chains that remember longer get their boundaries from the products of each
block's transitions, which cost as many times more as there are states.

Reference:
    Särkkä, S. & García-Fernández, Á. F. (2021). Temporal parallelization of Bayesian smoothers. IEEE
    Transactions on Automatic Control 66(1). (Products of blocks, as a prefix sum.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppl_em.exact.chain_scaled import Recursions

# Sweeps over all blocks before their products are the cheaper way.
_SWEEPS = 12
# Boundaries agree when they differ by no more than this many units in the last place.
_ULPS = 64.0


def forward_from_boundaries(run: Recursions) -> Tensor | None:
    """Run `Recursions.forward` from consistent boundaries.

    Returns:
        The messages before each block, zero before first blocks; None where chains are whole.
    """
    layout = run.chains.layout
    if layout.num_blocks == 1:
        run.forward()
        return None

    def sweep(start: Tensor) -> Tensor:
        run.forward(start)
        return run.last_alpha.roll(1, layout.axis)

    first = layout.block(0)
    start = _consistent(sweep, torch.full_like(run.last_alpha, 1.0 / run.last_alpha.shape[-2]), first)
    if start is None:
        start = _cleared(_forward_scan(run, run.block_products()), first)
        run.forward(start)
    return start


def backward_to_boundaries(run: Recursions) -> Tensor:
    """Messages at the end of each block, zero for last blocks, after `forward_from_boundaries`."""
    layout = run.chains.layout
    last = layout.block(-1)
    end = _cleared(torch.ones_like(run.last_alpha), last)
    if layout.num_blocks == 1:
        return end

    def scaled(message: Tensor) -> Tensor:
        # Marginals at the boundary sum to one.
        return message.div_((message * run.last_alpha).sum(-2, keepdim=True))

    def sweep(message: Tensor) -> Tensor:
        return scaled(run.backward(message).roll(-1, layout.axis))

    consistent = _consistent(sweep, end, last)
    if consistent is None:
        consistent = _cleared(scaled(_backward_scan(run, run.block_products(), sweep(end))), last)
    return consistent


def _consistent(sweep: Callable[[Tensor], Tensor], guess: Tensor, outer: tuple) -> Tensor | None:
    """The boundary messages that a sweep leaves as they are; None where sweeps are too slow to find them.

    Args:
        sweep: Gives each block's boundary from its neighbour's.
        guess: Boundaries to begin with.
        outer: Index of the boundaries that have no neighbour, kept at zero.
    """
    info = torch.finfo(guess.dtype)
    boundary, error = _cleared(guess, outer), float("inf")
    for sweeps_left in range(_SWEEPS - 1, -1, -1):
        after = _cleared(sweep(boundary), outer)
        before, error = error, float(((after - boundary).abs() / (after + info.tiny)).max())
        if error <= _ULPS * info.eps:
            return boundary
        hopeless = error * min(error / before, 1.0) ** sweeps_left > _ULPS * info.eps
        if before < float("inf") and hopeless:
            return None
        boundary = after
    return None


def _cleared(boundary: Tensor, outer: tuple) -> Tensor:
    boundary[outer] = 0.0
    return boundary


def _forward_scan(run: Recursions, products: Tensor) -> Tensor:
    """Messages before each block from the log-products ``(G', K, S, N')`` of the blocks."""
    layout = run.chains.layout
    blocks = layout.split_blocks(products)
    message = blocks[0].new_zeros(()).expand(blocks[0][..., 0, :, :].shape)
    starts = [message]
    for block in blocks[:-1]:
        message = (block + message.unsqueeze(-3)).logsumexp(-2)
        message = message - message.logsumexp(-2, keepdim=True)
        starts.append(message)
    return layout.join_blocks(starts).exp_().reshape(run.last_alpha.shape)


def _backward_scan(run: Recursions, products: Tensor, heads: Tensor) -> Tensor:
    """Messages after each block; ``heads`` are right for the last block's predecessor."""
    layout = run.chains.layout
    blocks = layout.split_blocks(products)
    message = layout.split_blocks(heads.reshape(products[..., 0, :].shape))[-2].log()
    ends = [message, message]
    for block in blocks[-2:0:-1]:
        message = (block + message.unsqueeze(-2)).logsumexp(-3)
        message = message - message.logsumexp(-2, keepdim=True)
        ends.append(message)
    return layout.join_blocks(ends[::-1]).exp_().reshape(run.last_alpha.shape)
