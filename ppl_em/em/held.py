"""Priors whose density is unbounded at the boundary: their parameters stop a stated distance before it.

A Dirichlet density with a concentration below one grows without bound as that probability falls to zero, and so does the
log-posterior of a component without data. EM maximises over the values that keep :data:`HELD_AT` away from such a
boundary: where the posterior has an interior mode (counts + α − 1 all positive) it is found as ever; elsewhere the
parameter is *held*, and the fit names it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_em.em.prior import prior_of
from ppl_em.ir import Site
from ppl_em.mstep.constraint import bounds
from ppl_em.plan.plan import Plan

#: Least distance of a parameter from a boundary where its prior is unbounded, relative to the width of its range (of a
#: positive parameter, to the mean of its prior).
HELD_AT = 1e-6
#: Part of a simplex that all held elements of a row may take together.
HELD_SHARE = 1e-3
#: Elements within this factor of the distance count as held.
NEAR = 1.01
#: A density that grows more slowly than the distance to this power counts as bounded.
FLAT = 1e-3
#: Families whose density may be unbounded at some values of their arguments.
_SOMETIMES = frozenset({"Beta", "Chi2", "Dirichlet", "Gamma", "Kumaraswamy", "Weibull"})


@dataclass(frozen=True)
class Floor:
    """Least distances of one parameter's elements from the boundary of its support.

    Args:
        name: of the parameter.
        site: its prior.
        simplex: rows of the last dimension sum to one.
        low, high: bounds of the support.
        lower, upper: least distance from each bound by element, the parameter's shape; 0 where the density is bounded.
        moves: the prior's own arguments are estimated.
    """

    name: str
    site: Site
    simplex: bool
    low: float
    high: float
    lower: Tensor
    upper: Tensor
    moves: bool

    def project(self, value: Tensor) -> Tensor:
        """The value, elements that are too near to the boundary moved to their distance; NaN stays."""
        lower, upper = self.lower.to(value.dtype), self.upper.to(value.dtype)
        if not self.simplex:
            above = torch.where(lower > 0, torch.maximum(value, self.low + lower), value)
            return torch.where(upper > 0, torch.minimum(above, self.high - upper), above)
        below = (lower > 0) & (value < lower)
        if not bool(below.any()):
            return value
        rest = torch.where(below, 0.0, value - lower)
        room = 1 - lower.sum(-1, keepdim=True)
        return lower + room * rest / rest.sum(-1, keepdim=True)

    def constrained(self, free: Tensor) -> Tensor:
        """Coordinates on the whole real line to values that keep the distance; differentiable."""
        lower, upper = self.lower.to(free.dtype), self.upper.to(free.dtype)
        if self.simplex:
            return lower + (1 - lower.sum(-1, keepdim=True)) * torch.softmax(free, -1)
        if self.high == torch.inf:
            return self.low + lower + free.exp()
        return self.low + lower + (self.high - self.low - lower - upper) * free.sigmoid()

    def unconstrained(self, value: Tensor) -> Tensor:
        """The inverse of :meth:`constrained`; a value at its distance is taken a little inside."""
        lower, upper = self.lower.to(value.dtype), self.upper.to(value.dtype)
        tiny = 1e-12 if value.dtype == torch.float64 else 1e-7
        if self.simplex:
            return (value - lower).clamp(min=tiny * HELD_AT).log()
        if self.high == torch.inf:
            return (value - self.low - lower).clamp(min=1e-30).log()
        width = self.high - self.low - lower - upper
        return ((value - self.low - lower) / width).clamp(tiny, 1 - tiny).logit()

    def held(self, value: Tensor) -> tuple[Tensor, Tensor]:
        """Which elements are at their distance from the lower and the upper bound."""
        value = value.detach().double()
        lower = (self.lower > 0) & (value - self.low <= NEAR * self.lower)
        slack = 4 * torch.finfo(torch.float32).eps if bool((self.upper > 0).any()) else 0.0
        return lower, (self.upper > 0) & (self.high - value <= NEAR * self.upper + slack * self.upper)

    def divergent(self, parameters: Mapping[str, Tensor]) -> float:
        """Nats of the log-prior that held elements owe to the unbounded factor of its density alone."""
        value = parameters[self.name].detach().double()
        low, high = self.held(value)
        slopes = _slopes(self.site, self.simplex, self.low, self.high, parameters, value.shape)
        width = 1.0 if self.simplex or self.high == torch.inf else self.high - self.low
        unit = self.lower / HELD_AT if self.high == torch.inf else torch.full_like(value, width)
        down = slopes[0].clamp(max=0.0) * ((value - self.low) / torch.where(unit > 0, unit, 1.0)).log()
        up = slopes[1].clamp(max=0.0) * ((self.high - value) / width).log() if bool(high.any()) else torch.zeros(())
        return float(torch.where(low, down, 0.0).sum() + torch.where(high, up, 0.0).sum())


def find_floors(plan: Plan) -> dict[str, Floor]:
    """The point-estimated parameters that must keep away from a boundary, by name; none in unconstrained space."""
    if plan.map_space == "unconstrained":
        return {}
    start: dict[str, Tensor] = {n: p.init for n, p in plan.program.parameters.items()}
    found = {}
    for site in plan.plain:
        name = site.point
        if name is None or site.family is None or not site.lowered or plan.program.parameters[name].frozen:
            continue
        floor = _floor(name, site, plan.program.parameters[name].constraint, start)
        if floor is not None:
            found[name] = floor
    return found


def _floor(name: str, site: Site, constraint: Any, start: Mapping[str, Tensor]) -> Floor | None:
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    simplex = constraint is constraints.simplex
    low, high = bounds(constraint)
    if simplex:
        low, high = 0.0, 1.0
    shape = start[name].shape
    if low == -torch.inf or getattr(constraint, "event_dim", 0) > 1:
        return None
    slopes = _slopes(site, simplex, low, high, start, shape)
    moves = any(a.sources for a in site.arguments.values())
    every = moves and site.family is not None and site.family.__name__ in _SOMETIMES
    unbounded = [(s < -FLAT) | every for s in slopes]
    if simplex:
        distance = torch.tensor(min(HELD_AT, HELD_SHARE / max(1, shape[-1])), dtype=torch.float64)
        unbounded[1] = torch.zeros_like(unbounded[1])
    elif high == torch.inf:
        distance, unbounded[1] = HELD_AT * _mean(site, start, shape), torch.zeros_like(unbounded[1])
    else:
        distance = torch.tensor(HELD_AT * (high - low), dtype=torch.float64)
    if not any(bool(u.any()) for u in unbounded):
        return None
    lower, upper = (torch.where(u, distance, 0.0) for u in unbounded)
    return Floor(name, site, simplex, low, high, lower, upper, moves)


def _slopes(
    site: Site, simplex: bool, low: float, high: float, parameters: Mapping[str, Tensor], shape: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Exponent of the distance in the density near the lower and near the upper bound, by element."""
    prior = prior_of(site, parameters, shape)
    if simplex:
        name = type(prior).__name__
        powers = prior.concentration - 1 if name == "Dirichlet" else torch.zeros(tuple(shape), dtype=torch.float64)
        return powers, torch.zeros_like(powers)
    near, nearer = (1e-8, 1e-11) if low == 0 else (1e-6, 1e-9)
    down = _slope(prior, (low + near, low + nearer), (near, nearer))
    if low == 0:  # further down a log-normal density falls after all; others are flat there, being clamped
        final = _slope(prior, (1e-120, 1e-150), (1e-120, 1e-150))
        down = torch.where(final == 0, down, final)
    up = torch.zeros_like(down) if high == torch.inf else _slope(prior, (high - 1e-9, high - 1e-12), (1e-9, 1e-12))
    return down, up


def _slope(prior: Any, at: tuple[float, float], distance: tuple[float, float]) -> Tensor:
    """Δ log p / Δ log distance between two points; 0 where the density is not defined there."""
    first, second = (prior.log_prob(torch.full(prior.batch_shape, x, dtype=torch.float64)) for x in at)
    ratio = torch.log(torch.tensor(distance[0], dtype=torch.float64) / distance[1])
    return torch.nan_to_num((first - second) / ratio, nan=0.0, posinf=0.0, neginf=0.0)


def _mean(site: Site, parameters: Mapping[str, Tensor], shape: Sequence[int]) -> Tensor:
    """The prior's mean by element, 1 where it has none."""
    try:
        mean = prior_of(site, parameters, shape).mean
    except NotImplementedError:
        return torch.ones(tuple(shape), dtype=torch.float64)
    return torch.where(mean.isfinite() & (mean > 0), mean, torch.ones_like(mean))


def described(floors: Mapping[str, Floor], parameters: Mapping[str, Tensor], limit: int = 3) -> str:
    """Names the held elements and their distance; empty where none is held."""
    found = []
    for name, floor in floors.items():
        value = parameters[name]
        low, high = floor.held(value)
        for index in (low | high).nonzero().tolist():
            at = tuple(index)
            distance = float((floor.lower if bool(low[at]) else floor.upper)[at])
            found.append((f"{name}{index}" if index else name, f"{distance:.3g}"))
    if not found:
        return ""
    distances = " and ".join(dict.fromkeys(d for _, d in found))
    names = ", ".join(n for n, _ in found[:limit]) + (f" and {len(found) - limit} more" if len(found) > limit else "")
    return f"{names} {'was' if len(found) == 1 else 'were'} held {distances} from the boundary, where the prior is unbounded"


def divergent(floors: Mapping[str, Floor], parameters: Mapping[str, Tensor]) -> float:
    """Nats of the log-prior that are owed to unbounded factors alone, over all held elements."""
    return sum(f.divergent(parameters) for f in floors.values())
