"""Predicted cost beside measured cost: what a database prints as EXPLAIN ANALYZE."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ppl_em.errors import PlanError, message
from ppl_em.machine_speed import e_step_of, median_seconds, speeds
from ppl_em.plan.plan import Plan


@dataclass(frozen=True)
class Analysis:
    """Cost of one E-step, predicted and measured.

    Args:
        engines: engine of each block, with its latents.
        flops: predicted operations.
        predicted_seconds, measured_seconds: of one E-step.
        predicted_bytes, measured_bytes: largest amount of memory in use at once.
    """

    engines: tuple[tuple[str, tuple[str, ...]], ...]
    flops: float
    predicted_seconds: float
    measured_seconds: float
    predicted_bytes: float
    measured_bytes: float

    @property
    def ratios(self) -> dict[str, float]:
        """Measured over predicted, by quantity."""
        return {
            "seconds": self.measured_seconds / self.predicted_seconds,
            "bytes": self.measured_bytes / max(1.0, self.predicted_bytes),
        }

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "engines": [[name, list(latents)] for name, latents in self.engines],
            "flops": self.flops,
            "seconds": {"predicted": self.predicted_seconds, "measured": self.measured_seconds},
            "bytes": {"predicted": self.predicted_bytes, "measured": self.measured_bytes},
        }

    def __str__(self) -> str:
        lines = ["E-step, predicted and measured"]
        for name, latents in self.engines:
            shown = ", ".join(latents[:4]) + (" …" if len(latents) > 4 else "")
            lines.append(f"  {name:<12} {shown}")
        lines.append(f"  {'operations':<12} {self.flops:.3g} predicted")
        for what, scale, unit in (("seconds", 1e3, "ms"), ("bytes", 1e-6, "MB")):
            pair = self.to_dict()[what]
            text = f"{scale * pair['predicted']:.3g} {unit} predicted, {scale * pair['measured']:.3g} {unit} measured"
            lines.append(f"  {what:<12} {text} (× {self.ratios[what]:.2f})")
        return "\n".join(lines)


def analyze(plan: Plan, values: Mapping[str, Tensor] | None = None) -> Analysis:
    """Run the E-step of a plan and hold its cost against the prediction.

    Seconds are predicted from the speed of each engine on this machine, measured once and kept in the user's cache.

    Args:
        plan: an exact plan.
        values: constrained values of all parameters; None for the program's own.

    Raises:
        PlanError: the plan has no E-step to run.
    """
    if plan.method != "em" or not plan.blocks:
        raise PlanError(message("there is no E-step to measure", value=plan.method, hint="a plan with summed latents"))
    start = {n: p.init for n, p in plan.program.parameters.items()}
    run = e_step_of(plan, {**start, **(values or {})})
    known = speeds()
    # A block that is worked on by an engine of the user's has the general engine's speed.
    parts = [(known.get(b.engine.name, known["elimination"]), b.flops) for b in plan.blocks]
    overhead = max(s.seconds for s, _ in parts)
    return Analysis(
        tuple((b.engine.name, b.block.names) for b in plan.blocks),
        sum(b.flops for b in plan.blocks),
        overhead + sum(s.per_flop * flops for s, flops in parts),
        median_seconds(run),
        sum(b.bytes for b in plan.blocks),
        peak_bytes(run),
    )


class _Watch(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, as long as they are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._add(leaf)
        return result

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._sizes:
            return
        self._sizes[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key)

    def _remove(self, key: int) -> None:
        self.now -= self._sizes.pop(key, 0)


def peak_bytes(run: Callable[[], Any]) -> float:
    """Most bytes that a call's tensors hold at once."""
    with _Watch() as watch, torch.no_grad():
        run()
    return float(watch.peak)
