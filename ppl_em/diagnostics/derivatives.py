"""Derivatives of the exact objective in free coordinates: score, observed information, per-datum scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ppl_em.diagnostics.coordinates import Coordinates

#: A differentiable function of constrained values by name.
Objective = Callable[[Mapping[str, Tensor]], Tensor]


def value_and_gradient(function: Objective, coordinates: Coordinates, u: Tensor) -> tuple[float, Tensor]:
    """A scalar function and its gradient (P,) at coordinates u."""
    with coordinates.leaves(u) as (values, leaves), torch.enable_grad():
        total = function(values)
        gradient = _flat(torch.autograd.grad(total, leaves, allow_unused=True), leaves)
    return float(total.detach()), gradient.detach()


def hessian(function: Objective, coordinates: Coordinates, u: Tensor) -> tuple[float, Tensor, Tensor]:
    """Value, gradient (P,) and Hessian (P, P) of a scalar function by double backward."""
    with coordinates.leaves(u) as (values, leaves), torch.enable_grad():
        total = function(values)
        gradient = _flat(torch.autograd.grad(total, leaves, create_graph=True, allow_unused=True), leaves)
        rows = [
            _flat(torch.autograd.grad(g, leaves, retain_graph=True, allow_unused=True), leaves)
            if g.requires_grad
            else torch.zeros_like(gradient)
            for g in gradient
        ]
    matrix = torch.stack(rows).detach() if rows else torch.zeros(0, 0, dtype=torch.float64)
    return float(total.detach()), gradient.detach(), 0.5 * (matrix + matrix.T)


def jacobian(function: Objective, coordinates: Coordinates, u: Tensor) -> Tensor:
    """Jacobian (n, P) of a vector function (n,), in P + 1 backward passes whatever n.

    The gradient of w·f is linear in w; differentiating its P elements with respect to w gives the columns.
    """
    with coordinates.leaves(u) as (values, leaves), torch.enable_grad():
        vector = function(values).reshape(-1)
        weights = torch.ones_like(vector).requires_grad_(True)
        pulled = _flat(torch.autograd.grad(vector, leaves, weights, create_graph=True, allow_unused=True), leaves)
        columns = []
        for entry in pulled:
            found = (
                torch.autograd.grad(entry, weights, retain_graph=True, allow_unused=True)[0]
                if entry.requires_grad
                else None
            )
            columns.append(torch.zeros_like(vector) if found is None else found)
    return torch.stack(columns, -1).detach().double()


def _flat(gradients: tuple[Tensor | None, ...], leaves: list[Tensor]) -> Tensor:
    parts = [
        (torch.zeros_like(leaf) if g is None else g).reshape(-1).double()
        for g, leaf in zip(gradients, leaves, strict=True)
    ]
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)
