"""The most probable path of long chains, in blocks of time side by side.

As in `chain_scan`, all blocks run at once from guessed scores until their boundaries agree: the best paths
into all states of a step usually share their past, so that what precedes a block only shifts its scores. The
predecessors of each block then compose to one map from the state at its end to the state before it, and the
path is read off in three short loops.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.exact.chain_factors import ChainFactors
from ppl_em.exact.chain_layout import Layout, choose_layout

_SWEEPS = 8
_AGREE = 1e-12


def viterbi_in_blocks(chain: ChainFactors) -> Tensor | None:
    """Most probable paths ``(*B, T)`` of chains that share one transition.

    Args:
        chain: The factors, with a shared transition.

    Returns:
        None where chains are many or short enough to be done whole, or where blocks do not come to agree.
    """
    num_chains = chain.batch_shape.numel()
    layout = choose_layout(1, num_chains, chain.num_steps, False)
    if layout.num_blocks == 1 or not chain.shared:
        return None
    log_obs = _blocks(chain.log_obs.reshape(num_chains, chain.num_steps, -1), layout)
    log_obs[0].unflatten(0, (num_chains, -1))[:, 0] += chain.log_init.reshape(num_chains, -1)
    start = torch.zeros_like(log_obs[0])
    for _ in range(_SWEEPS):
        end = _sweep(chain.log_trans, log_obs, start, layout)
        # Where nothing is possible any more, what precedes the next block does not matter.
        end = end.masked_fill(end.amax(-1, keepdim=True) == -torch.inf, 0.0)
        after = end.roll(1, 0)
        # Equal infinities have no difference to speak of.
        same = ((after - start).abs() <= _AGREE) | (after == start)
        same.unflatten(0, (num_chains, -1))[:, 0] = True
        if bool(same.all()):
            break
        start = after
    else:
        return None
    before = torch.empty(log_obs.shape, dtype=torch.int64, device=log_obs.device)
    end = _sweep(chain.log_trans, log_obs, start, layout, before)
    paths = _trace(before, end, layout)
    return paths[:, : chain.num_steps].reshape(*chain.batch_shape, chain.num_steps)


def _blocks(log_obs: Tensor, layout: Layout) -> Tensor:
    """``(N, T, K)`` as ``(L, N * blocks, K)``, zeros behind the last step."""
    padding = layout.num_blocks * layout.length - layout.num_steps
    padded = torch.nn.functional.pad(log_obs, (0, 0, 0, padding))
    blocks = padded.unflatten(1, (layout.num_blocks, layout.length)).permute(2, 0, 1, 3)
    return blocks.flatten(1, 2).clone(memory_format=torch.contiguous_format)


def _sweep(log_trans: Tensor, log_obs: Tensor, start: Tensor, layout: Layout, before: Tensor | None = None) -> Tensor:
    """Run all blocks.

    Args:
        log_trans: ``(K, K)``.
        log_obs: ``(L, R, K)`` for ``R`` blocks; the first of each chain includes its initial factor.
        start: ``(R, K)`` scores before each block.
        layout: Of the blocks.
        before: ``(L, R, K)`` to be filled with the best predecessors, or None.

    Returns:
        ``(R, K)`` scores at each block's end (the last step's in last blocks), the best of them zero.
    """
    columns, num_blocks = log_trans.T.contiguous(), layout.num_blocks
    candidates = start.new_empty(*start.shape, start.shape[-1])
    score = start
    for t, obs in enumerate(log_obs.unbind(0)):
        torch.add(score.unsqueeze(-2), columns, out=candidates)
        if before is None:
            best = candidates.amax(-1)
        else:
            best, before[t] = candidates.max(-1)
        if t == 0:
            best[::num_blocks] = 0.0
        best += obs
        if t > layout.tail:  # padding
            best[num_blocks - 1 :: num_blocks] = score[num_blocks - 1 :: num_blocks]
            if before is not None:
                before[t, num_blocks - 1 :: num_blocks] = torch.arange(before.shape[-1], device=before.device)
        peak = best.amax(-1, keepdim=True)
        score = best.sub_(peak.masked_fill_(peak == -torch.inf, 0.0))
    return score


def _trace(before: Tensor, end: Tensor, layout: Layout) -> Tensor:
    """Paths ``(N, blocks * L)`` from the predecessors ``(L, R, K)`` and the scores ``(R, K)`` at each end."""
    num_chains, num_blocks = layout.num_chains, layout.num_blocks
    steps = before.unbind(0)
    across = torch.arange(before.shape[-1], device=before.device).expand(before.shape[1:])
    for predecessor in reversed(steps):
        across = predecessor.gather(-1, across)
    across = across.unflatten(0, (num_chains, num_blocks)).unbind(1)
    state = end.unflatten(0, (num_chains, num_blocks))[:, -1].argmax(-1, keepdim=True)
    ends = [state]
    for block in across[:0:-1]:
        state = block.gather(-1, state)
        ends.append(state)
    state = torch.stack(ends[::-1], 1).flatten(0, 1)
    path = [state]
    for predecessor in steps[:0:-1]:
        state = predecessor.gather(-1, state)
        path.append(state)
    return torch.cat(path[::-1], -1).reshape(num_chains, -1)
