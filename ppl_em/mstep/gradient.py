"""Gradient ascent that never goes down: the M-step of networks (generalised EM)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

HALVINGS = 40

Optimiser = Callable[[Sequence[Tensor]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Ascent:
    """What a run of gradient steps reached.

    Attributes:
        before: objective at the start.
        value: objective at the end.
        num_steps: steps that moved.
    """

    before: float
    value: float
    num_steps: int


def adam(parameters: Sequence[Tensor]) -> torch.optim.Optimizer:
    """Adam with a learning rate of 0.01, the default optimiser."""
    return torch.optim.Adam(list(parameters), lr=0.01)


def gradient_ascent(
    objective: Callable[[], Tensor],
    parameters: Sequence[Tensor],
    steps: int = 1,
    optim: Optimiser | torch.optim.Optimizer = adam,
    monotone: bool = True,
) -> Ascent:
    """Climb an objective of leaf tensors (a network's weights), in place.

    With one step and expected counts as the objective's weights this is the expected-gradient algorithm: by
    Fisher's identity its gradient is that of the log-likelihood. Many steps approach the full M-step.

    Args:
        objective: returns a scalar to be maximised, differentiable in ``parameters``.
        parameters: leaf tensors that require gradients.
        steps: number of optimiser steps.
        optim: makes the optimiser from the parameters, or is one (that keeps its state from call to call).
        monotone: shorten a step that would lower the objective; where the optimiser's direction does not
            ascend at all, follow the gradient, and where that does not either, stay and stop.

    Raises:
        ValueError: the objective is not finite at the start.

    Reference: Dempster, Laird, Rubin (1977), section 3 (GEM); Salakhutdinov, Roweis, Ghahramani
    (2003), Optimization with EM and expectation-conjugate-gradient.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> ascent = gradient_ascent(lambda: -(x - 1).square().sum(), [x], steps=5)
        >>> ascent.value > ascent.before
        True
    """
    parameters = list(parameters)
    optimiser = optim if isinstance(optim, torch.optim.Optimizer) else optim(parameters)
    with torch.enable_grad():
        value = objective()
    before = float(value.detach())
    if not torch.isfinite(value):
        raise ValueError(f"the objective is {before} at the start. Try other initial values.")
    num_steps = 0
    for _ in range(steps):
        old = [p.detach().clone() for p in parameters]
        slope = _differentiate(value, parameters)
        optimiser.step()
        with torch.enable_grad():
            reached = objective()
        if monotone and not bool(reached >= value):
            reached = _shorten(objective, parameters, old, value)
            if reached is None:
                reached = _follow(objective, parameters, old, slope, value)
            if reached is None:
                break
        num_steps += 1
        value = reached
    optimiser.zero_grad(set_to_none=True)
    return Ascent(before, float(value.detach()), num_steps)


def quasi_newton_ascent(objective: Callable[[], Tensor], parameters: Sequence[Tensor], steps: int = 10) -> Ascent:
    """Climb an objective of leaf tensors by L-BFGS with a line search, in place; never downhill.

    Args:
        objective: returns a scalar to be maximised, differentiable in ``parameters``.
        parameters: leaf tensors that require gradients.
        steps: number of iterations; the first follows the gradient.

    Raises:
        ValueError: the objective is not finite at the start.

    Reference: Liu, Nocedal (1989), On the limited memory BFGS method for large scale optimization.

    Example:
        >>> x = torch.tensor([3.0], requires_grad=True)
        >>> _ = quasi_newton_ascent(lambda: -(x - 1).square().sum(), [x])
        >>> x.detach().round(decimals=6)
        tensor([1.])
    """
    parameters = list(parameters)
    old = [p.detach().clone() for p in parameters]
    values: list[float] = []
    optimiser = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn="strong_wolfe", history_size=20)

    def closure() -> Tensor:
        with torch.enable_grad():
            loss = -objective()
        if not values and not bool(torch.isfinite(loss)):
            raise ValueError(f"the objective is {-float(loss.detach())} at the start. Try other initial values.")
        values.append(-float(loss.detach()))
        _differentiate(-loss, parameters)
        return loss.detach()

    optimiser.step(closure)
    with torch.no_grad():
        reached = float(objective())
    if not reached >= values[0]:
        _place(parameters, old, [torch.zeros_like(p) for p in old], 0.0)
        reached = values[0]
    optimiser.zero_grad(set_to_none=True)
    return Ascent(values[0], reached, len(values))


def _differentiate(value: Tensor, parameters: list[Tensor]) -> list[Tensor]:
    """Give the parameters the descent gradients that optimisers expect; returns the ascent gradients."""
    slopes = torch.autograd.grad(value, parameters, allow_unused=True)
    result = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, slopes, strict=True)]
    for parameter, slope in zip(parameters, result, strict=True):
        parameter.grad = -slope
    return result


def _place(parameters: list[Tensor], old: list[Tensor], step: list[Tensor], length: float) -> None:
    with torch.no_grad():
        for parameter, start, direction in zip(parameters, old, step, strict=True):
            parameter.copy_(start + length * direction)


def _shorten(
    objective: Callable[[], Tensor], parameters: list[Tensor], old: list[Tensor], value: Tensor
) -> Tensor | None:
    """Halve the optimiser's step until it raises the objective; ``None``, back at the start, if none does."""
    step = [p.detach() - start for p, start in zip(parameters, old, strict=True)]
    return _search(objective, parameters, old, step, value, first=0.5)


def _follow(
    objective: Callable[[], Tensor],
    parameters: list[Tensor],
    old: list[Tensor],
    slope: list[Tensor],
    value: Tensor,
) -> Tensor | None:
    """The gradient's own direction, scaled to the size of the parameters."""
    norm = float(torch.stack([g.detach().square().sum() for g in slope]).sum().sqrt())
    if norm == 0.0:
        return None
    size = float(torch.stack([p.square().sum() for p in old]).sum().sqrt())
    return _search(objective, parameters, old, slope, value, first=0.1 * (1 + size) / norm)


def _search(
    objective: Callable[[], Tensor],
    parameters: list[Tensor],
    old: list[Tensor],
    step: list[Tensor],
    value: Tensor,
    first: float,
) -> Tensor | None:
    length = first
    for _ in range(HALVINGS):
        _place(parameters, old, step, length)
        with torch.enable_grad():
            reached = objective()
        if bool(reached > value):
            return reached
        length /= 2
    _place(parameters, old, step, 0.0)
    return None
