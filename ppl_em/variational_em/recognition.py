"""Which global latents have a conjugate factor: found from priors and links, or refused by name."""

from __future__ import annotations

from dataclasses import replace

import torch

from ppl_em.errors import PlanError, message
from ppl_em.ir import Link, Site
from ppl_em.mstep.conjugate import find_pair
from ppl_em.plan.plan import Plan
from ppl_em.variational_em.densities import SURROGATES
from ppl_em.variational_em.gathers import why_no_gather, why_not_two_sides
from ppl_em.variational_em.joints import find_joint
from ppl_em.variational_em.nodes import CATEGORIES, FAMILIES, HIERARCHICAL, HINT, LOCATIONS, Child, Node
from ppl_em.variational_em.vectors import as_vectors


def find_nodes(plan: Plan) -> tuple[Node, ...]:
    """The global latents of a plan with their factors, in the order in which they are updated.

    Args:
        plan: a plan; its updates are not looked at.

    Raises:
        PlanError: one is not conjugate; the site, its family and the reason are named.
    """
    free = {n: None for n, p in plan.program.parameters.items() if p.origin == "site" and not p.frozen}
    priors = {s.point: s for s in plan.plain if s.point in free}
    nodes = {}
    for name in free:
        if name not in priors:
            raise _refusal(name, "", "its prior depends on a discrete latent")
        site = priors[name]
        family = _family(plan, name, site, set(free))
        if family == "Normal" and _feeds_vectors(plan, name):
            vectors = as_vectors(site)
            if vectors is None:
                raise _refusal(name, family, "it is the mean of vectors, and its prior is not one of whole vectors")
            site, family = vectors, "MultivariateNormal"
        shape = tuple(plan.program.parameters[name].init.shape)
        children = tuple(_children(plan, name, family, shape))
        nodes[name] = Node(name, family, site, shape, children)
    _check_others(plan, frozenset(nodes))
    paired = {n: replace(v, joint=find_joint(v, nodes)) if v.family in LOCATIONS else v for n, v in nodes.items()}
    order = sorted(paired.values(), key=lambda v: v.family not in LOCATIONS)
    return tuple(order)


def _refusal(name: str, family: str, why: str) -> PlanError:
    what = 'no conjugate factor: EM(globals="variational") cannot be had'
    return PlanError(message(what, site=name, value=family or None, why=why, hint=HINT))


def _family(plan: Plan, name: str, site: Site, free: set[str]) -> str:
    family = site.family.__name__ if site.family is not None else "unknown"
    if family not in FAMILIES:
        raise _refusal(name, family, f"a {family} prior is conjugate to none of the likelihoods that are known")
    if family == "Uniform" and not _unit(site):
        raise _refusal(name, family, "a uniform prior is conjugate on the unit interval only")
    if not site.lowered:
        raise _refusal(name, family, "parameters reach its prior otherwise than through the arguments")
    if site.mask is not None or site.scale is not None:
        raise _refusal(name, family, "its prior is masked or scaled")
    estimated = {n for n, p in plan.program.parameters.items() if not p.frozen} - {name}
    for argument_name, argument in site.arguments.items():
        sources = {k.parameter for k in argument.links} | argument.sources
        if sources & (estimated - free):
            raise _refusal(name, family, f"'{argument_name}' of its prior is made of parameters that are estimated")
        if sources & free and argument_name not in HIERARCHICAL.get(family, ()):
            raise _refusal(name, family, f"'{argument_name}' of its prior is made of other latents")
    return FAMILIES[family]


def _feeds_vectors(plan: Plan, name: str) -> bool:
    """Whether a latent is the mean of multivariate normal sites."""
    fed = [s for s in plan.sites() if name in s.parameters and s.point != name and s.family is not None]
    return bool(fed) and all(s.family is not None and s.family.__name__ == "MultivariateNormal" for s in fed)


def _unit(site: Site) -> bool:
    low, high = (site.arguments.get(n) for n in ("low", "high"))
    zero = site.options.get("low") == 0 if low is None else bool((low.value.tensor == 0).all())
    one = site.options.get("high") == 1 if high is None else bool((high.value.tensor == 1).all())
    return zero and one


def _children(plan: Plan, name: str, family: str, shape: tuple[int, ...]) -> list[Child]:
    children = []
    for site in plan.sites():
        if name not in site.parameters or site.point == name:
            continue
        likelihood = site.family.__name__ if site.family is not None else "a factor"
        where = f"{likelihood} at '{site.members[0]}'"
        if site.family is None or not site.lowered:
            raise _refusal(name, family, f"it reaches {where} otherwise than element by element")
        if likelihood not in SURROGATES:
            raise _refusal(name, family, f"no expected log-density is known for {where}")
        linked = [(a, k) for a, argument in site.arguments.items() for k in argument.links if k.parameter == name]
        fed = {a for a, argument in site.arguments.items() if name in argument.sources}
        if not linked or fed - {a for a, _ in linked}:
            raise _refusal(name, family, f"it reaches {where} through a linear predictor")
        children += [_child(name, family, site, a, k, where, shape) for a, k in linked]
        if not bool(torch.isfinite(site.value.tensor.double()).all()):
            raise _refusal(name, family, f"values of {where} are missing or infinite")
    if not children:
        raise _refusal(name, family, "it feeds no site")
    return children


def _child(name: str, family: str, site: Site, argument: str, link: Link, where: str, shape: tuple[int, ...]) -> Child:
    assert site.family is not None
    sticks = link.transform.longer > 0
    two = family == "Beta" and site.family.__name__ in CATEGORIES and link.transform.name == "identity"
    prior = "Dirichlet" if family == "Beta" and (sticks or two) else family
    transform = "identity" if sticks else link.transform.name
    pair = find_pair(prior, site.family.__name__, argument, transform)
    if pair is None:
        how = "" if link.transform.name == "identity" else f", through {link.transform.name}"
        raise _refusal(name, family, f"a {family} factor is not conjugate to '{argument}' of {where}{how}")
    width = shape[-1] + link.transform.longer if shape else 0
    value = site.arguments[argument].value
    why = why_not_two_sides(link) if two else why_no_gather(family, sticks, value, link, width)
    if why is not None:
        raise _refusal(name, family, f"'{argument}' of {where} {why}")
    return Child(site, argument, link, pair)


def _check_others(plan: Plan, names: frozenset[str]) -> None:
    """Parameters that are estimated share no site with a factor: their step would ignore its spread.

    Raises:
        PlanError: one does.
    """
    for name, parameter in plan.program.parameters.items():
        if name in names or parameter.frozen:
            continue
        for site in plan.sites():
            shared = sorted(site.parameters & names)
            if name in site.parameters and (shared or site.point in names):
                other = shared[0] if shared else site.point
                why = f"it shares the site '{site.members[0]}' with '{other}', which has a distribution"
                what = "a parameter cannot be maximised beside a factor"
                raise PlanError(message(what, site=name, why=why, hint=f"a conjugate prior for it, freeze, or {HINT}"))
