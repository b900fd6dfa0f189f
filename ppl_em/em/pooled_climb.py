"""Ascent of an objective that is a sum over parts of the data: values and derivatives are added up part by part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from ppl_em.em.climb import Climb, Newton
from ppl_em.em.e_step import EStep

#: Goes through the parts: the group's updater in each, with its E-step.
Pass = Callable[[], Iterator[tuple[Climb, EStep]]]


def pool_objective(climb: Climb, parts: Pass) -> Climb:
    """The updater with Q summed over all parts.

    Each part's graph is freed before the next is made. What is returned has the value of the sum and its derivatives at
    this point: the first for gradient steps, the second too for Newton's method.

    Args:
        climb: the group's updater on the first part; it keeps its optimiser's state.
        parts: goes through the parts.
    """
    second = isinstance(climb, Newton)

    def q(parameters: Mapping[str, Tensor], e: EStep) -> Tensor:
        inputs = [parameters[n] for n in climb.names]
        differentiable = torch.is_grad_enabled() and any(t.requires_grad for t in inputs)
        total = torch.zeros((), dtype=torch.float64)
        slopes = [torch.zeros_like(t) for t in inputs]
        size = sum(t.numel() for t in inputs)
        curve = torch.zeros(size, size, dtype=torch.float64) if second and differentiable else None
        for own, expected in parts():
            value = own.objective(parameters, expected)
            total = total + value.detach()
            if not differentiable:
                continue
            found = _gradient(value, inputs, curve is not None)
            if curve is not None:
                flat = torch.cat([g.reshape(-1).double() for g in found])
                rows = [_flat(_gradient(x, inputs, False, keep=True)) for x in flat]
                curve = curve + torch.stack(rows)
            slopes = [s + g.detach() for s, g in zip(slopes, found, strict=True)]
        if not differentiable:
            return total
        steps = [t - t.detach() for t in inputs]
        total = total + sum((g * d).sum() for g, d in zip(slopes, steps, strict=True))
        if curve is not None:
            step = torch.cat([d.reshape(-1).double() for d in steps])
            total = total + step @ curve @ step / 2
        return total

    climb.pooled = q
    return climb


def _gradient(value: Tensor, inputs: list[Tensor], twice: bool, keep: bool = False) -> list[Tensor]:
    if not value.requires_grad:
        return [torch.zeros_like(t) for t in inputs]
    found = torch.autograd.grad(value, inputs, create_graph=twice, retain_graph=twice or keep, allow_unused=True)
    return [torch.zeros_like(t) if g is None else g for g, t in zip(found, inputs, strict=True)]


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.detach().reshape(-1).double() for t in tensors])


__all__ = ["Pass", "pool_objective"]
