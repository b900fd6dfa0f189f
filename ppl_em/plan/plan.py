"""The plan: how each block of latents is inferred and each parameter updated, at what cost, and why."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ppl_em.errors import PlanError, message
from ppl_em.ir import Latent, Program, Site
from ppl_em.plan.certificate import Certificate
from ppl_em.plan.choice import BlockPlan, Budget, choose_engine
from ppl_em.plan.explain import render, render_html
from ppl_em.plan.rules import RuleLookup, Update, choose_rules
from ppl_em.plan.structure import find_blocks
from ppl_em.plan.structured import StructuredSite, describe, structured
from ppl_em.plan.time_axis import axis_of


@dataclass(frozen=True)
class Plan:
    """What ``fit`` will do, decided from structure and shapes before anything is paid for.

    ``str(plan)`` is the EXPLAIN text, ``to_dict()`` its plain JSON form.

    Args:
        program: the traced program.
        blocks: blocks of summed latents with their engines.
        plain: sites that depend on no latent.
        updates: M-step rules in the order in which they are applied.
        points: global latents that are point-estimated.
        approximated: latents that no exact engine takes, with the engine that infers them.
        reasons: why each approximated latent is not exact.
        structured: observed sites whose hidden structure is summed inside their density.
        map_space: the space of the priors' densities at point estimates, ``"constrained"`` or ``"unconstrained"``.
        meter: runs an E-step for :meth:`analyze`.
        parts: how the data are gone through, where that is not all at once.
        partial: the program holds a loader's first batch only.
    """

    program: Program
    blocks: tuple[BlockPlan, ...]
    plain: tuple[Site, ...]
    updates: tuple[Update, ...]
    points: tuple[str, ...] = ()
    approximated: Mapping[str, str] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    method: str = "em"
    structured: tuple[StructuredSite, ...] = ()
    map_space: str = "constrained"
    meter: Any = field(default=None, compare=False, repr=False)
    parts: str = ""
    partial: bool = False

    def analyze(self) -> Any:
        """Run one E-step at the program's own values: predicted operations, seconds and bytes beside measured ones.

        Returns:
            An analysis; ``print`` it.

        Raises:
            PlanError: there is no E-step to run.
        """
        if self.meter is None:
            raise PlanError(message("this plan cannot be run", hint="explain(model, ...) or result.plan"))
        return self.meter(self)

    @property
    def by_batch(self) -> bool:
        """Whether a step of EM goes through one part of the data."""
        return "stepwise" in self.parts or "incremental" in self.parts

    @property
    def exact(self) -> bool:
        """Whether every latent is summed or integrated exactly, with evidence."""
        return not self.approximated and not self.program.unproven

    @property
    def rejected(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """By latent: (alternative, why it was not taken)."""
        result = {z: b.rejected for b in self.blocks for z in b.block.names if b.rejected}
        result.update({z: (("exact", why),) for z, why in self.reasons.items()})
        return result

    @property
    def certificate(self) -> Certificate:
        """The evidence for exactness."""
        treatment = {}
        for name in self.program.latents:
            if name in self.points:
                treatment[name] = "point-estimated"
            elif name in self.approximated:
                treatment[name] = "approximated"
            else:
                treatment[name] = "summed"
        treatment.update({s.name: "summed" for s in self.structured})
        scopes = {n: s.scope for n, s in self.program.sites.items() if s.scope}
        return Certificate(treatment, dict(self.program.witnesses), tuple(self.program.unproven), scopes)

    @property
    def tabulated(self) -> bool:
        """Whether some parameters are tables of a hidden structure, updated in closed form."""
        names = {s.name for s in self.structured}
        return any(u.rule == "closed form" and names & set(u.sites) for u in self.updates)

    def engine_of(self, name: str) -> str:
        """Engine of a latent, by its name or the name of its family ("z" for z_0 … z_T).

        An observed site with a hidden structure answers ``"structured"``.

        Raises:
            KeyError: no such latent.
        """
        for candidate in self._family(name, self.program.latents):
            if candidate in self.points:
                return "point"
            if candidate in self.approximated:
                return self.approximated[candidate]
            for block in self.blocks:
                if candidate in block.block.names:
                    return str(block.engine.name)
        if self._family(name, {s.name: s for s in self.structured}):
            return "structured"
        raise KeyError(f"no latent '{name}'; the program has {sorted(self.program.latents)}")

    def rule_of(self, name: str) -> str:
        """M-step rule of a parameter: "closed form", "least squares", "newton", "gradient" or "frozen".

        Raises:
            KeyError: no such parameter.
        """
        for update in self.updates:
            if name in update.parameters:
                return update.rule
        raise KeyError(f"no parameter '{name}'; the program has {sorted(self.program.parameters)}")

    @staticmethod
    def _family(name: str, names: Mapping[str, Any]) -> list[str]:
        if name in names:
            return [name]
        return [n for n in names if re.fullmatch(re.escape(name) + r"[_\[]?\d+\]?", n)]

    def sites(self) -> list[Site]:
        """All sites as they are worked on, stacks in place of their members."""
        return [s for b in self.blocks for s in b.block.sites] + list(self.plain)

    def __str__(self) -> str:
        return render(self)

    def _repr_html_(self) -> str:
        return render_html(self)

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return {
            "method": self.method,
            "exact": self.exact,
            "blocks": [
                {
                    "latents": list(b.block.names),
                    "engine": b.engine.name,
                    "sizes": {d: b.block.sizes[d] for d in b.block.sizes if "@" not in d},
                    "flops": b.flops,
                    "bytes": b.bytes,
                    "rejected": [list(r) for r in b.rejected],
                }
                for b in self.blocks
            ],
            "structured": [
                {
                    "site": s.name,
                    "family": s.family,
                    "counted": list(s.counted),
                    "sizes": dict(s.sizes),
                    "flops": s.flops,
                    "bytes": s.bytes,
                }
                for s in self.structured
            ],
            **({"parts": self.parts} if self.parts else {}),
            "points": list(self.points),
            **({} if self.map_space == "constrained" else {"map_space": self.map_space}),
            "approximated": dict(self.approximated),
            "reasons": dict(self.reasons),
            "updates": [
                {"rule": u.rule, "parameters": list(u.parameters), "family": u.family, "why": u.why}
                for u in self.updates
            ],
            "certificate": self.certificate.to_dict(),
            "notes": list(self.program.notes),
        }


def make_plan(
    program: Program,
    engines: Sequence[Any],
    lookup: RuleLookup,
    *,
    max_bytes: float,
    max_flops: float = math.inf,
    method: str = "auto",
    guided: Collection[str] = (),
) -> Plan:
    """Choose an engine for each block of latents and a rule for each parameter.

    Args:
        program: the traced program.
        engines: exact engines in order of preference.
        lookup: what the M-step registry knows of a family.
        max_bytes, max_flops: memory that an E-step may use, operations that it may cost.
        method: ``"auto"``, ``"em"`` or ``"svi"``.
        guided: latents that a guide infers.

    Raises:
        Unaffordable: a block fits no engine within the budget.
        PlanError: ``"em"`` meets a latent that it cannot sum.
    """
    approximated, reasons = {}, {}
    points = tuple(n for n, p in program.parameters.items() if p.origin == "site")
    for name, latent in program.latents.items():
        if name in guided:
            approximated[name], reasons[name] = "guide", "the guide infers it"
        elif name in program.refused:
            approximated[name], reasons[name] = _approximation(program, latent)[0], program.refused[name]
        elif latent.kind == "continuous" and name not in points:
            approximated[name], reasons[name] = _approximation(program, latent)
    if method == "em" and approximated:
        name = next(iter(approximated))
        raise PlanError(message("exact EM cannot be had", site=name, why=reasons[name], hint='method="svi" or "auto"'))
    found, plain = find_blocks(program, guided)
    budget = Budget(max_bytes, max_flops)
    blocks = tuple(choose_engine(block, engines, budget, axis_of(program, block), not approximated) for block in found)
    sites = [s for b in blocks for s in b.block.sites] + plain
    updates = choose_rules(program, sites, lookup)
    charts = tuple(describe(program, s, n, max_bytes) for s, n in _sized(program, blocks, plain) if structured(s))
    kind = "svi" if approximated or method == "svi" else "em"
    return Plan(program, blocks, tuple(plain), updates, points, approximated, reasons, kind, charts)


def _sized(program: Program, blocks: Sequence[BlockPlan], plain: Sequence[Site]) -> list[tuple[Site, dict[str, int]]]:
    """All sites with the size of every latent and plate as they have it."""
    inside = [(s, b.block.site_sizes(s)) for b in blocks for s in b.block.sites]
    return inside + [(s, program.sizes()) for s in plain]


def _approximation(program: Program, latent: Latent) -> tuple[str, str]:
    """An encoder serves what lives in a data plate; anything else has variational parameters of its own."""
    if any(program.plates[p].data for p in latent.plates):
        return "amortised", "it is continuous and local: no exact engine integrates it"
    where = "local" if latent.local else "global"
    return "variational", f"it is continuous and {where}, outside the data plates: a distribution of its own"
