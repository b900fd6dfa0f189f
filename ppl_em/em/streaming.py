"""Full-batch EM over data that come in parts: expected statistics add up, the M-step is made once for all of them.

Reference:
    Dempster, A., Laird, N. & Rubin, D. (1977). Maximum likelihood from incomplete data via the EM algorithm. JRSS B 39.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from ppl_em.em.climb import Climb
from ppl_em.em.conjugate import Conjugate
from ppl_em.em.e_step import EStep
from ppl_em.em.loop import Machine
from ppl_em.em.lowering import prove
from ppl_em.em.partition import Parts
from ppl_em.em.pooled import Pooled, messages, pooled
from ppl_em.em.pooled_climb import pool_objective
from ppl_em.em.pooled_family import Again
from ppl_em.em.ridge import Ridge
from ppl_em.em.shards import Shard, outside, with_updates
from ppl_em.em.tables import Tables
from ppl_em.em.updates import ClosedForm, Parameters, Refused, Updater
from ppl_em.methods import EM
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update


@dataclass(frozen=True)
class PooledEStep(EStep):
    """Outcome of an E-step over all parts.

    Args:
        totals: statistics of all parts, by position of the updater.
    """

    totals: Mapping[int, Any] = field(default_factory=dict)


@dataclass
class Part:
    """One part of the data, ready for E-steps.

    Args:
        machine: its plan with the updaters of its own sites.
        size: number of data.
        own: its updater of each group, by position of the group; groups that it does not feed are absent.
    """

    machine: Machine
    size: int
    own: dict[int, Sequence[Updater]]


class StreamedMachine(Machine):
    """EM's map over parts of the data.

    Args:
        plan: of the first part, sites outside the data plate included.
        settings: of EM.
        generator: randomness of stochastic variants.
        shards: gives the parts, as often as they are asked for.
    """

    def __init__(self, plan: Plan, settings: EM, generator: torch.Generator, shards: Parts) -> None:
        self.shards = shards
        #: Number of data in the last pass.
        self.num_seen = 0
        self.groups: list[Pooled | None] = []
        self._parts: dict[int, Part] = {}
        self._verified = False
        self._once: Part | None = None
        super().__init__(replace(plan, updates=tuple(map(_by_derivatives, plan.updates))), settings, generator)

    def _build(self) -> None:
        super()._build()
        self.groups = [pooled(u) for u in self.updaters]
        self._parts = {}
        self._verified = False
        self._once = None

    # parts ---------------------------------------------------------------------------------------------------

    def once(self) -> Part | None:
        """What does not belong to any part: priors, and what else lies outside the plate that is divided."""
        if self._once is None:
            rest = outside(self.plan, self.shards.plate)
            if not rest.sites():
                return None
            self._once = self.part(Shard(rest, 0))
        return self._once

    def everything(self) -> Iterator[Part]:
        """What is counted once, then the parts."""
        once = self.once()
        if once is not None:
            yield once
        yield from self.parts()

    def parts(self) -> Iterator[Part]:
        """The parts of the data, one at a time."""
        for index, shard in enumerate(self.shards):
            part = self._parts.get(index) or self.part(shard)
            if self.shards.kept:
                self._parts[index] = part
            yield part

    def part(self, shard: Shard) -> Part:
        """A part's own machine; its updaters by group.

        Raises:
            Demoted: a closed form does not hold for all parts; the plan has been changed.
        """
        plain = [u for u in self.plan.updates if u.by != "conjugate"]
        passed = [m for u in self.updaters for m in messages(u)]
        machine = Machine(with_updates(shard.plan, plain, passed), self.settings, self.generator)
        own: dict[int, Sequence[Updater]] = {}
        for index, updater in enumerate(self.updaters):
            wanted = messages(updater)
            if wanted:
                mine = [u for u in machine.updaters if u.update in wanted]
            else:
                mine = [u for u in machine.updaters if _alike(u.update, updater.update)]
            if not mine:
                continue
            group = self.groups[index]
            if group is not None:
                try:
                    group.admit(mine)
                except Refused as error:
                    self._demote(updater.update, str(error))
                    raise Demoted from error
            own[index] = mine
        return Part(machine, shard.size, own)

    def named_groups(self) -> dict[tuple[str, ...], Pooled]:
        """The groups whose statistics add up, by the names of their parameters."""
        pairs = zip(self.updaters, self.groups, strict=True)
        return {u.update.parameters: g for u, g in pairs if g is not None}

    def ingredients(self) -> dict[tuple[str, ...], Any]:
        """What each group's statistics consist of."""
        return {names: group.ingredients() for names, group in self.named_groups().items()}

    # EM's map ------------------------------------------------------------------------------------------------

    def evaluate(self, parameters: Parameters) -> EStep:
        """E-step over all parts, with the statistics that do not depend on newer values of other groups."""
        while True:
            try:
                return self._evaluate(parameters)
            except Demoted:
                continue

    def _evaluate(self, parameters: Parameters) -> PooledEStep:
        likelihood, prior, seen = 0.0, 0.0, 0
        totals: dict[int, Any] = {}
        now = [i for i, g in enumerate(self.groups) if g is not None and not g.late]
        for part in self.everything():
            e = part.machine.evaluate(parameters)
            likelihood, prior, seen = likelihood + e.log_likelihood, prior + e.log_prior, seen + part.size
            self.add(totals, part, now, parameters, parameters, e)
        self.num_seen = seen
        return PooledEStep(likelihood, prior, {}, totals=totals)

    def add(
        self, totals: dict[int, Any], part: Part, groups: list[int], old: Parameters, new: Parameters, e: EStep
    ) -> None:
        """Add a part's statistics of some groups.

        Args:
            totals: is added to.
            part: the part.
            groups: positions of the groups.
            old: parameters of the E-step.
            new: newest values.
            e: the part's E-step.
        """
        for i in groups:
            group = self.groups[i]
            if group is None or i not in part.own:
                continue
            try:
                mine = group.statistics(part.own[i], part.machine.plan, old, new, e)
            except Refused as error:
                self._demote(self.updaters[i].update, str(error))
                raise Demoted from error
            totals[i] = totals[i] + mine if i in totals else mine

    def maximise(self, parameters: Parameters, e: EStep) -> Parameters:
        """M-step: every group in turn, each at the newest values of the others."""
        if not isinstance(e, PooledEStep):  # a start from the first part alone
            return super().maximise(parameters, e)
        try:
            return self._maximise(parameters, e)
        except (Demoted, Again):
            return self.maximise(parameters, self.evaluate(parameters))

    def _maximise(self, parameters: Parameters, e: PooledEStep) -> Parameters:
        self.prove_once(parameters)
        new = dict(parameters)
        for index, updater in enumerate(list(self.updaters)):
            try:
                new.update(self._step(index, updater, parameters, new, e))
            except Refused as error:
                self._demote(updater.update, str(error))
                raise Demoted from error
        return new

    def _step(self, index: int, updater: Updater, old: Parameters, new: Parameters, e: PooledEStep) -> Parameters:
        group = self.groups[index]
        if group is None:
            if not isinstance(updater, Climb):
                raise Refused("its rule has no form that adds up over parts of the data")
            return pool_objective(updater, self._passes(index, old)).step(new, e)
        total = e.totals.get(index)
        if group.late:
            late: dict[int, Any] = {}
            for part in self.everything():
                self.add(late, part, [index], old, new, part.machine.evaluate(old))
            total = late.get(index)
        return {} if total is None else group.solve(total, new)

    def _passes(self, index: int, old: Parameters) -> Callable[[], Iterator[tuple[Climb, EStep]]]:
        """Goes through the updaters of one group in every part, each with the part's E-step."""
        kept: list[tuple[Climb, EStep]] = []

        def go() -> Iterator[tuple[Climb, EStep]]:
            if kept:
                yield from kept
                return
            found = []
            for part in self.everything():
                for own in part.own.get(index, ()):
                    assert isinstance(own, Climb)
                    with weights_kept(self.plan):
                        e = part.machine.evaluate(old)
                    if self.shards.kept:
                        found.append((own, e))
                    yield own, e
            kept.extend(found)

        return go

    def prove_once(self, parameters: Parameters) -> None:
        """Prove every closed form on the first part."""
        if self._verified:
            return
        claims = [u for u in self.updaters if isinstance(u, (ClosedForm, Conjugate, Ridge)) and not u.verified]
        if claims:
            e = super().evaluate(parameters)
            for updater in claims:
                try:
                    self._prove(updater, parameters, e)
                except Refused as error:
                    self._demote(updater.update, str(error))
                    raise Demoted from error
        self._verified = True

    def _prove(self, updater: ClosedForm | Conjugate | Ridge, parameters: Parameters, e: EStep) -> None:
        if isinstance(updater, (Tables, Conjugate, Ridge)):
            updater.step(parameters, e)
        elif all(n in e.moments for n in updater.update.sites):
            prove(self.plan, self.lowered, updater, parameters, e)
        else:
            updater.sample(parameters, e)


@contextmanager
def weights_kept(plan: Plan) -> Iterator[None]:
    """Modules' weights are afterwards what they were: a run of the program at other values overwrites them."""
    tensors = [p.module_tensor for p in plan.program.parameters.values() if p.module_tensor is not None]
    before = [t.detach().clone() for t in tensors]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in zip(tensors, before, strict=True):
                tensor.copy_(value)


class Demoted(Exception):
    """A closed form made way for the next rule: the step begins anew."""


def _by_derivatives(update: Update) -> Update:
    """Coefficients of linear predictors are found from derivatives of Q, which add up."""
    return replace(update, by="objective") if update.by == "predictor" else update


def _alike(a: Update, b: Update) -> bool:
    return a.rule == b.rule and a.by == b.by and a.parameters == b.parameters


def sums_only(machine: StreamedMachine) -> None:
    """Refuse updates that need all data at once.

    Raises:
        Refused: the parameters and why.
    """
    for updater, group in zip(machine.updaters, machine.groups, strict=True):
        names = ", ".join(updater.update.parameters)
        if group is None:
            raise Refused(f"{names}: {updater.update.rule} has no statistics of fixed size")
        if not group.fixed_size:
            raise Refused(f"{names}: the rule of {updater.update.family} goes through the data one by one")


__all__ = ["Demoted", "Part", "PooledEStep", "StreamedMachine", "sums_only"]
