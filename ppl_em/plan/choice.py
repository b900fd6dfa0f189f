"""Which exact engine sums a block of latents: the first that accepts it within the budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ppl_em.errors import PlanError, message
from ppl_em.ir import TimeAxis
from ppl_em.ir.block import Block
from ppl_em.plan.hints import purchases
from ppl_em.plan.slicing import slice_block
from ppl_em.plan.stacking import chain_order, stack_chain
from ppl_em.plan.time_axis import stack_axis


@dataclass(frozen=True)
class BlockPlan:
    """How one block of latents is dealt with.

    Args:
        block: latents and factors, stacked along time where they form a chain.
        engine: the engine object.
        flops, bytes: predicted cost of one E-step.
        rejected: (engine's name, reason) for each engine tried before.
    """

    block: Block
    engine: Any
    flops: float
    bytes: float
    rejected: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Budget:
    """What one E-step may cost.

    Args:
        bytes: memory in use at once.
        flops: operations.
    """

    bytes: float
    flops: float

    def exceeded(self, cost: Any) -> str | None:
        """Why a predicted cost is too much, None if it is not."""
        if cost.bytes > self.bytes:
            return f"it would need {cost.bytes:.1e} bytes, the budget is {self.bytes:.1e}"
        if cost.flops > self.flops:
            return f"it would take {cost.flops:.1e} operations, the budget is {self.flops:.1e}"
        return None


class Unaffordable(PlanError):
    """No exact engine sums a block within the budget.

    Args:
        text: the message.
        latents: names of the block's latents.
    """

    def __init__(self, text: str, latents: Sequence[str]) -> None:
        super().__init__(text)
        self.latents = tuple(latents)


def choose_engine(
    block: Block, engines: Sequence[Any], budget: Budget, axis: TimeAxis | None = None, slicing: bool = True
) -> BlockPlan:
    """The first engine that accepts a block within the budget.

    Args:
        block: the block as the program has it.
        engines: exact engines in order of preference.
        budget: of one E-step.
        axis: the time axis, where steps were run at once.
        slicing: group several latents at each step of a chain.

    Raises:
        Unaffordable: there is none; what would buy one is said.
    """
    if axis is not None:
        block = stack_axis(block, axis) or block
    order = chain_order(block) if block.axis is None else None
    stacked = stack_chain(block, order) if order is not None else None
    if stacked is None and block.axis is None and slicing:
        stacked = slice_block(block)
    rejected: list[tuple[str, str]] = []
    for engine in engines:
        candidate = stacked if stacked is not None and engine.reject(block) is not None else block
        why = engine.reject(candidate)
        if why is None:
            chosen = engine.within(candidate, budget.bytes, budget.flops) if hasattr(engine, "within") else engine
            cost = chosen.cost(candidate)
            why = budget.exceeded(cost)
            if why is None:
                return BlockPlan(candidate, chosen, cost.flops, cost.bytes, tuple(rejected))
        rejected.append((engine.name, why))
    reasons = "; ".join(f"{name}: {why}" for name, why in rejected)
    hints = [
        'method="svi"',
        *purchases(block, engines, lambda cost: budget.exceeded(cost) is None),
        "a larger budget with Auto(memory_bytes=..., max_flops=...)",
    ]
    text = message(
        "no exact engine can sum these latents within the budget",
        site=", ".join(block.names[:5]) + (" …" if len(block.names) > 5 else ""),
        why=reasons,
        hint=", ".join(hints),
    )
    raise Unaffordable(text, block.names)
