"""The plan of variational Bayes: every global latent with its conjugate factor, the sums as they were."""

from __future__ import annotations

from dataclasses import replace

from ppl_em.errors import PlanError, message
from ppl_em.methods import EM
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import RuleLookup, Update, choose_rules
from ppl_em.plan.structured import structured
from ppl_em.variational_em.nodes import HINT, Node
from ppl_em.variational_em.recognition import find_nodes

#: The rule of a latent's factor, as the plan prints it.
CONJUGATE_UPDATE = "conjugate update"
#: Names of joint factors by the family of the location.
JOINT = {"Normal": "normal-gamma", "MultivariateNormal": "normal-Wishart"}


def variational_plan(plan: Plan, lookup: RuleLookup, settings: EM | None = None) -> Plan:
    """A plan with point-estimated latents as one in which each of them has a factor q(θ).

    Args:
        plan: made for exact EM.
        lookup: what the M-step registry knows of a family.
        settings: of EM, for a new fit.

    Raises:
        PlanError: a latent is not conjugate, or there is none; a setting has no meaning here.
    """
    if settings is not None:
        refuse_settings(settings)
    if plan.method == "svi":
        name = next(iter(plan.approximated), None)
        what = 'EM(globals="variational") cannot be had'
        raise PlanError(message(what, site=name, why=plan.reasons.get(name or ""), hint='method="svi"'))
    nodes = {v.name: v for v in find_nodes(plan)}
    if not nodes:
        what = 'EM(globals="variational") has no global latent to work on'
        raise PlanError(message(what, hint='pyro.sample for what is to have a distribution, or globals="point"'))
    for site in plan.sites():
        shared = sorted(site.parameters & set(nodes))
        if structured(site) and shared:
            what = "a hidden structure cannot be summed under a factor"
            raise PlanError(message(what, site=site.members[0], value=shared[0], hint=HINT))
    program = plan.program
    fixed = {n: replace(p, frozen=True) if n in nodes else p for n, p in program.parameters.items()}
    others = choose_rules(replace(program, parameters=fixed), plan.sites(), lookup)
    kept = [replace(u, parameters=tuple(n for n in u.parameters if n not in nodes)) for u in others]
    updates = [_update(v) for v in nodes.values()]
    return replace(
        plan,
        updates=(*updates, *(u for u in kept if u.parameters)),
        points=tuple(n for n in plan.points if n not in nodes),
        approximated={**plan.approximated, **dict.fromkeys(nodes, "variational")},
        reasons={**plan.reasons, **{n: _described(v, nodes) for n, v in nodes.items()}},
        method="em",
    )


def refuse_settings(settings: EM) -> None:
    """Options of EM that have no meaning for variational Bayes.

    Raises:
        PlanError: one is set.
    """
    if settings.e_step != "exact":
        why = "the bound needs the exact posterior of the summed latents"
        raise PlanError(message('EM(globals="variational") needs e_step="exact"', value=settings.e_step, why=why))
    if settings.variant != "batch":
        why = "factors are fitted to all data at once"
        raise PlanError(message('EM(globals="variational") needs variant="batch"', value=settings.variant, why=why))
    if settings.map_space != "constrained":
        why = "a factor is the same in every space"
        raise PlanError(message('map_space is for globals="point"', value=settings.map_space, why=why))


def _update(node: Node) -> Update:
    sites = tuple(dict.fromkeys(c.site.name for c in node.children))
    return Update(CONJUGATE_UPDATE, (node.name,), sites, factor_name(node), by="variational")


def factor_name(node: Node) -> str:
    """The factor's family, as the plan prints it."""
    if node.joint is None:
        return node.family
    return f"{node.family} given {node.joint.partner} ({JOINT[node.family]})"


def _described(node: Node, nodes: dict[str, Node]) -> str:
    if node.joint is not None:
        return f"global, one {JOINT[node.family]} factor together with {node.joint.partner}"
    partners = [v.name for v in nodes.values() if v.joint is not None and v.joint.partner == node.name]
    if partners:
        return f"global, one factor together with {', '.join(partners)}"
    return "global, a factor of its own (mean-field)"
