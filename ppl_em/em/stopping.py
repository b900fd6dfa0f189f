"""When to stop: little is left to gain, and the parameters have come to rest."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

#: Plain steps after which a convergence that they do not confirm is given up, and extrapolation goes on.
CONFIRMATION = 8
#: Steps that the parameters' criterion may put off an end: along a flat ridge they never rest.
PATIENCE = 500
#: Changes below this multiple of the numbers' spacing are rounding.
ROUNDING = 100.0


class Stopping:
    """Aitken's estimate of the remaining gain, held against the tolerance, and the parameters' last step.

    A single small increment proves nothing (EM has plateaus): the estimated remaining gain must be below the tolerance
    in two steps running, and in both the largest relative change of a parameter below √``tol``, the size of a step
    whose gain is about ``tol``. Near a saddle the objective rests while a probability grows from almost nothing:
    the second criterion sees it. Where steps are extrapolated, an end must be confirmed by plain ones: increments
    of steps of different kinds say nothing about a rate.

    Reference:
        Böhning, D. et al. (1994). The distribution of the likelihood ratio for mixtures. Ann. Inst. Stat. Math. 46.

    Args:
        tol: nats; 0 never stops.
        first: objective at the start.
        precision: relative spacing of the parameters' numbers; gains finer than that are rounding.
        extrapolated: whether steps are extrapolated, so that an end needs to be confirmed.
    """

    def __init__(
        self, tol: float, first: float, precision: float = torch.finfo(torch.float64).eps, extrapolated: bool = False
    ) -> None:
        self.tol = tol
        self.precision = precision
        self.extrapolated = extrapolated
        self.values = [first]
        self.small = 0
        self.restless = 0
        self.plain = 0

    def update(
        self, value: float, old: Mapping[str, Tensor] | None = None, new: Mapping[str, Tensor] | None = None
    ) -> float:
        """Record a new objective; the estimated remaining gain in nats.

        Args:
            value: objective after the step.
            old, new: parameters before and after it.
        """
        self.values.append(value)
        remaining = remaining_gain(self.values, self.precision)
        resolution = max(3.2e-15, self.precision / 4) * abs(value)
        little = remaining < max(self.tol, resolution)
        if little and self.tol > 0 and old is not None and new is not None and self.restless < PATIENCE:
            limit = max(math.sqrt(self.tol), ROUNDING * self.precision)
            if relative_change(old, new) > limit:
                self.restless += 1
                little = False
        self.small = self.small + 1 if little else 0
        self.plain = self.plain + 1 if self.confirming else 0
        if self.extrapolated and self.small >= 2 and not self.plain:
            self.plain, self.small, self.values = 1, 0, [value]
        elif self.plain > CONFIRMATION:
            self.plain = 0
        return remaining

    @property
    def confirming(self) -> bool:
        """Whether the next step is to be plain, so that its gain can be judged."""
        return self.plain > 0

    @property
    def satisfied(self) -> bool:
        """Whether to stop."""
        return self.tol > 0 and self.small >= 2 and (self.confirming or not self.extrapolated)


def relative_change(old: Mapping[str, Tensor], new: Mapping[str, Tensor]) -> float:
    """Largest change of an element relative to its parameter's size; of probabilities, relative to their own.

    Only growth counts for small non-negative elements: what falls to zero does so at a constant rate and for ever.

    Args:
        old, new: constrained values by name.
    """
    largest = 0.0
    for name, value in new.items():
        before = old.get(name)
        if before is None or before is value or not value.is_floating_point() or not value.numel():
            continue
        with torch.no_grad():
            move = value.detach() - before.detach()
            size = value.detach().square().mean().sqrt().clamp_min(torch.finfo(value.dtype).tiny)
            shift = float((move.abs() / size).max())
            if bool((value >= 0).all()) and bool((before > 0).any()):
                grown = torch.where(before > torch.finfo(value.dtype).eps, move / before, 0.0)
                shift = max(shift, float(grown.max()))
        largest = max(largest, shift)
    return largest


def remaining_gain(values: list[float], precision: float = torch.finfo(torch.float64).eps) -> float:
    """Aitken's estimate of what the last three objectives leave to gain, nats (infinite if it cannot be told).

    Args:
        values: objectives after each step; the last three count.
        precision: relative spacing of the parameters' numbers; single precision leads EM round a cycle of such gains.

    Example:
        >>> round(remaining_gain([-8.0, -4.0, -2.0]), 6)
        2.0
    """
    if len(values) < 3:
        return math.inf
    before, last = values[-2] - values[-3], values[-1] - values[-2]
    rounding = max(4e-15, precision / 4) * (1 + abs(values[-1]))
    if last <= rounding:
        return abs(last)
    if before <= last:
        return math.inf
    rate = last / before
    return max(last * rate / (1 - rate), last)
