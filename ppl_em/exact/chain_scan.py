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

from ppl_em.exact.chain_recursions import Recursions

# Sweeps over all blocks before their products are the cheaper way.
_SWEEPS = 12
# Boundaries agree when they differ by no more than this many units in the last place.
_ULPS = 64.0
# Where rare transitions let states fall out of sight, their messages need not agree; `chain_bounds` checks
# them.
_IGNORED = 1e-234


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
    guess = _cleared(torch.full_like(run.last_alpha, 1.0 / run.last_alpha.shape[-2]), first)
    ignored = torch.finfo(guess.dtype).tiny if run.chains.sure else _IGNORED
    start = _consistent(sweep, guess, first, lambda difference, after: difference / (after + ignored))
    if start is None:
        start = _cleared(_forward_scan(run, block_products(run)), first)
        run.forward(start)
    return start


def backward_to_boundaries(run: Recursions) -> Tensor:
    """Messages at the end of each block, zero for last blocks, after `forward_from_boundaries`."""
    layout = run.chains.layout
    last = layout.block(-1)
    end = _cleared(torch.ones_like(run.last_alpha), last)
    if layout.num_blocks == 1:
        return end

    def sweep(message: Tensor) -> Tensor:
        return _scaled(run.backward(message).roll(-1, layout.axis), run.last_alpha)

    # Messages matter as far as they make marginals.
    consistent = _consistent(sweep, end, last, lambda difference, _: difference * run.last_alpha)
    if consistent is None:
        ends = _backward_scan(run, block_products(run), sweep(end))
        consistent = _cleared(_scaled(ends, run.last_alpha), last)
    return consistent


def _scaled(beta: Tensor, alpha: Tensor) -> Tensor:
    """Backward messages scaled so that the marginals sum to one (zero where there is nothing to scale)."""
    total = (beta * alpha).sum(-2, keepdim=True)
    return beta.div_(total.masked_fill_(total == 0.0, 1.0))


def _consistent(
    sweep: Callable[[Tensor], Tensor],
    guess: Tensor,
    outer: tuple,
    distance: Callable[[Tensor, Tensor], Tensor],
) -> Tensor | None:
    """The boundary messages that a sweep leaves as they are; None where sweeps are too slow to find them.

    Args:
        sweep: Gives each block's boundary from its neighbour's.
        guess: Boundaries to begin with.
        outer: Index of the boundaries that have no neighbour, kept at zero.
        distance: How much an absolute difference between two sweeps matters, given the later one.
    """
    enough = _ULPS * torch.finfo(guess.dtype).eps
    boundary, error = guess, float("inf")
    for sweeps_left in range(_SWEEPS - 1, -1, -1):
        after = _cleared(sweep(boundary), outer)
        # Not a number: an impossible chain, which will not be trusted anyway.
        differences = distance((after - boundary).abs_(), after).nan_to_num_(nan=0.0)
        before, error = error, float(differences.max())
        if error <= enough:
            return boundary
        if before < float("inf") and error * min(error / before, 1.0) ** sweeps_left > enough:
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


def block_products(run: Recursions) -> Tensor:
    """Log of the summed weight of the paths through each block between each two states.

    Returns:
        ``(G', K, S, N')``, ``K`` the state at the end and ``S`` the one before; wrong for padded blocks.
    """
    like = run.last_alpha
    num_states, num_chains = like.shape[-2:]
    message = torch.eye(num_states, dtype=like.dtype, device=like.device).unsqueeze(-1)
    message = message.expand(*like.shape[:-2], num_states, num_states, num_chains).contiguous()
    after = torch.empty_like(message)
    log_norm = torch.zeros_like(message[..., 0, :, :], dtype=torch.float64)
    for t, obs in enumerate(run.obs):
        run.predict(t, message.flatten(-2), after.flatten(-2))
        after.mul_(obs.unsqueeze(-2))
        if run.norms[t] is not None:
            norm = after.sum(-3)
            after.div_(norm.unsqueeze(-3))
            log_norm += norm.log()
        message, after = after, message
    products = message.log_() + log_norm.unsqueeze(-3)
    return products.unsqueeze(0) if run.single else products
