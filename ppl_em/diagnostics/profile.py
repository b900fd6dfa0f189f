"""Profile likelihood: the best objective for each value of one element of a parameter.

Reference:
    Venzon, D. & Moolgavkar, S. (1988). A method for computing profile-likelihood-based confidence intervals. Applied
    Statistics 37(1).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.diagnostics.charts import Chart
from ppl_em.diagnostics.coordinates import element_labels
from ppl_em.diagnostics.derivatives import hessian
from ppl_em.diagnostics.information import Information, elements
from ppl_em.diagnostics.intervals import normal_quantile
from ppl_em.em.e_step import objective
from ppl_em.errors import PplEmError, message

#: Steps to each side, in standard errors, and how many at most.
STEP, MOST_STEPS = 0.5, 24
#: Newton steps at most, and nats of predicted change at which they stop.
ITERATIONS, TOLERANCE = 40, 1e-9
#: Secants at most, and nats at which they stop, when the end of the interval is looked for.
SECANTS, SETTLED = 20, 1e-5


@dataclass(frozen=True, eq=False)
class Profile:
    """Profile of one element.

    Args:
        label: of the element, e.g. ``loc[0,1]``.
        values: (m,) ascending values of the element.
        objective: (m,) largest objective with the element held there, nats.
        estimate: of the element.
        lower, upper: ends of the interval; infinite (or the element's bound) where the profile never falls enough.
        level: confidence.
    """

    label: str
    values: Tensor
    objective: Tensor
    estimate: float
    lower: float
    upper: float
    level: float


def profile(information: Information, name: str, place: tuple[int, ...], level: float) -> Profile:
    """Profile likelihood of one element, followed to both sides until it has fallen enough.

    Args:
        information: at the maximum.
        name, place: the element.
        level: confidence.

    Raises:
        PplEmError: no such element, or it is fixed or not identified.
    """
    search = _Search.of(information, name, place)
    needed = 0.5 * normal_quantile(level) ** 2
    found = [(search.estimate, 0.0)]
    ends = []
    for sign in (-1.0, 1.0):
        u = information.coordinates.origin
        inside = (search.estimate, 0.0)
        end = search.bound(sign)
        for k in range(1, MOST_STEPS + 1):
            value = search.at(sign * k * STEP)
            trial = search.maximise(u, value)
            if trial is None:
                break
            if trial[1] >= needed:
                end = search.refine(u, inside, (value, trial[1]), needed)
                found.append((value, trial[1]))
                break
            u, inside = trial[0], (value, trial[1])
            found.append((value, trial[1]))
        ends.append(end)
    found.sort()
    values = torch.tensor([v for v, _ in found], dtype=torch.float64)
    falls = torch.tensor([f for _, f in found], dtype=torch.float64)
    label = element_labels(name, search.chart.origin.shape)[search.index]
    return Profile(label, values, information.objective - falls, search.estimate, ends[0], ends[1], level)


@dataclass(frozen=True, eq=False)
class _Search:
    """Constrained maximisation over all other directions.

    Args:
        information: at the maximum.
        chart: of the parameter.
        offset: where its coordinates begin.
        index: of the element in the parameter, flattened.
        error: its standard error.
    """

    information: Information
    chart: Chart
    offset: int
    index: int
    error: float

    @classmethod
    def of(cls, information: Information, name: str, place: tuple[int, ...]) -> _Search:
        charts = information.coordinates.charts
        names = [c.name for c in charts]
        if name not in names:
            raise PplEmError(message("not a free parameter", site=name, hint=f"one of {names}"))
        i = names.index(name)
        chart = charts[i]
        label = name + (f"[{','.join(map(str, place))}]" if place else "")
        labels = element_labels(name, chart.origin.shape)
        if label not in labels:
            raise PplEmError(
                message("no such element", site=name, value=place, why=f"its shape is {tuple(chart.origin.shape)}")
            )
        index = labels.index(label)
        start = sum(c.origin.numel() for c in charts[:i])
        error = float(elements(information)[1][start + index])
        if not 0 < error < float("inf"):
            raise PplEmError(message("the element is fixed or not identified", site=label))
        return cls(information, chart, sum(c.size for c in charts[:i]), index, error)

    @property
    def estimate(self) -> float:
        return float(self.chart.origin.reshape(-1)[self.index])

    def bound(self, sign: float) -> float:
        bounds = self.chart.lower if sign < 0 else self.chart.upper
        return float(bounds.reshape(-1)[self.index])

    def at(self, steps: float) -> float:
        """The value so many standard errors away, on a scale where the element is unbounded."""
        low, high = self.bound(-1.0), self.bound(1.0)
        x = torch.tensor(self.estimate, dtype=torch.float64)
        e = steps * self.error
        if low > float("-inf") and high < float("inf"):
            span, p = high - low, (x - low) / (high - low)
            return float(low + span * torch.sigmoid(torch.logit(p) + e / (span * p * (1 - p))))
        if low > float("-inf"):
            return float(low + (x - low) * torch.exp(e / (x - low)))
        if high < float("inf"):
            return float(high - (high - x) * torch.exp(-e / (high - x)))
        return self.estimate + e

    def element(self, u: Tensor) -> Tensor:
        part = u[self.offset : self.offset + self.chart.size]
        return self.chart.to_value(part).reshape(-1)[self.index].double()

    def maximise(self, u: Tensor, target: float) -> tuple[Tensor, float] | None:
        """Maximiser with the element at a target, and the fall from the maximum; None if it is not found."""
        plan, coordinates = self.information.plan, self.information.coordinates
        multiplier = torch.zeros((), dtype=torch.float64)
        for _ in range(ITERATIONS):
            value, gradient, curve = hessian(lambda v: objective(plan, v), coordinates, u)
            slope = torch.as_tensor(torch.autograd.functional.jacobian(self.element, u))
            bend = torch.as_tensor(torch.autograd.functional.hessian(lambda x: self.element(x), u))
            gap = target - float(self.element(u))
            step, multiplier = _kkt(-(curve - multiplier * bend), gradient, slope, gap)
            if not bool(torch.isfinite(step).all()):
                return None
            size = float((step / self.information.conditional_errors).abs().max())
            u = u + step * min(1.0, 2.0 / size if size > 0 else 1.0)
            promised = abs(float((gradient - multiplier * slope) @ step))
            if size < 1.0 and promised < TOLERANCE and abs(gap) < 1e-9 * (1 + abs(target)):
                return u, self.information.objective - value
        return None

    def refine(self, u: Tensor, inside: tuple[float, float], outside: tuple[float, float], needed: float) -> float:
        """Where the profile has fallen by what is needed: secants of the root of the fall, which is nearly straight.

        Args:
            u: the maximiser at the inner value.
            inside, outside: (value, fall) on either side.
            needed: nats.
        """
        for _ in range(SECANTS):
            low, high = math.sqrt(max(inside[1], 0.0)), math.sqrt(outside[1])
            share = (math.sqrt(needed) - low) / (high - low)
            middle = inside[0] + min(max(share, 0.05), 0.95) * (outside[0] - inside[0])
            trial = self.maximise(u, middle)
            if trial is None or abs(trial[1] - needed) < SETTLED:
                return middle
            if trial[1] >= needed:
                outside = (middle, trial[1])
            else:
                inside, u = (middle, trial[1]), trial[0]
        return 0.5 * (inside[0] + outside[0])


def _kkt(matrix: Tensor, gradient: Tensor, slope: Tensor, gap: float) -> tuple[Tensor, Tensor]:
    """Newton step to the maximum under a linearised constraint, and the constraint's multiplier."""
    size = len(gradient)
    full = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    full[:size, :size] = matrix
    full[:size, size] = full[size, :size] = slope
    right = torch.cat([gradient, torch.tensor([gap], dtype=torch.float64)])
    solved = torch.linalg.lstsq(full, right[:, None], driver="gelsd").solution[:, 0]
    return solved[:size], solved[size]
