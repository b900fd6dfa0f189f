"""The E-step of a plan: every block contracted by its engine, the objective summed in float64."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppl_em.em.prior import jacobian
from ppl_em.exact.engine import Expected, Weights
from ppl_em.ir import Factor, Site
from ppl_em.plan.choice import BlockPlan
from ppl_em.plan.plan import Plan


@dataclass(frozen=True)
class EStep:
    """Outcome of an E-step at given parameters.

    Args:
        log_likelihood: exact log marginal likelihood of the observations, nats.
        log_prior: log prior density of the point-estimated latents.
        weights: expected posterior weights by (stacked) site.
        moments: expected sufficient statistics of lowered sites, in place of weights.
        counts: expected counts of structured sites, by argument.
    """

    log_likelihood: float
    log_prior: float
    weights: Mapping[str, Weights]
    moments: Mapping[str, Any] = field(default_factory=dict)
    counts: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    @property
    def objective(self) -> float:
        """What EM climbs."""
        return self.log_likelihood + self.log_prior


def site_factors(plan: Plan, parameters: Mapping[str, Tensor], sites: list[Site] | None = None) -> dict[str, Factor]:
    """Log-factor of each (stacked) site: from links where possible, else from one run of the program."""
    sites = plan.sites() if sites is None else sites
    factors = {s.name: s.log_factor(parameters) for s in sites if s.lowered}
    opaque = [s for s in sites if not s.lowered]
    if opaque:
        found = plan.program.evaluate(parameters, tuple(s.members[0] for s in opaque))
        factors.update({s.name: named_by_role(plan, s, found[s.members[0]]) for s in opaque})
    if plan.map_space == "unconstrained":
        for site in sites:
            if site.point is not None:
                factors[site.name] = factors[site.name] + jacobian(
                    site, plan.program.parameters[site.point].constraint, parameters
                )
    return factors


def named_by_role(plan: Plan, site: Site, factor: Factor) -> Factor:
    """An opaque member of a chain: its latents' dimensions under the names of their roles."""
    for entry in plan.blocks:
        axis = entry.block.axis
        stacked = axis is not None or entry.block.slices is not None
        if not stacked or not any(s is site for s in entry.block.sites):
            continue
        original = plan.program.sites[site.members[0]].scope
        renamed = dict(zip(original, site.scope, strict=True))
        if axis is not None and axis.plate is not None:
            renamed[axis.plate] = axis.time
        return Factor(factor.tensor, tuple(renamed.get(d, d) for d in factor.dims))
    return factor


def site_sizes(plan: Plan, site: Site) -> dict[str, int]:
    """Size of every named dimension as one (stacked) site has it."""
    for entry in plan.blocks:
        if any(s is site for s in entry.block.sites):
            return entry.block.site_sizes(site)
    return plan.program.sizes()


def plain_total(plan: Plan, site: Site, factor: Factor) -> Tensor:
    """Scaled sum of a site without latents over its plates (a constant factor counts for each element)."""
    sizes = {p: plan.program.plates[p].size for p in site.plates}
    wide = factor.expand(sizes)
    if site.scale is not None:
        wide = wide * site.scale.map(lambda t: t.to(wide.tensor.dtype))
    return wide.tensor.double().sum()


def scaled_total(entry: BlockPlan, log_z: Factor) -> Tensor:
    """Sum of a block's log Z over its plates, its scale applied."""
    if entry.block.scale is not None:
        log_z = log_z * entry.block.scale.map(lambda t: t.to(log_z.tensor.dtype))
    return log_z.tensor.double().sum()


@torch.no_grad()
def e_step(plan: Plan, parameters: Mapping[str, Tensor], lowered: Mapping[int, Any] | None = None) -> EStep:
    """Contract every block at the given parameters.

    Args:
        plan: the plan.
        parameters: constrained values.
        lowered: fast forms of some blocks, by their position in the plan.
    """
    likelihood, prior = 0.0, 0.0
    weights: dict[str, Weights] = {}
    moments: dict[str, Any] = {}
    slow: list[BlockPlan] = []
    for i, entry in enumerate(plan.blocks):
        outcome = lowered[i].run(parameters) if lowered and i in lowered else None
        if outcome is None:
            slow.append(entry)
            continue
        likelihood += outcome.total
        moments.update(outcome.moments)
        weights.update({n: Weights(f, summed) for n, (f, summed) in outcome.weights.items()})
    sites = [s for entry in slow for s in entry.block.sites] + list(plan.plain)
    factors = site_factors(plan, parameters, sites)
    for entry in slow:
        expected: Expected = entry.engine.expected(entry.block, factors)
        likelihood += float(scaled_total(entry, expected.log_z))
        weights.update(expected.weights)
    for site in plan.plain:
        total = float(plain_total(plan, site, factors[site.name]))
        if site.point is not None:
            prior += total
        else:
            likelihood += total
        weights[site.name] = Weights(site.scale or Factor(torch.ones(()), ()))
    return EStep(likelihood, prior, weights, moments)


def objective(plan: Plan, parameters: Mapping[str, Tensor], *, prior: bool = True) -> Tensor:
    """Log marginal likelihood (plus log prior) as a differentiable scalar."""
    factors = site_factors(plan, parameters)
    total = torch.zeros((), dtype=torch.float64)
    for entry in plan.blocks:
        total = total + scaled_total(entry, entry.engine.log_z(entry.block, factors))
    for site in plan.plain:
        if prior or site.point is None:
            total = total + plain_total(plan, site, factors[site.name])
    return total


def expected_log_joint(
    plan: Plan, sites: list[Site], weights: Mapping[str, Weights], parameters: Mapping[str, Tensor]
) -> Tensor:
    """Q restricted to some sites: their log-factors under fixed weights, differentiable in the parameters."""
    factors = site_factors(plan, parameters, sites)
    total = torch.zeros((), dtype=torch.float64)
    for site in sites:
        total = total + weighted_log_factor(plan, site, factors[site.name], weights[site.name])
    return total


def weighted_log_factor(plan: Plan, site: Site, factor: Factor, weights: Weights) -> Tensor:
    """Σ w log f over all dimensions of one site, differentiable in its log-factor."""
    sizes = site_sizes(plan, site)
    dims = [d for d in (*site.dims, *weights.factor.dims) if d not in weights.summed or d in weights.factor.dims]
    factor = factor.expand({d: sizes[d] for d in dict.fromkeys(dims) if d in sizes})
    impossible = torch.full_like(factor.tensor, -1e30)
    factor = Factor(torch.where(torch.isfinite(factor.tensor), factor.tensor, impossible), factor.dims)
    product = factor * weights.factor.map(lambda t: t.to(factor.tensor.dtype))
    return product.tensor.double().sum()
