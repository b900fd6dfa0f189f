"""Free coordinates of one constrained parameter around its estimate: zero is the estimate, any small vector is valid.

A simplex of K has K − 1 of them, a covariance matrix D(D+1)/2; elements on the boundary of their constraint have none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints, transform_to

#: Probabilities (or positions in an interval) closer than this to the boundary are on it.
BOUNDARY = 1e-6
#: Positive values below this are on the boundary.
ZERO = 1e-10
#: Singular values below this part of the largest one do not count towards the rank of a constraint.
RANK = 1e-10


@dataclass(frozen=True)
class Chart:
    """Free coordinates of one parameter.

    Args:
        name: the parameter.
        origin: its estimate, constrained.
        size: number of free coordinates.
        to_value: coordinates (size,) to a constrained value, differentiable; zero gives ``origin``.
        from_value: its inverse; elements on the boundary are ignored.
        lower, upper: bounds of each element (infinite where there are none), shape of ``origin``.
        fixed: elements that stay where they are because they lie on the boundary, shape of ``origin``.
    """

    name: str
    origin: Tensor
    size: int
    to_value: Callable[[Tensor], Tensor]
    from_value: Callable[[Tensor], Tensor]
    lower: Tensor
    upper: Tensor
    fixed: Tensor


def make_chart(name: str, value: Tensor, constraint: Any) -> Chart:
    """Free coordinates of a parameter at its estimate.

    Args:
        name: for messages and labels.
        value: the estimate, constrained.
        constraint: of ``torch.distributions`` or Pyro.

    Example:
        >>> import torch
        >>> chart = make_chart("p", torch.tensor([0.2, 0.3, 0.5]), constraints.simplex)
        >>> chart.size, chart.to_value(torch.zeros(2))
        (2, tensor([0.2000, 0.3000, 0.5000]))
    """
    value = value.detach().clone()
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    if constraint is constraints.simplex:
        return _simplex(name, value)
    if constraint in (constraints.positive_definite, constraints.positive_semidefinite):
        return _cholesky(name, value, torch.linalg.cholesky, lambda factor: factor @ factor.mT)
    if constraint in (constraints.lower_cholesky, getattr(constraints, "softplus_lower_cholesky", None)):
        return _cholesky(name, value, lambda x: x, lambda factor: factor)
    if constraint is constraints.real or constraint is constraints.real_vector:
        return _elementwise(name, value, torch.distributions.identity_transform, float("-inf"), float("inf"))
    bounds = _interval(constraint)
    if bounds is not None:
        return _elementwise(name, value, biject_to(constraint), *bounds)
    return _by_rank(name, value, transform_to(constraint))


def log_volume(chart: Chart, points: Tensor) -> Tensor:
    """Log of the volume of constrained space per volume of coordinates, up to a constant; (S, size) to (S,)."""
    if not chart.size:
        return points.new_zeros(len(points))
    jacobian = torch.func.vmap(torch.func.jacrev(lambda u: chart.to_value(u).reshape(-1)))(points)
    return 0.5 * torch.linalg.slogdet(jacobian.mT @ jacobian)[1]


def _interval(constraint: Any) -> tuple[Any, Any] | None:
    """Bounds of an elementwise constraint; None if it ties elements together."""
    lower = getattr(constraint, "lower_bound", None)
    upper = getattr(constraint, "upper_bound", None)
    if lower is None and upper is None:
        return None
    return float("-inf") if lower is None else lower, float("inf") if upper is None else upper


def _elementwise(name: str, value: Tensor, transform: Any, lower: Any, upper: Any) -> Chart:
    free = transform.inv(value)
    low = torch.as_tensor(lower, dtype=value.dtype, device=value.device).expand(value.shape)
    high = torch.as_tensor(upper, dtype=value.dtype, device=value.device).expand(value.shape)
    width = high - low
    gap = torch.minimum(value - low, high - value)
    limit = torch.where(torch.isfinite(width), BOUNDARY * width, torch.full_like(value, ZERO))
    fixed = (gap < limit) & (torch.isfinite(low) | torch.isfinite(high))
    where = (~fixed).reshape(-1).nonzero()[:, 0]
    base = torch.where(fixed, torch.zeros_like(free), free).reshape(-1)

    def to_value(u: Tensor) -> Tensor:
        moved = transform(base.index_add(0, where, u.to(base.dtype)).reshape(value.shape))
        return torch.where(fixed, value, moved)

    def from_value(x: Tensor) -> Tensor:
        return (transform.inv(x).reshape(-1) - base)[where]

    return Chart(name, value, len(where), to_value, from_value, low, high, fixed)


def _simplex(name: str, value: Tensor) -> Chart:
    """Log-ratios to the largest element of each row, over the elements that are not zero."""
    rows = value.reshape(-1, value.shape[-1])
    active = rows > BOUNDARY
    active = active & (active.sum(-1, keepdim=True) > 1)
    largest = torch.nn.functional.one_hot(rows.argmax(-1), rows.shape[-1]).bool()
    where = (active & ~largest).reshape(-1).nonzero()[:, 0]
    logs = torch.where(active, rows, torch.ones_like(rows)).log().reshape(-1)
    mass = torch.where(active, rows, torch.zeros_like(rows)).sum(-1, keepdim=True)

    def to_value(u: Tensor) -> Tensor:
        moved = logs.index_add(0, where, u.to(logs.dtype)).reshape(rows.shape)
        moved = moved.masked_fill(~active, -torch.inf)
        return torch.where(active, mass * torch.softmax(moved, -1), rows).reshape(value.shape)

    def from_value(x: Tensor) -> Tensor:
        flat = x.reshape(rows.shape).clamp_min(torch.finfo(x.dtype).tiny).log()
        ratio = flat - flat.gather(-1, rows.argmax(-1, keepdim=True))
        before = logs.reshape(rows.shape) - logs.reshape(rows.shape).gather(-1, rows.argmax(-1, keepdim=True))
        return (ratio - before).reshape(-1)[where]

    zeros, ones = torch.zeros_like(value), torch.ones_like(value)
    return Chart(name, value, len(where), to_value, from_value, zeros, ones, ~active.reshape(value.shape))


def _cholesky(name: str, value: Tensor, root: Callable[[Tensor], Tensor], finish: Callable[[Tensor], Tensor]) -> Chart:
    """Lower-triangular factors relative to the estimate's: coordinates do not depend on the data's units."""
    factor = root(value)
    size = factor.shape[-1]
    rows, columns = torch.tril_indices(size, size)
    eye = torch.eye(size, dtype=torch.bool, device=value.device)
    place = rows * size + columns
    count = factor.numel() // size**2 * len(place)

    def to_value(u: Tensor) -> Tensor:
        empty = factor.new_zeros(factor.numel() // size**2, size**2)
        lower = empty.index_add(1, place, u.to(factor.dtype).reshape(-1, len(place))).reshape(factor.shape)
        relative = torch.where(eye, lower.exp(), lower)
        return finish(factor @ relative)

    def from_value(x: Tensor) -> Tensor:
        relative = torch.linalg.solve_triangular(factor, root(x), upper=False)
        logs = torch.where(eye, relative.diagonal(dim1=-2, dim2=-1).log().diag_embed(), relative)
        return logs.reshape(-1, size**2)[:, place].reshape(-1)

    positive = eye.expand(value.shape)
    low = torch.where(positive, 0.0, -torch.inf).to(value)
    return Chart(
        name,
        value,
        count,
        to_value,
        from_value,
        low,
        torch.full_like(value, torch.inf),
        torch.zeros_like(value, dtype=torch.bool),
    )


def _by_rank(name: str, value: Tensor, transform: Any) -> Chart:
    """Any other constraint: an orthonormal basis of the directions of unconstrained space that move the value."""
    free = transform.inv(value)
    shape = free.shape
    flat = free.reshape(-1)
    jacobian = torch.autograd.functional.jacobian(lambda x: transform(x.reshape(shape)).reshape(-1), flat)
    _, singular, rows = torch.linalg.svd(torch.as_tensor(jacobian), full_matrices=False)
    basis = rows[singular > RANK * singular.max()]

    def to_value(u: Tensor) -> Tensor:
        return transform((flat + u.to(flat.dtype) @ basis).reshape(shape))

    def from_value(x: Tensor) -> Tensor:
        return basis @ (transform.inv(x).reshape(-1) - flat)

    infinite = torch.full_like(value, torch.inf)
    return Chart(
        name, value, len(basis), to_value, from_value, -infinite, infinite, torch.zeros_like(value, dtype=torch.bool)
    )
