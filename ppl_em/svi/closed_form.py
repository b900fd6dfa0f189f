"""Parameters that keep their closed form beside gradient steps, from statistics averaged over steps.

References:
    Robbins, H. & Monro, S. (1951). A stochastic approximation method. Annals of Mathematical Statistics 22(3).
    Cappé, O. & Moulines, E. (2009). On-line expectation–maximization for latent data models. JRSS B 71(3).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ppl_em.em.closed_form import ClosedForm, Refused
from ppl_em.errors import PplEmError
from ppl_em.exact.engine import Weights
from ppl_em.ir import Factor, Site
from ppl_em.mstep.block import Block
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update
from ppl_em.plan.structured import structured
from ppl_em.svi.batch import Batch
from ppl_em.svi.bound import Bound, Snapshot
from ppl_em.svi.score import Scored
from ppl_em.trace.enumeration import mask_factor
from ppl_em.trace.missing import knows_gaps
from ppl_em.trace.peel import peel
from ppl_em.trace.record import Frame, Record
from ppl_em.trace.sites import named_value

#: Steps whose statistics are averaged, where one step does not see everything.
WINDOW = 30
#: Steps before the first solution, where statistics are averaged: after one batch a rare state would be lost for ever.
FIRST = 20
#: Steps between two solutions, where statistics are averaged: the average moves slowly.
SOLVE_EVERY = 5
#: The weight of step t in the average falls as t to this power.
FORGETTING = -0.6


class Averaged:
    """One group of parameters with a closed form, fitted to a discounted average of recent steps' statistics.

    Args:
        plan: the plan.
        update: its entry, of a family's rule.
        window: steps that are averaged.
    """

    def __init__(self, plan: Plan, update: Update, window: int) -> None:
        self.rule = ClosedForm(plan, update)
        self.names = update.parameters
        self.sites = {s.name: s for s in self.rule.sites}
        self._recent: deque[list[Block]] = deque(maxlen=window)
        self._step = 0
        self._held = True

    def step(
        self, seen: Snapshot, bound: Bound, weights: Mapping[str, Weights], parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """New values of the group's parameters; none where the rule does not apply to what was seen.

        Args:
            seen: the run of the last gradient step.
            bound: gives names.
            weights: expected posterior weights of all sites in that run.
            parameters: newest constrained values.
        """
        blocks = []
        for name in self.sites:
            site = seen.sites[name]
            known = weights[name]
            value, mask = _data(site, bound)
            factor = (known.factor, known.summed)
            blocks.append(self.rule.assembly.block(name, value, factor, seen.sizes, mask))
        self._recent.append(blocks)
        self._step += 1
        waits = self._step < FIRST or self._step % SOLVE_EVERY
        if self._recent.maxlen != 1 and self.rule.verified and waits:
            return {n: parameters[n].detach() for n in self.names} if self._held else {}
        sample = self.rule.assembly.fitted(self._discounted(), parameters)
        try:
            if not self.rule.verified:
                self.rule.verify(sample)
            found = self.rule.fit(sample, dict(parameters))
        except (Refused, PplEmError, RuntimeError):  # a LinAlgError is a RuntimeError
            found = {}
        self._held = bool(found)
        return found

    def forget(self) -> None:
        """Begin anew."""
        self._recent.clear()
        self._step = 0

    def _discounted(self) -> list[Block]:
        """One block for each site: the data of recent steps with their weights in the average."""
        if len(self._recent) == 1:
            return self._recent[0]
        shares, left = [], 1.0
        for age in range(len(self._recent)):
            rate = (self._step - age + 1) ** FORGETTING
            shares.append(left * rate)
            left *= 1 - rate
        shares.reverse()  # oldest first, as the steps are kept
        event_dim = self.rule.assembly.event_dim
        result = []
        for steps in zip(*self._recent, strict=True):
            weights = torch.cat([b.weights * s for b, s in zip(steps, shares, strict=True)], 1)
            values = torch.cat([b.values for b in steps], 1 if steps[0].per_row(event_dim) else 0)
            result.append(Block(weights, values, steps[0].rows))
        return result


def averaged(plan: Plan, window: int) -> list[Averaged]:
    """The plan's groups with a closed form."""
    return [Averaged(plan, u, window) for u in plan.updates if u.rule not in ("gradient", "frozen")]


def expected_weights(plan: Plan, seen: Snapshot, bound: Bound, batch: Batch) -> dict[str, Weights]:
    """Expected posterior weights of all sites, given the draw.

    Args:
        plan: gives the blocks of summed latents.
        seen: a run of the program.
        bound: gives names and scales.
        batch: the data of that run.
    """
    result = {n: Weights(bound.weight(s, batch)) for n, s in seen.sites.items() if n not in bound.naming.blocks}
    for entry in plan.blocks:
        block = bound.naming.resized(entry, seen.factors, seen.sizes)
        expected = entry.engine.expected(block, bound.naming.stacked(entry, seen.factors))
        scale = bound.weight(seen.sites[block.latents[0].name], batch)
        for name, weights in expected.weights.items():
            result[name] = Weights(weights.factor * scale, weights.summed)
    return result


def _data(site: Scored, bound: Bound) -> tuple[Factor, Factor | None]:
    """A site's value and mask by name."""
    frames = tuple(Frame(f.name, f.dim, f.size, f.full_size or f.size) for f in site.frames)
    role = "observed" if site.observed else "latent"
    value = site.value.detach()
    if value.is_floating_point() and site.mask is not None and not knows_gaps(site.fn):
        value = torch.nan_to_num(value)
    record = Record(site.name, role, site.fn, peel(site.fn), value, frames, site.mask, 1.0)
    naming = bound.naming
    scope = naming.scopes.get(site.name, ())
    summed = site.name in bound.enumerated
    return named_value(record, naming.layout, scope), None if summed else mask_factor(record, naming.layout, scope)


def admitted(plan: Plan, allow: bool, refused: Collection[str] = ()) -> Plan:
    """The plan with the rules that gradient steps leave in force: simple closed forms; all else is a gradient step.

    Args:
        plan: the plan.
        allow: whether closed forms are wanted.
        refused: parameters whose closed form did not hold when it was tried.
    """
    kept, moved = [], []
    for update in plan.updates:
        why = _obstacle(plan, update)
        if why is None and update.rule != "frozen":
            names = ", ".join(update.parameters)
            if not allow:
                why = f"{names}: closed forms were not asked for"
            elif set(refused) & set(update.parameters):
                why = f"{names}: the closed form did not hold when it was tried"
        if update.rule == "frozen" or why is None:
            kept.append(update)
        else:
            moved.append((update, why))
    if not moved or all(u.rule == "gradient" for u, _ in moved):
        return plan
    names = tuple(n for u, _ in moved for n in u.parameters)
    sites = tuple(dict.fromkeys(s for u, _ in moved for s in u.sites))
    why = "; ".join(dict.fromkeys(w for _, w in moved if w))
    return replace(plan, updates=(*kept, Update("gradient", names, sites, why=why, by="objective")))


def _obstacle(plan: Plan, update: Update) -> str | None:
    """Why an update has no closed form beside gradient steps; None if it has."""
    if update.rule in ("gradient", "frozen"):
        return update.why
    if plan.program.refused:  # a share of drawn values that has reached zero would never leave it
        return f"{', '.join(update.parameters)}: discrete latents are drawn, not summed"
    if update.by != "family":
        return f"{', '.join(update.parameters)}: {update.rule} needs all data at once"
    sites = [s for s in plan.sites() if s.name in update.sites]
    guided = {n for n in plan.approximated if plan.program.latents[n].kind == "discrete"}
    for site in sites:
        if not _simple(plan, site, guided):
            return f"{', '.join(update.parameters)}: no averaged statistics for '{site.name}'"
    return None


def _simple(plan: Plan, site: Site, guided: set[str]) -> bool:
    """A site on its own whose arguments are links, with statistics that do not depend on how many data there are."""
    stacked = len(site.members) > 1 or any(
        (e.block.axis is not None or e.block.slices is not None) and site in e.block.sites for e in plan.blocks
    )
    masked = any(e.block.alive for e in plan.blocks if site in e.block.sites)
    plates = {n for n, p in plan.program.plates.items() if p.data}
    varying = {d for a in site.arguments.values() for d in a.value.dims}
    designed = any(a.design is not None or a.opaque for a in site.arguments.values())
    plain = site.lowered and not structured(site) and not designed
    return plain and not stacked and not masked and not varying & plates and not set(site.scope) & guided
