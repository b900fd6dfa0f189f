"""Series of unequal length beside each other: whole paths of each up to its own last observation.

What follows a series' last observation is drawn from the model alone. It would change which path is the best one, fill
the k best with copies of each other, and add to the entropy, so that the answers would depend on the padding.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ppl_em.exact.chain_slices import path_ends, slices_of
from ppl_em.ir.block import Block

Chain = tuple[Tensor, Tensor, Tensor]
Query = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]


def by_length(block: Block, chain: Chain, query: Query) -> tuple[Tensor, ...]:
    """Ask the kernels about the chains of a block, those of each length by themselves.

    Args:
        block: tells which steps have anything observed at or after them.
        chain: log-factors in the layout of the kernels.
        query: of chains of one length; its integer answers are paths, time last, which are continued by the most
            probable move at each step behind the last observation.

    Returns:
        The query's answers, batch dimensions (those of the block's plates and outer latents) first.
    """
    last = path_ends(block)
    if last is None:
        return query(*chain)
    batch = slices_of(block).batch
    sizes = [block.sizes[d] for d in batch]
    init, trans, obs = chain
    lasts = last.align(batch).expand(sizes).reshape(-1)
    init = init.expand(*sizes, init.shape[-1]).reshape(-1, init.shape[-1])
    obs = obs.expand(*sizes, *obs.shape[-2:]).reshape(-1, *obs.shape[-2:])
    answers: list[Tensor] = []
    for step in lasts.unique().tolist():
        rows = (lasts == step).nonzero().squeeze(-1).to(obs.device)
        own = _rows(trans, sizes, rows)
        found = query(init[rows], _until(own, step), obs[rows, : step + 1])
        whole = [_continued(a, own, obs[rows]) if a.dtype == torch.int64 else a for a in found]
        if not answers:
            answers = [a.new_empty(len(lasts), *a.shape[1:]) for a in whole]
        for answer, part in zip(answers, whole, strict=True):
            answer[rows] = part
    return tuple(a.reshape(*sizes, *a.shape[1:]) for a in answers)


def _rows(trans: Tensor, sizes: list[int], rows: Tensor) -> Tensor:
    """Transitions of some rows of the flattened batch: (K, K), (T', K, K) shared by rows, or (rows, T', K, K)."""
    if trans.dim() == 2:
        return trans
    if trans.shape[:-3].numel() == 1:
        return trans.reshape(trans.shape[-3:])
    return trans.expand(*sizes, *trans.shape[-3:]).reshape(-1, *trans.shape[-3:])[rows]


def _until(trans: Tensor, step: int) -> Tensor:
    return trans if trans.dim() == 2 or trans.shape[-3] == 1 else trans[..., :step, :, :]


def _continued(path: Tensor, trans: Tensor, obs: Tensor) -> Tensor:
    """Paths (rows, *, n) up to the number of steps of ``obs`` (rows, T, K)."""
    steps = [path]
    state = path[..., -1]
    for t in range(path.shape[-1], obs.shape[-2]):
        table = trans if trans.dim() == 2 else trans[..., 0 if trans.shape[-3] == 1 else t - 1, :, :]
        here = obs[:, t].reshape(len(obs), *(1 for _ in range(state.dim() - 1)), -1)
        if table.dim() == 2:
            onward = table[state]
        else:
            onward = table[torch.arange(len(obs)).reshape(-1, *(1 for _ in range(state.dim() - 1))), state]
        state = (onward + here).argmax(-1)
        steps.append(state.unsqueeze(-1))
    return torch.cat(steps, -1)
