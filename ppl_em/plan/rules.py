"""Which M-step rule each parameter gets: the strongest that its links to the program's arguments admit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch.distributions import constraints

from ppl_em.ir import Program, Site
from ppl_em.plan import structured

#: Elements up to which Newton's dense Hessian is used for parameters without a closed form.
NEWTON_SIZE = 60

#: Answers, for a distribution family: what its weighted maximum-likelihood rule promises (None if there is none).
RuleLookup = Callable[[type], str | None]


@dataclass(frozen=True)
class Update:
    """One step of the M-step: parameters that are updated together.

    Args:
        rule: ``"closed form"``, ``"least squares"`` (Q is quadratic), ``"newton"`` (an inner iteration run to
            rounding), ``"gradient"`` or ``"frozen"``.
        parameters: their names.
        sites: names of the (stacked) sites that they feed.
        family: name of the family, for closed forms.
        why: why nothing stronger was chosen.
    """

    rule: str
    parameters: tuple[str, ...]
    sites: tuple[str, ...]
    family: str = ""
    why: str = ""


def choose_rules(program: Program, sites: Sequence[Site], lookup: RuleLookup) -> tuple[Update, ...]:
    """Group the parameters by the sites that they share and choose a rule for each group.

    Args:
        program: gives the parameters.
        sites: all sites of the plan, stacked ones in place of their members.
        lookup: the registry's answer for a family.
    """
    fed = {n: [s for s in sites if n in s.parameters] for n in program.parameters}
    free = [n for n, p in program.parameters.items() if not p.frozen]
    obstacle = {n: _obstacle(n, program, fed[n], lookup) for n in free}
    linear = {n for n in free if obstacle[n] is not None and _quadratic(n, program, fed[n])}
    updates = []
    if frozen := tuple(n for n, p in program.parameters.items() if p.frozen):
        updates.append(Update("frozen", frozen, ()))
    for group in _groups([n for n in free if n in linear], fed):
        members = {s.name: s for n in group for s in fed[n]}
        updates.append(Update("least squares", tuple(group), tuple(members), "Normal"))
    for group in _groups([n for n in free if obstacle[n] is None], fed):
        members = {s.name: s for n in group for s in fed[n]}
        family = next(iter(members.values())).family
        assert family is not None
        updates.append(Update(lookup(family) or "closed form", tuple(group), tuple(members), family.__name__))
    hard = [n for n in free if obstacle[n] is not None and n not in linear]
    small = [n for n in hard if program.parameters[n].origin != "module"]
    if sum(program.parameters[n].init.numel() for n in small) > NEWTON_SIZE:
        small = []
    for rule, names in (("newton", small), ("gradient", [n for n in hard if n not in small])):
        if names:
            touched = tuple(dict.fromkeys(s.name for n in names for s in fed[n]))
            why = "; ".join(f"{n}: {obstacle[n]}" for n in names)
            updates.append(Update(rule, tuple(names), touched, why=why))
    return tuple(updates)


def _quadratic(name: str, program: Program, sites: Sequence[Site]) -> bool:
    """Whether Q is quadratic in a parameter: it is a coefficient of the means of normal sites and of nothing else."""
    if program.parameters[name].origin == "site" or not sites:
        return False
    for site in sites:
        if site.family is None or site.family.__name__ != "Normal" or not site.lowered:
            return False
        for argument_name, argument in site.arguments.items():
            if name not in argument.sources:
                continue
            design = argument.design
            if argument_name != "loc" or design is None or design.transform.name != "identity":
                return False
            if set(design.cells) & set(site.inner) or not set(design.data) <= set(site.plates):
                return False
    return program.parameters[name].constraint in (constraints.real, constraints.real_vector)


def _obstacle(name: str, program: Program, sites: Sequence[Site], lookup: RuleLookup) -> str | None:
    """Why a parameter has no closed form, or None if it has."""
    if not sites:
        return "no density depends on it"
    if program.parameters[name].origin == "site":
        return f"it has a prior ({_family(program, name)}) that is not combined with its likelihood in closed form"
    if any(structured.structured(s) for s in sites):
        return structured.obstacle(name, sites)
    families = {s.family for s in sites}
    for site in sites:
        if site.family is None:
            return f"it feeds the factor '{site.name}'"
        linked = {k.parameter for a in site.arguments.values() for k in a.links}
        if name not in linked:
            if any(a.design is not None and name in a.design.parameters for a in site.arguments.values()):
                return f"it is a coefficient of a linear predictor at '{site.members[0]}'"
            return f"it reaches '{site.name}' through a computation that is not an element-by-element link"
        if not site.lowered:
            return f"another argument of '{site.name}' is computed from parameters in an unknown way"
    if len(families) > 1:
        return f"it feeds sites of different families ({', '.join(sorted(f.__name__ for f in families if f))})"
    family = next(iter(families))
    assert family is not None
    return None if lookup(family) is not None else f"no rule is registered for {family.__name__}"


def _family(program: Program, name: str) -> str:
    site = program.sites.get(name)
    return site.family.__name__ if site is not None and site.family is not None else "unknown"


def _groups(names: Sequence[str], fed: Mapping[str, Sequence[Site]]) -> list[list[str]]:
    """Parameters that share a site are estimated together."""
    groups: list[tuple[list[str], set[str]]] = []
    for name in names:
        mine = {s.name for s in fed[name]}
        touching = [g for g in groups if g[1] & mine]
        merged = ([n for g in touching for n in g[0]] + [name], mine.union(*(g[1] for g in touching)))
        groups = [g for g in groups if g not in touching] + [merged]
    return [sorted(g[0], key=list(fed).index) for g in groups]
