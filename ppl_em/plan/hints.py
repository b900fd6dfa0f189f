"""What would buy exactness where a block misses the budget: fewer states, fewer data at once, with the predicted cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ppl_em.ir.block import Block


def purchases(block: Block, engines: Sequence[Any], fits: Callable[[Any], bool]) -> list[str]:
    """Changes of a program with which an exact engine would accept its block, with what it would cost then.

    Args:
        block: the block as the program has it.
        engines: exact engines in order of preference.
        fits: whether a predicted cost is within the budget.
    """
    largest = max(z.cardinality for z in block.latents)
    low, high, bought = 1, largest, None
    while high - low > 1:  # the cost grows with the number of states
        states = (low + high) // 2
        cost = _cheapest(with_states(block, states), engines, fits)
        if cost is None:
            high = states
        else:
            low, bought = states, cost
    if bought is None:
        return []
    return [f"fewer states (K {largest}→{low}: {bought.flops:.1e} operations, {bought.bytes:.1e} bytes)"]


def _cheapest(block: Block, engines: Sequence[Any], fits: Callable[[Any], bool]) -> Any:
    """Cost by the first engine that accepts a block within the budget, None if there is none."""
    for engine in engines:
        if engine.reject(block) is None:
            cost = engine.cost(block)
            if fits(cost):
                return cost
    return None


def with_states(block: Block, states: int) -> Block:
    """The block as it would be with at most so many values of every latent; for predictions only."""
    latents = tuple(z if z.support is None else replace(z, support=z.support[:states]) for z in block.latents)
    sizes = {**block.sizes, **{z.name: z.cardinality for z in latents}}
    return replace(block, latents=latents, sizes=sizes)
