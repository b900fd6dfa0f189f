"""Components that collapse onto too few data, where the likelihood is unbounded, and components without any."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.distributions.compound import Compound, MixtureOf, TransformedOf
from ppl_em.distributions.hidden_markov import HiddenMarkovOf
from ppl_em.distributions.partly_observed import without_gaps
from ppl_em.em.e_step import EStep
from ppl_em.ir import Factor, Site
from ppl_em.plan.plan import Plan

#: A scale below this part of the data's own is a collapse, far above where float64 overflows.
FLOOR = 1e-6
#: Expected number of data below which a component has none.
EMPTY = 1e-6

_SCALES = {"Normal": "scale", "LogNormal": "scale", "Laplace": "scale", "StudentT": "scale"}
_MATRICES = ("covariance_matrix", "scale_tril", "precision_matrix")


@dataclass(frozen=True)
class Watched:
    """A scale that the fit estimates, and what it is held against.

    Args:
        site: whose argument it is.
        argument: its name.
        floor: smallest value that is no collapse, broadcastable to the argument (to its diagonal, for a matrix).
    """

    site: Site
    argument: str
    floor: Tensor


def watch(plan: Plan) -> tuple[Watched, ...]:
    """The estimated scales of observed sites, each with a small part of the spread of its own data."""
    found = []
    for site in plan.sites():
        if site.role != "observed" or not site.lowered or site.family is None:
            continue
        for name in _spreads(site.family):
            if name in site.arguments and site.arguments[name].links:
                found.append(Watched(site, name, FLOOR * _spread(site, name)))
    return (*found, *_narrowing(plan))


def _narrowing(plan: Plan) -> list[Watched]:
    """Estimated scales of priors: their joint density with the point estimates grows without bound as they vanish."""
    start = {n: p.init for n, p in plan.program.parameters.items()}
    found = []
    for site in plan.plain:
        if site.point is None or not site.lowered or site.family is None:
            continue
        for name in _spreads(site.family):
            if name in site.arguments and site.arguments[name].links:
                value = site.arguments[name].evaluate(start).detach().double()
                size = _root_diagonal(name, value) if _is_matrix(name) else value
                # The units of a latent are unknown: only a collapse by many orders of magnitude is one.
                found.append(Watched(site, name, FLOOR**2 * size))
    return found


def _spreads(family: type) -> list[str]:
    """Arguments of a family that are scales or matrices of covariance, those of its parts included."""
    if issubclass(family, Compound):
        return [f"{prefix}_{name}" for prefix, part in family.parts.items() for name in _spreads(part)]
    scale = _SCALES.get(family.__name__)
    return [*([scale] if scale else []), *_MATRICES]


def _is_matrix(argument: str) -> bool:
    return argument.endswith(_MATRICES)


def collapsed(plan: Plan, parameters: Mapping[str, Tensor], watched: tuple[Watched, ...] | None = None) -> str:
    """Which component has collapsed, as text for the status; empty if none has.

    Args:
        plan: the plan.
        parameters: constrained values.
        watched: what :func:`watch` found, where it is at hand.
    """
    for entry in watch(plan) if watched is None else watched:
        value = entry.site.arguments[entry.argument].evaluate(parameters)
        if not bool(torch.isfinite(value).all()):
            return _where(entry, value.isfinite().double())
        scale = _root_diagonal(entry.argument, value) if _is_matrix(entry.argument) else value
        if bool((scale < entry.floor).any()):
            return _where(entry, scale / entry.floor)
    return ""


def empty(plan: Plan, e: EStep) -> str:
    """Which component is left without data at an E-step, as text for the status; empty if none is.

    Where a prior holds its parameters, or the program itself gives it a probability of zero, that is no fault.

    Args:
        plan: the plan.
        e: the E-step; chains, and blocks whose weights it does not hold, are passed over.
    """
    if any(s.point is not None for s in plan.plain):
        return ""
    parameters = plan.program.parameters
    # A state of a chain has data at some steps and none at others: one step says nothing.
    single = [b.block for b in plan.blocks if b.block.axis is None and b.block.slices is None]
    for site in (s for block in single for s in block.sites):
        found = e.weights.get(site.name)
        own = [d for d in (() if found is None else found.factor.dims) if d in site.scope]
        links = [link.parameter for a in site.arguments.values() for link in a.links]
        structural = any(bool((parameters[n].init == 0).any()) for n in links)
        if site.role != "latent" or found is None or len(own) != 1 or structural:
            continue
        mass = found.factor.sum([d for d in found.factor.dims if d not in own]).tensor
        if mass.numel() > 1 and float(mass.min()) < EMPTY:
            return f"component {site.members[0]}={int(mass.argmin())} is left with no data"
    return ""


def _root_diagonal(name: str, value: Tensor) -> Tensor:
    """Conditional standard deviations: the diagonal of the Cholesky factor of the covariance."""
    if name.endswith("scale_tril"):
        return value.diagonal(dim1=-2, dim2=-1)
    if name.endswith("precision_matrix"):
        value = torch.linalg.inv(value)
    factor, bad = torch.linalg.cholesky_ex(value)
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    return torch.where(bad.unsqueeze(-1) > 0, torch.zeros_like(diagonal), diagonal)


def _spread(site: Site, argument: str) -> Tensor:
    """Standard deviation of a site's data, column by column; the size of the data where they are all equal."""
    value = _preimage(site).map(lambda t: without_gaps(t.detach().double()))
    keep = [d for d in value.dims if d in site.inner and d in site.arguments[argument].value.dims]
    columns = value.align((*[d for d in value.dims if d not in keep], *keep))
    # The steps of a sequence are data of the same states.
    sequence = site.family is not None and issubclass(site.family, HiddenMarkovOf)
    rows = len(value.dims) - len(keep) + sequence
    flat = columns.reshape(-1, *columns.shape[rows:])
    deviation = flat.std(0, correction=0)
    size = torch.maximum(flat.amax(0), -flat.amin(0))  # the largest magnitude, without a copy of the data
    spread = torch.where(deviation > 0, deviation, torch.where(size > 0, size, torch.ones_like(size)))
    dims = (*keep, *(f"@event{i}" for i in range(spread.dim() - len(keep))))
    order = site.arguments[argument].value.dims
    # A matrix is compared by its diagonal, whose last dimension is that of the data's vectors.
    floor = Factor(spread, dims).align((*order, *(d for d in dims if d.startswith("@event"))))
    # The components of a mixture, time and states, stand between the site's dimensions and those of the data's vectors.
    between = 2 if sequence else int(site.family is not None and issubclass(site.family, MixtureOf))
    return floor.reshape((*floor.shape[: len(order)], *(1,) * between, *floor.shape[len(order) :]))


def _preimage(site: Site) -> Factor:
    """A site's data on the scale of its location and spread."""
    family = site.family
    if family is not None and family.__name__ == "LogNormal":
        return site.value.map(torch.log)
    if family is None or not issubclass(family, TransformedOf):
        return site.value
    order = site.dims + site.inner
    arguments = {n: a.value.align(order) for n, a in site.arguments.items()}
    return Factor(family(**arguments).preimage(site.value.align(order)), order)


def _where(entry: Watched, size: Tensor) -> str:
    """Names the element where ``size`` is smallest, by its first dimension."""
    axis = entry.site.arguments[entry.argument].value.dims
    worst = int(size.reshape(size.shape[0], -1).amin(1).argmin()) if axis and size.dim() else 0
    which = f", {axis[0].split('@')[0]}={worst}" if axis else ""
    return f"{entry.argument} of site '{entry.site.members[0]}'{which}"
