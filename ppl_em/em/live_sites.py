"""Sites whose arguments are partly computed by the program: their values are taken from a run, as constants."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from ppl_em.em.prior import at_point
from ppl_em.ir import Argument, Factor, Site
from ppl_em.plan.plan import Plan
from ppl_em.trace.argument_values import argument_values


def with_run_values(plan: Plan, sites: Sequence[Site], parameters: Mapping[str, Tensor]) -> list[Site]:
    """The sites with opaque arguments replaced by their values at the given parameters.

    Arguments that are links or linear predictors stay what they are, and priors get their latent's newest value. One run
    of the program serves all sites; none is made where nothing is opaque.
    """
    sites = [at_point(s, parameters) for s in sites]
    opaque = [s for s in sites if any(a.opaque for a in s.arguments.values())]
    if not opaque:
        return list(sites)
    found = argument_values(plan.program, parameters, [s.members[0] for s in opaque])
    return [_filled(plan, s, found[s.members[0]]) if s.members[0] in found else s for s in sites]


def _filled(plan: Plan, site: Site, values: Mapping[str, Factor]) -> Site:
    original = plan.program.sites[site.members[0]]
    names = dict(zip((*original.scope, *original.inner), (*site.scope, *site.inner), strict=True))
    arguments = {}
    for name, argument in site.arguments.items():
        if argument.opaque:
            value = values[name]
            value = Factor(value.tensor.detach(), tuple(names.get(d, d) for d in value.dims))
            argument = Argument(value, sources=frozenset())
        arguments[name] = argument
    return replace(site, arguments=arguments)


def scores_as_run(plan: Plan, sites: Sequence[Site], filled: Sequence[Site], parameters: Mapping[str, Tensor]) -> bool:
    """Whether the sites' densities, rebuilt from these arguments, equal those of a run of the program."""
    found = plan.program.evaluate(parameters, tuple(s.members[0] for s in sites))
    for site, mine in zip(sites, filled, strict=True):
        original = plan.program.sites[site.members[0]]
        names = dict(zip(original.scope, site.scope, strict=True))
        theirs = found[site.members[0]]
        theirs = Factor(theirs.tensor, tuple(names.get(d, d) for d in theirs.dims))
        try:
            own = mine.log_factor(parameters)
        except (TypeError, ValueError, RuntimeError, NotImplementedError):
            return False
        dims = tuple(dict.fromkeys((*own.dims, *theirs.dims)))
        a, b = own.align(dims).detach(), theirs.align(dims).detach()
        tolerance = 1e-9 if a.element_size() == 8 else 1e-4
        if not bool(((a == b) | ((a - b).abs() <= tolerance * (1 + b.abs()))).all()):
            return False
    return True
