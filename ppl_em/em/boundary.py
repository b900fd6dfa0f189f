"""Maxima on the open boundary of a constraint: a rate whose data are all zero, a scale of identical data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

#: Supports that every weighted maximum lies in, up to its own limits (singular covariances are judged elsewhere).
_ALWAYS_MET = (constraints.simplex, constraints.positive_definite, constraints.lower_cholesky)


def outside(constraint: Any, value: Tensor) -> bool:
    """Whether a finite value violates its constraint: an interval, an order, a sign.

    Args:
        constraint: the parameter's support.
        value: constrained value, any shape.

    Example:
        >>> outside(constraints.interval(0.0, 1.0), torch.tensor(1.5))
        True
    """
    base = constraint
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    if base in _ALWAYS_MET or not bool(torch.isfinite(value).all()):
        return False
    return not bool(torch.as_tensor(constraint.check(value)).all())


def inside(constraint: Any, value: Tensor) -> Tensor:
    """The value, elements on the open boundary of its constraint moved to the nearest number inside.

    A supremum that lies on the boundary (rate 0 of a Poisson whose counts are all zero) is not a value that the program
    accepts; the nearest floating-point number is, and its density is the same to rounding.

    Args:
        constraint: the parameter's support.
        value: constrained value, any shape.

    Example:
        >>> float(inside(constraints.positive, torch.tensor(0.0))) > 0
        True
    """
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    strict = isinstance(constraint, constraints.greater_than) and not isinstance(
        constraint, constraints.greater_than_eq
    )
    if not strict:
        return value
    bound = torch.as_tensor(constraint.lower_bound, dtype=value.dtype, device=value.device)
    smallest = torch.finfo(value.dtype).tiny
    above = torch.maximum(torch.nextafter(bound, bound.new_tensor(torch.inf)), bound + smallest)
    return torch.where(value == bound, above, value)
