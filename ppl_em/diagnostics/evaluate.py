"""The exact log-likelihood at many parameter values at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ppl_em.diagnostics.coordinates import Coordinates
from ppl_em.em.e_step import objective
from ppl_em.exact.forward_backward import ordinary_operations
from ppl_em.per_datum import contributions
from ppl_em.plan.plan import Plan

#: Elements of the largest log-factor times parameter values worked on at once.
CHUNK_ELEMENTS = 4e6


def objectives(plan: Plan, coordinates: Coordinates, points: Tensor) -> Tensor:
    """Objective (S,) at each of the coordinates points (S, P)."""
    return _map(plan, coordinates, points, objective)


def log_likelihoods(plan: Plan, coordinates: Coordinates, points: Tensor) -> Tensor:
    """Log-likelihood of each datum (S, n) at each of the coordinates points (S, P)."""
    return _map(plan, coordinates, points, _by_datum)


def _by_datum(plan: Plan, values: Mapping[str, Tensor]) -> Tensor:
    return contributions(plan, values).reshape(-1)


@torch.no_grad()
def _map(
    plan: Plan, coordinates: Coordinates, points: Tensor, function: Callable[[Plan, Mapping[str, Tensor]], Tensor]
) -> Tensor:
    """A function of constrained values over rows of coordinates: vectorised where the program admits it."""
    if not coordinates.modules and all(s.lowered for s in plan.sites()):
        largest = max((b.bytes / 8 for b in plan.blocks), default=1e5)
        chunk = max(1, min(len(points), int(CHUNK_ELEMENTS / max(largest, 1.0))))
        try:
            with ordinary_operations():
                return torch.func.vmap(lambda u: function(plan, coordinates.values(u)), chunk_size=chunk)(points)
        except (RuntimeError, NotImplementedError):
            pass  # an operation that cannot be vectorised: one point after the other
    rows = []
    for point in points:
        with coordinates.leaves(point) as (values, _):
            rows.append(function(plan, {n: v.detach() for n, v in values.items()}).detach())
    return torch.stack(rows)
