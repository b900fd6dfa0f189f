"""The E-step of sites whose density sums over a hidden structure: expected counts, and Q in terms of them.

The derivative of log Z by the log of a probability is the expected number of its uses, given value and outer
latents. With the counts held fixed, Q is linear in the log-probabilities: tables have a closed form, networks
take gradient steps that cost no further sum over structures.

Reference:
    Eisner, J. (2016). Inside-outside and forward-backward algorithms are just backprop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ppl_em.distributions.structured import StructuredDistribution
from ppl_em.em.e_step import EStep, named_by_role, site_factors, site_sizes
from ppl_em.errors import DataError, PlanError, message
from ppl_em.exact.engine import Weights
from ppl_em.ir import Site
from ppl_em.plan.plan import Plan
from ppl_em.plan.structured import batch_sizes, structured
from ppl_em.trace.argument_values import argument_values

#: Expected counts by site and argument; each has the shape of the argument, its batch dimensions in the order
#: of the site's ``dims + inner``.
Counts = Mapping[str, Mapping[str, Tensor]]


def structured_sites(plan: Plan) -> list[Site]:
    """The sites of a plan that sum over a hidden structure."""
    return [s for s in plan.sites() if structured(s)]


def distributions(
    plan: Plan, sites: Sequence[Site], parameters: Mapping[str, Tensor]
) -> dict[str, StructuredDistribution]:
    """The distribution of each site at given parameters, batch dimensions in the order of ``dims + inner``.

    Args:
        plan: the plan.
        sites: structured sites; those that links alone do not describe cost one run of the program together.
        parameters: constrained values, differentiable or not.
    """
    found = {s.name: s.distribution(parameters) for s in sites if s.lowered}
    opaque = [s for s in sites if not s.lowered]
    if opaque:
        values = argument_values(plan.program, parameters, [s.members[0] for s in opaque])
        for site in opaque:
            order = (*site.dims, *site.inner)
            named = {n: named_by_role(plan, site, f) for n, f in values[site.members[0]].items()}
            arguments = {n: f.align(order) for n, f in named.items()}
            assert site.family is not None
            found[site.name] = site.family(**arguments, **site.options, validate_args=False)
    return found


def value_of(site: Site) -> Tensor:
    """What the site observes, batch dimensions in the order of ``dims + inner``."""
    return site.value.align((*site.dims, *site.inner))


@torch.no_grad()
def expected_counts(plan: Plan, parameters: Mapping[str, Tensor], weights: Mapping[str, Weights]) -> Counts:
    """Expected counts of every structured site.

    Args:
        plan: the plan.
        parameters: constrained values.
        weights: posterior of the outer latents and scale, by site.
    """
    sites = structured_sites(plan)
    found = distributions(plan, sites, parameters)
    return {s.name: found[s.name].expected_counts(value_of(s), _weights(plan, s, weights[s.name])) for s in sites}


def with_counts(plan: Plan, parameters: Mapping[str, Tensor], e: EStep) -> EStep:
    """The E-step with the expected counts of the structured sites, if there are any."""
    return replace(e, counts=expected_counts(plan, parameters, e.weights)) if plan.structured else e


def refuse_variants(plan: Plan, kind: str) -> None:
    """Refuse E-steps that replace the posterior by one assignment.

    Raises:
        PlanError: the plan has a structured site.
    """
    if plan.structured:
        why = "its hidden structure is summed inside its density"
        hint = 'EM(e_step="exact")'
        raise PlanError(message(f'e_step="{kind}" cannot be had', site=plan.structured[0].name, why=why, hint=hint))


def counted_log_joint(plan: Plan, sites: Sequence[Site], counts: Counts, parameters: Mapping[str, Tensor]) -> Tensor:
    """Q restricted to structured sites, under fixed counts; differentiable in the parameters."""
    total = torch.zeros((), dtype=torch.float64)
    found = distributions(plan, sites, parameters)
    for site in sites:
        total = total + found[site.name].expected_log_prob(counts[site.name]).double()
    return total


def _weights(plan: Plan, site: Site, known: Weights) -> Tensor:
    """Weight of each element of a site, in full size along every dimension that is not summed already."""
    sizes = batch_sizes(site, site_sizes(plan, site))
    factor = known.factor
    if site.mask is not None:
        factor = factor * site.mask.map(lambda t: t.to(factor.tensor.dtype))
    factor = factor.sum([d for d in factor.dims if d not in sizes])
    shape = [1 if d in known.summed and d not in factor.dims else n for d, n in sizes.items()]
    return factor.align(tuple(sizes)).expand(shape)


def refuse_impossible(plan: Plan, parameters: Mapping[str, Tensor]) -> None:
    """Refuse data without any hidden structure: no EM step can give them a positive probability.

    Raises:
        DataError: the site, which data, and why.
    """
    sites = structured_sites(plan)
    if not sites:
        return
    with torch.no_grad():
        factors = site_factors(plan, parameters, sites)
    for site in sites:
        assert site.family is not None and issubclass(site.family, StructuredDistribution)
        factor = factors[site.name].map(torch.isneginf)
        bad = factor.reduce([d for d in factor.dims if d not in site.plates], lambda t, dims: t.all(dims))
        if not bool(bad.tensor.any()):
            continue
        where = [dict(zip(bad.dims, index, strict=True)) for index in bad.tensor.nonzero().tolist()]
        count = f"{len(where)} of {bad.tensor.numel()} data"
        raise DataError(
            message(
                f"{count} have probability zero under {site.family.__name__}",
                site=site.name,
                value=_places(where),
                why=site.family.impossible,
                hint="leaving them out, or a start in which no probability that they need is zero",
            )
        )


def _places(where: list[dict[str, int]], limit: int = 5) -> str:
    """Positions in the plates, such as ``sentences 3, 17``."""
    if len(where[0]) == 1:
        (plate,) = where[0]
        text = f"{plate} " + ", ".join(str(place[plate]) for place in where[:limit])
    else:
        text = "; ".join(", ".join(f"{d}={i}" for d, i in place.items()) for place in where[:limit])
    return text + (f" and {len(where) - limit} more" if len(where) > limit else "")
