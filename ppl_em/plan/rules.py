"""Which M-step rule each parameter gets: the strongest that its links to the program's arguments admit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch.distributions import constraints

from ppl_em.ir import Program, Site
from ppl_em.mstep.registry import weighted_mle
from ppl_em.plan import structured
from ppl_em.plan.conjugacy import Conjugacy, prior_family, recognise

#: Elements up to which Newton's dense Hessian of an unknown function is used.
NEWTON_SIZE = 60
#: Coefficients of linear predictors up to which Newton's Hessian is assembled from their designs.
PREDICTOR_SIZE = 400
#: Families whose log-density has a kink in a location: Newton's method has nothing to follow there.
KINKED = frozenset({"Laplace", "AsymmetricLaplace", "Uniform"})

#: Answers, for a distribution family: what its weighted maximum-likelihood rule promises (None if there is none).
RuleLookup = Callable[[type], str | None]

#: What an update works from: a family's rule, a conjugate prior, normal equations (with normal priors: ridge), designs of
#: linear predictors, or Q as a function.
Means = Literal["family", "conjugate", "ridge", "regression", "predictor", "objective", "variational", "none"]


@dataclass(frozen=True)
class Update:
    """One step of the M-step: parameters that are updated together.

    Args:
        rule: ``"closed form"``, ``"least squares"`` (Q is quadratic), ``"newton"`` (an inner iteration run to
            rounding), ``"gradient"`` or ``"frozen"``.
        parameters: their names.
        sites: names of the (stacked) sites that they feed.
        family: name of the family, for rules that know it.
        why: why nothing stronger was chosen.
        by: what the rule works from.
        stub: code to paste, where a family has no rule yet.
    """

    rule: str
    parameters: tuple[str, ...]
    sites: tuple[str, ...]
    family: str = ""
    why: str = ""
    by: Means = "family"
    stub: str = ""


def choose_rules(program: Program, sites: Sequence[Site], lookup: RuleLookup) -> tuple[Update, ...]:
    """Group the parameters by the sites that they share and choose a rule for each group.

    Coefficients of means come before scales, what is climbed before what is solved: each group is updated at the
    newest values of the others.

    Args:
        program: gives the parameters.
        sites: all sites of the plan, stacked ones in place of their members.
        lookup: the registry's answer for a family.
    """
    fed = {n: [s for s in sites if n in s.parameters] for n in program.parameters}
    free = [n for n, p in program.parameters.items() if not p.frozen]
    points = [n for n in free if program.parameters[n].origin == "site"]
    conjugate = {n: recognise(n, program, fed[n]) for n in points}
    why = {n: _obstacle(n, program, fed[n], lookup, conjugate.get(n)) for n in free}
    means = {n: _means(n, program, fed[n], why[n]) for n in free}
    updates = []
    if frozen := tuple(n for n, p in program.parameters.items() if p.frozen):
        updates.append(Update("frozen", frozen, (), by="none"))
    for group in _groups([n for n in free if means[n] in ("regression", "ridge")], fed):
        by: Means = "ridge" if any(means[n] == "ridge" for n in group) else "regression"
        updates.append(Update("least squares", tuple(group), _touched(group, fed), "Normal", by=by))
    solved = [c for n, c in conjugate.items() if means[n] == "conjugate" and isinstance(c, Conjugacy)]
    updates += [_by_conjugacy(c, fed) for c in solved if c.locates]
    climbed = []
    for group in _groups([n for n in free if means[n] == "predictor"], fed):
        if _size(group, program) > PREDICTOR_SIZE:
            climbed += group
            continue
        family = ", ".join(dict.fromkeys(s.family.__name__ for n in group for s in fed[n] if s.family))
        updates.append(Update("newton", tuple(group), _touched(group, fed), family, by="predictor"))
    unknown = [n for n in free if means[n] == "objective"]
    for group in _groups([n for n in unknown if program.parameters[n].origin != "module"], fed):
        if _size(group, program) > NEWTON_SIZE:
            climbed += group
        else:
            updates.append(_by_objective("newton", group, fed, why))
    climbed += [n for n in unknown if program.parameters[n].origin == "module"]
    if climbed:
        updates.append(_by_objective("gradient", [n for n in free if n in climbed], fed, why))
    for group in _groups([n for n in free if means[n] == "family"], fed):
        family = fed[group[0]][0].family
        assert family is not None
        rule = lookup(family) or "closed form"
        updates.append(Update(rule, tuple(group), _touched(group, fed), family.__name__))
    updates += [_by_conjugacy(c, fed) for c in solved if not c.locates]
    return tuple(updates)


def _by_conjugacy(found: Conjugacy, fed: Mapping[str, Sequence[Site]]) -> Update:
    name = found.parameter
    return Update("closed form", (name,), _touched([name], fed), found.family, by="conjugate")


def refused(program: Program, updates: Sequence[Update], update: Update, why: str) -> tuple[Update, ...]:
    """The updates with one of them on the next rung of the ladder, because its claim did not hold.

    Args:
        program: gives the parameters.
        updates: all updates.
        update: the one that was refused.
        why: what was found.
    """
    reason = f"{update.rule} refused: {why}"
    small = _size(update.parameters, program) <= NEWTON_SIZE
    module = any(program.parameters[n].origin == "module" for n in update.parameters)
    if small and not module:
        lower = replace(update, rule="newton", family="", why=reason, by="objective")
        return tuple(lower if u is update else u for u in updates)
    rest = [u for u in updates if u is not update]
    old = next((u for u in rest if u.rule == "gradient"), Update("gradient", (), ()))
    merged = replace(
        old,
        parameters=old.parameters + update.parameters,
        sites=tuple(dict.fromkeys(old.sites + update.sites)),
        why="; ".join(filter(None, (old.why, reason))),
        by="objective",
    )
    return (*(u for u in rest if u is not old), merged)


def by_optimiser(updates: Sequence[Update]) -> tuple[Update, ...]:
    """The updates where a user's optimiser climbs Q in place of Newton's method with its dense Hessian.

    Args:
        updates: all updates.
    """
    reason = "m_step_optim takes the place of Newton's method"
    return tuple(
        replace(u, rule="gradient", why="; ".join(filter(None, (u.why, reason))))
        if u.rule == "newton" and u.by == "objective"
        else u
        for u in updates
    )


def _means(name: str, program: Program, sites: Sequence[Site], obstacle: str | None) -> Means:
    parameter = program.parameters[name]
    if obstacle is None:
        return "conjugate" if parameter.origin == "site" else "family"
    real = parameter.constraint in (constraints.real, constraints.real_vector)
    if parameter.origin == "site":
        return "ridge" if _penalised(name, program, sites) else "objective"
    if not sites or not real or not _only_predicts(name, sites):
        return "objective"
    if all(_quadratic(name, s) for s in sites):
        return "regression"
    return "predictor"


def _penalised(name: str, program: Program, sites: Sequence[Site]) -> bool:
    """Whether Q and the log-prior are quadratic in a latent: a coefficient of normal means under a normal prior."""
    data = [s for s in sites if s.point != name]
    normal = prior_family(name, program, sites) in ("Normal", "MultivariateNormal")
    return normal and bool(data) and _only_predicts(name, data) and all(_quadratic(name, s) for s in data)


def _only_predicts(name: str, sites: Sequence[Site]) -> bool:
    """Whether a parameter is a coefficient of linear predictors and reaches the sites in no other way."""
    for site in sites:
        if site.family is None or site.family.__name__ in KINKED or not _through_arguments(site):
            return False
        designs = [a.design for a in site.arguments.values() if name in a.sources]
        if any(d is None or name not in d.parameters for d in designs):
            return False
    return True


def _quadratic(name: str, site: Site) -> bool:
    """Whether Q is quadratic in a coefficient: it is one of the mean of a normal site."""
    if site.family is None or site.family.__name__ != "Normal":
        return False
    for argument_name, argument in site.arguments.items():
        if name not in argument.sources:
            continue
        design = argument.design
        if argument_name != "loc" or design is None or design.transform.name != "identity":
            return False
    return not site.arguments["scale"].opaque


def _through_arguments(site: Site) -> bool:
    """Whether parameters reach a site through its arguments alone (not its mask, its scale or its value)."""
    through = frozenset().union(*(a.sources for a in site.arguments.values()))
    return site.lowered or (
        site.family is not None and site.role in ("latent", "observed") and site.parameters <= through
    )


def _obstacle(
    name: str, program: Program, sites: Sequence[Site], lookup: RuleLookup, conjugate: Conjugacy | str | None = None
) -> str | None:
    """Why a parameter has no closed form, or None if it has."""
    if not sites:
        return "no density depends on it"
    if conjugate is not None:
        return conjugate if isinstance(conjugate, str) else None
    if any(structured.structured(s) for s in sites):
        return structured.obstacle(name, sites)
    families = {s.family for s in sites}
    for site in sites:
        if site.family is None:
            return f"it feeds the factor '{site.name}'"
        fed = [a for a in site.arguments.values() if name in a.sources or any(k.parameter == name for k in a.links)]
        if any(a.design is not None and name in a.design.parameters for a in fed):
            return f"it is a coefficient of a linear predictor at '{site.members[0]}'"
        if not fed or any(all(k.parameter != name for k in a.links) for a in fed):
            return f"it reaches '{site.name}' through a computation that is not an element-by-element link"
        if not _through_arguments(site):
            return f"parameters reach '{site.name}' otherwise than through its arguments"
    if len(families) > 1:
        return f"it feeds sites of different families ({', '.join(sorted(f.__name__ for f in families if f))})"
    family = next(iter(families))
    assert family is not None
    return None if lookup(family) is not None else f"no rule is registered for {family.__name__}"


def _by_objective(
    rule: str, names: Sequence[str], fed: Mapping[str, Sequence[Site]], why: Mapping[str, str | None]
) -> Update:
    unregistered = {s.family for n in names for s in fed[n] if (why[n] or "").startswith("no rule is registered")}
    stubs = [weighted_mle.stub(f) for f in unregistered if f is not None]
    alike: dict[str | None, list[str]] = {}
    for n in names:
        alike.setdefault(why[n], []).append(n)
    reasons = "; ".join(f"{_listed(members)}: {reason}" for reason, members in alike.items())
    return Update(rule, tuple(names), _touched(names, fed), "", reasons, "objective", "\n\n".join(stubs))


def _listed(names: Sequence[str], limit: int = 3) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _size(names: Iterable[str], program: Program) -> int:
    return sum(program.parameters[n].init.numel() for n in names)


def _touched(names: Iterable[str], fed: Mapping[str, Sequence[Site]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(s.name for n in names for s in fed[n]))


def _groups(names: Sequence[str], fed: Mapping[str, Sequence[Site]]) -> list[list[str]]:
    """Parameters that share a site are estimated together."""
    groups: list[tuple[list[str], set[str]]] = []
    for name in names:
        mine = {s.name for s in fed[name]}
        touching = [g for g in groups if g[1] & mine]
        merged = ([n for g in touching for n in g[0]] + [name], mine.union(*(g[1] for g in touching)))
        groups = [g for g in groups if g not in touching] + [merged]
    return [sorted(g[0], key=list(fed).index) for g in groups]
