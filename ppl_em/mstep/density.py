"""Σ w log p(x) through the family's own log-density: what every rule is judged by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_em.mstep.block import Block


def build(family: Callable[..., Any], args: Mapping[str, Tensor]) -> Any:
    """The distribution with these arguments, unvalidated (proposals may lie on the boundary).

    Args:
        family: a distribution class.
        args: arguments by name.
    """
    given: dict[str, Any] = dict(args)
    if isinstance(family, type) and issubclass(family, torch.distributions.Multinomial):
        # Its total count must be one int, and its log-density does not depend on it.
        given["total_count"] = int(args["total_count"].max()) if "total_count" in args else 1
    return family(**given, validate_args=False)


def weighted_log_prob(
    blocks: tuple[Block, ...], event_dim: int, family: Callable[..., Any], args: Mapping[str, Tensor]
) -> Tensor:
    """Σ w log p(x | args) over all blocks, a scalar, differentiable in ``args``.

    Args:
        blocks: the data.
        event_dim: number of event dimensions of one datum.
        family: the distribution class.
        args: values by row, (R, *arg_event).
    """
    total = torch.zeros((), dtype=torch.float64, device=blocks[0].weights.device)
    for block in blocks:
        alive = (block.weights > 0).any(1)
        if not bool(alive.any()):
            continue
        values = block.values[alive] if block.per_row(event_dim) else block.values
        live = Block(block.weights[alive], values, block.rows[alive])
        own = {name: value[live.rows].unsqueeze(1) for name, value in args.items()}
        distribution = build(family, own)
        per_row = live.per_row(event_dim)
        for weights, x in live.chunks(event_dim, factor=1 if per_row else len(live.weights)):
            wide = live.widen(weights)
            if bool((weights == 0).any()):
                x = _revive(live, weights, x, event_dim)
            log_prob = distribution.log_prob(x)
            total = total + torch.where(wide > 0, wide * log_prob, 0.0).sum()
    return total


def _revive(block: Block, weights: Tensor, x: Tensor, event_dim: int) -> Tensor:
    """Replace data without weight by some datum with weight in the same row.

    A datum outside the support would otherwise make 0 · ∞ in the gradient.
    """
    chosen = (weights > 0).to(torch.uint8).argmax(1)
    index = torch.arange(len(weights), device=x.device)
    if not block.per_row(event_dim):
        stand_in = x[chosen]
        x = x.unsqueeze(0)
    else:
        stand_in = x[index, chosen]
    return torch.where(block.widen(weights > 0, event_dim), x, stand_in.unsqueeze(1))
