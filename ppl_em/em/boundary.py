"""Maxima on the open boundary of a constraint: a rate whose data are all zero, a scale of identical data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_em.mstep.constraint import is_ordered

#: Supports that every weighted maximum lies in, up to its own limits (singular covariances are judged elsewhere).
_ALWAYS_MET = (constraints.simplex, constraints.positive_definite, constraints.lower_cholesky)

#: Neighbours of an ordered vector that are this near, relative to the largest, are equal to rounding.
EQUAL = 1e-12


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


def keep_zeros(constraint: Any, old: Tensor, new: Tensor) -> Tensor:
    """New probabilities whose zeros are at least those of the old ones: EM never leaves a zero.

    Pyro's categorical densities take a probability of zero for one of 1e-16, so that forbidden events get expected
    counts of that size.

    Args:
        constraint: the parameter's support; of others than simplices nothing is changed.
        old, new: constrained values, any shape.

    Example:
        >>> keep_zeros(constraints.simplex, torch.tensor([0.0, 1.0]), torch.tensor([1e-16, 1.0]))
        tensor([0., 1.])
    """
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if constraint is not constraints.simplex:
        return new
    zero = old == 0
    if not bool(zero.any()):
        return new
    kept = torch.where(zero, 0.0, new)
    total = kept.sum(-1, keepdim=True)
    return torch.where(total > 0, kept / total, new)


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
    if is_ordered(constraint):
        return _increasing(value)
    strict = isinstance(constraint, constraints.greater_than) and not isinstance(
        constraint, constraints.greater_than_eq
    )
    if not strict:
        return value
    bound = torch.as_tensor(constraint.lower_bound, dtype=value.dtype, device=value.device)
    smallest = torch.finfo(value.dtype).tiny
    above = torch.maximum(torch.nextafter(bound, bound.new_tensor(torch.inf)), bound + smallest)
    return torch.where(value == bound, above, value)


def _increasing(value: Tensor) -> Tensor:
    """Rows (…, K) whose neighbours came to be equal by rounding, each moved to the next number."""
    gap = value[..., 1:] - value[..., :-1]
    if bool((gap > 0).all()) or bool((gap < -EQUAL * value.abs().amax()).any()):
        return value
    columns = list(value.unbind(-1))
    for i in range(1, len(columns)):
        above = torch.nextafter(columns[i - 1], torch.full_like(columns[i - 1], torch.inf))
        columns[i] = torch.maximum(columns[i], above)
    return torch.stack(columns, -1)
