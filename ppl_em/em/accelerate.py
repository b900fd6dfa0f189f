"""Extrapolation of the EM map in unconstrained space: what an accelerator is, and SQUAREM.

Reference:
    Varadhan, R. & Roland, C. (2008). Simple and globally convergent methods for accelerating the convergence of any
    EM algorithm. Scandinavian Journal of Statistics 35(2). Scheme S3 with an adaptive bound on the step length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from ppl_em.em.boundary import inside
from ppl_em.em.updates import Parameters

#: Factor by which SQUAREM's bound on the step length grows where it was met, and shrinks where the step was refused.
STEP_FACTOR = 4.0
#: Part of a probability that an extrapolation leaves at least: at zero EM would stay for ever.
LEAST = 0.01


@dataclass(frozen=True)
class Space:
    """Unconstrained coordinates of the values that EM moves.

    Args:
        constraints: by name; values of other names are carried along.
        complete: brings values that follow from these up to date.
    """

    constraints: Mapping[str, Any]
    complete: Callable[[Parameters], Parameters] | None = None

    def flat(self, values: Parameters) -> Tensor:
        """All coordinates in one vector, float64: square roots of probabilities, else torch's own."""
        pieces = [_coordinates(c, values[n].detach()).double().reshape(-1) for n, c in self.constraints.items()]
        return torch.cat(pieces) if pieces else torch.zeros(0, dtype=torch.float64)

    def rebuild(self, flat: Tensor, like: Parameters) -> Parameters:
        """Constrained values at the given coordinates, shaped as ``like``."""
        values, at = dict(like), 0
        for name, constraint in self.constraints.items():
            shape = _coordinates(constraint, like[name].detach()).shape
            piece = flat[at : at + shape.numel()].reshape(shape)
            value = _probabilities(piece, like[name]) if _simplex(constraint) else transform_to(constraint)(piece)
            values[name] = inside(constraint, value.to(like[name].dtype))
            at += shape.numel()
        return values if self.complete is None else self.complete(values)


def _simplex(constraint: Any) -> bool:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint is constraints.simplex


def _coordinates(constraint: Any, value: Tensor) -> Tensor:
    """Where EM converges linearly: a probability that falls to zero has a finite limit as a root, none as a logit."""
    return value.sqrt() if _simplex(constraint) else transform_to(constraint).inv(value)


def _probabilities(roots: Tensor, like: Tensor) -> Tensor:
    """Probabilities from their roots, none so small that EM would take long to raise it again."""
    raised = torch.maximum(roots.square(), LEAST * like.double())
    return raised / raised.sum(-1, keepdim=True)


class Accelerator(Protocol):
    """Proposes points further along the path of EM; the loop tells what became of them."""

    def propose(self, space: Space, point: Parameters, image: Parameters) -> Parameters | None:
        """A point to try instead of the image, or None.

        Args:
            space: coordinates.
            point: where the last E-step was made.
            image: what the M-step made of it.
        """
        ...

    def judged(self, accepted: bool) -> None:
        """Whether the objective at the proposal was finite and no worse than at the point."""
        ...


class Squarem:
    """Squared extrapolation: two plain steps, then one along their path and its curvature."""

    def __init__(self) -> None:
        self.points: list[Tensor] = []
        self.longest = 1.0
        self.met = False

    def propose(self, space: Space, point: Parameters, image: Parameters) -> Parameters | None:
        """An extrapolation at every second step."""
        here = space.flat(point)
        if not self.points:
            self.points = [here]
            return None
        first, self.points = self.points[0], []
        jump = self._extrapolate(first, here, space.flat(image))
        return None if jump is None else space.rebuild(jump, image)

    def judged(self, accepted: bool) -> None:
        """A bound that was met grows with success and shrinks with failure."""
        if self.met:
            self.longest = max(1.0, self.longest * (STEP_FACTOR if accepted else 1 / STEP_FACTOR))

    def _extrapolate(self, first: Tensor, second: Tensor, third: Tensor) -> Tensor | None:
        change = second - first
        curve = third - second - change
        usable = torch.isfinite(change) & torch.isfinite(curve)  # a probability of exactly zero has no logit
        change, curve = torch.where(usable, change, 0.0), torch.where(usable, curve, 0.0)
        norm = float(curve.norm())
        if norm == 0.0:
            return None
        length = max(1.0, float(change.norm()) / norm)
        self.met = length >= self.longest
        length = min(length, self.longest)
        if length <= 1.0:  # the plain iterate itself
            self.judged(True)
            return None
        return torch.where(usable, first + 2 * length * change + length**2 * curve, third)
