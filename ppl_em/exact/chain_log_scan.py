"""The messages of long chains in log space, by blocks of time side by side.

Every state before a block is followed through it, which gives the block's log-transition as a whole; the few
blocks are gone through one after the other, and then all of them at once from known boundaries. That is as
many times more work as there are states, but in so many fewer and larger operations that it pays for few of
them.

Reference:
    Särkkä, S. & García-Fernández, Á. F. (2021). Temporal parallelization of Bayesian smoothers. IEEE
    Transactions on Automatic Control 66(1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.exact.chain_factors import ChainFactors, chain_factors
from ppl_em.exact.chain_log_space import backward_step, forward_step, log_backward, log_forward, normalise

_MOST_STATES = 16
_FEWEST_STEPS = 1024
_MOST_CHAINS = 16


def log_messages(chain: ChainFactors) -> tuple[Tensor, Tensor, Tensor]:
    """Both messages and log Z, as `log_forward` and `log_backward` give them.

    Args:
        chain: The factors.

    Returns:
        ``(T, *B, K)`` forward, ``(T, *B, K)`` backward messages and ``(*B)`` log Z in float64.
    """
    few = 0 < chain.batch_shape.numel() <= _MOST_CHAINS and chain.num_states <= _MOST_STATES
    if not few or chain.num_steps < _FEWEST_STEPS:
        forward, log_z = log_forward(chain)
        return forward, log_backward(chain), log_z
    blocks = _cut(chain, math.isqrt(chain.num_steps))
    through = _through(blocks)
    forward, log_z = _forward(chain, blocks, through)
    return forward, _backward(chain, blocks, through), log_z


@dataclass(frozen=True)
class _Blocks:
    """A chain's first ``J * L`` steps as ``J`` blocks of ``L``; the rest is shorter than ``J + L``.

    Attributes:
        log_before: ``(*B', J, K, K)`` transitions into the first step of each block but the first.
        log_trans: Transitions within blocks: ``(K, K)``, or ``(*B', J, L-1 or 1, K, K)``.
        log_obs: ``(*B, J, L, K)``.
    """

    log_before: Tensor
    log_trans: Tensor
    log_obs: Tensor


def _cut(chain: ChainFactors, num_blocks: int) -> _Blocks:
    length = chain.num_steps // num_blocks
    log_obs = chain.log_obs[..., : num_blocks * length, :].unflatten(-2, (num_blocks, length))
    if chain.shared:
        return _Blocks(chain.log_trans.expand(num_blocks, -1, -1), chain.log_trans, log_obs)
    if chain.log_trans.shape[-3] == 1:
        same = chain.log_trans.unsqueeze(-4)
        return _Blocks(same.squeeze(-3).expand(*same.shape[:-4], num_blocks, -1, -1), same, log_obs)
    # Entry t of this leads into step t; entry 0 is never used.
    into = torch.cat([chain.log_trans[..., :1, :, :], chain.log_trans], -3)
    into = into[..., : num_blocks * length, :, :].unflatten(-3, (num_blocks, length))
    return _Blocks(into[..., 0, :, :], into[..., 1:, :, :], log_obs)


def _through(blocks: _Blocks) -> Tensor:
    """Log-weight ``(*B, J, K, K)`` of each block between the state before it and that at its end."""
    trans = blocks.log_trans if blocks.log_trans.dim() == 2 else blocks.log_trans.unsqueeze(-4)
    ways = chain_factors(blocks.log_before, trans, blocks.log_obs.unsqueeze(-3))
    message = ways.log_init + ways.log_obs[..., 0, :]
    log_weight = normalise(message).double()
    after = torch.empty_like(message)
    for t in range(1, ways.num_steps):
        log_weight += forward_step(ways, t, message, after)
        message, after = after, message
    return message + log_weight.unsqueeze(-1)


def _forward(chain: ChainFactors, blocks: _Blocks, through: Tensor) -> tuple[Tensor, Tensor]:
    """What `log_forward` gives."""
    inits = [chain.log_init]
    within = blocks.log_trans if chain.shared else blocks.log_trans[..., 0, :, :, :]
    first = chain_factors(chain.log_init, within, blocks.log_obs[..., 0, :, :])
    message = log_forward(first)[0][-1].double()
    for j in range(1, through.shape[-3]):
        before = blocks.log_before[..., j, :, :]
        inits.append((message.unsqueeze(-1) + before).logsumexp(-2).to(chain.log_obs.dtype))
        message = (message.unsqueeze(-1) + through[..., j, :, :]).logsumexp(-2)
        normalise(message)
    side_by_side = chain_factors(torch.stack(inits, -2), blocks.log_trans, blocks.log_obs)
    pieces, log_z = log_forward(side_by_side)
    log_z = log_z.sum(-1)
    forward = chain.log_obs.new_empty(chain.num_steps, *chain.batch_shape, chain.num_states)
    done = pieces.shape[0] * pieces.shape[-2]
    forward[:done] = pieces.movedim(-2, 0).flatten(0, 1)
    for t in range(done, chain.num_steps):
        log_z += forward_step(chain, t, forward[t - 1], forward[t])
    return forward, log_z


def _backward(chain: ChainFactors, blocks: _Blocks, through: Tensor) -> Tensor:
    """What `log_backward` gives."""
    backward = chain.log_obs.new_empty(chain.num_steps, *chain.batch_shape, chain.num_states)
    backward[-1] = 0.0
    done = blocks.log_obs.shape[-3] * blocks.log_obs.shape[-2]
    for t in range(chain.num_steps - 1, done - 1, -1):
        backward_step(chain, t, backward[t], backward[t - 1])
    message, ends = backward[done - 1].double(), [backward[done - 1]]
    for j in range(through.shape[-3] - 1, 0, -1):
        message = (message.unsqueeze(-2) + through[..., j, :, :]).logsumexp(-1)
        normalise(message)
        ends.append(message.to(backward.dtype))
    side_by_side = chain_factors(torch.zeros_like(ends[0]).unsqueeze(-2), blocks.log_trans, blocks.log_obs)
    pieces = log_backward(side_by_side, torch.stack(ends[::-1], -2))
    backward[:done] = pieces.movedim(-2, 0).flatten(0, 1)
    return backward
