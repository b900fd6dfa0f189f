"""Constraints of arguments: bounds, and unconstrained coordinates for the inner iterations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

INSIDE = 1e-12
"""A start on the boundary is moved inside by this part, so that its coordinate is finite."""


@dataclass(frozen=True)
class Coordinate:
    """An element-by-element bijection of the unconstrained line.

    Attributes:
        free: constrained value → unconstrained.
        constrained: unconstrained → constrained value, differentiable.
    """

    free: Callable[[Tensor], Tensor]
    constrained: Callable[[Tensor], Tensor]


def constraint_of(family: Any, name: str) -> Any:
    """The constraint of an argument, less `independent` around it; real where the family declares none."""
    constraint = getattr(family, "arg_constraints", {}).get(name, constraints.real)
    while hasattr(constraint, "base_constraint"):
        constraint = constraint.base_constraint
    return constraint


def is_ordered(constraint: Any) -> bool:
    """Whether a constraint is that of strictly increasing vectors."""
    return constraint is dist.constraints.ordered_vector


def bounds(constraint: Any) -> tuple[float, float]:
    """Lower and upper bound of each element, infinite where there is none."""
    lower = getattr(constraint, "lower_bound", 0.0 if constraint is constraints.simplex else -torch.inf)
    return float(lower), float(getattr(constraint, "upper_bound", torch.inf))


def coordinate(family: Any, name: str) -> Coordinate:
    """Unconstrained coordinates of an argument: logarithm, log-odds or the value itself."""
    lower, upper = bounds(constraint_of(family, name))
    if lower == -torch.inf and upper == torch.inf:
        return Coordinate(lambda v: v, lambda u: u)
    if upper == torch.inf:
        return Coordinate(lambda v: (v - lower).clamp(min=1e-300).log(), lambda u: lower + u.exp())
    width = upper - lower
    return Coordinate(
        lambda v: ((v - lower) / width).clamp(INSIDE, 1 - INSIDE).logit(),
        lambda u: lower + width * u.sigmoid(),
    )
