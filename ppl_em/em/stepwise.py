"""Stepwise (online) EM: expected statistics averaged over minibatches, an M-step after each.

References:
    Cappé, O. & Moulines, E. (2009). On-line expectation–maximization for latent data models. JRSS B 71(3).
    Liang, P. & Klein, D. (2009). Online EM for unsupervised models. NAACL.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ppl_em.em.degenerate import collapsed
from ppl_em.em.loop import State, is_numerical
from ppl_em.em.pooled_family import Again
from ppl_em.em.streaming import Demoted, Part, PooledEStep, StreamedMachine, sums_only
from ppl_em.em.updates import Parameters, Refused
from ppl_em.errors import PlanError, message
from ppl_em.status import Status

#: Share of the newest estimate in the running one.
SMOOTHING = 0.1
#: Data for each free parameter that are seen before the first M-step, where nothing is said.
WARM_UP_DATA = 10
#: Most of the data that a default warm-up may take.
WARM_UP_SHARE = 0.2


@dataclass(frozen=True)
class Averages:
    """Statistics per datum, averaged over the batches seen so far; what stepwise EM carries from step to step.

    Args:
        by_group: by the names of the parameters that they serve.
        ingredients: what the statistics consist of, by the same names.
        steps: batches that they stand for.
        num_data: data seen so far.
        plate: the plate whose elements the batches divide.
        exponent, offset: of the step size (step + offset)^−exponent.
    """

    by_group: Mapping[tuple[str, ...], Any] = field(default_factory=dict)
    ingredients: Mapping[tuple[str, ...], Any] = field(default_factory=dict)
    steps: int = 0
    num_data: float = 0.0
    plate: str = ""
    exponent: float = 0.6
    offset: float = 0.0

    def rate(self, warm: bool = False) -> float:
        """Weight of the next batch: one over the number of batches while warming up."""
        step = self.steps + 1
        return 1.0 / step if warm else min(1.0, (step + self.offset) ** -self.exponent)

    def rate_for(self, size: int) -> float:
        """Weight of a batch of any size: the steps so far are counted in batches of this size."""
        return min(1.0, ((self.num_data + size) / size + self.offset) ** -self.exponent)

    def mixed(self, new: Mapping[tuple[str, ...], Any], rate: float, size: int) -> Averages:
        """The averages with a new batch's statistics per datum."""
        old = self.by_group
        mixed = {k: old[k].scaled(1 - rate) + v.scaled(rate) if k in old else v for k, v in new.items()}
        return replace(self, by_group=mixed, steps=self.steps + 1, num_data=self.num_data + size)


class StepwiseMachine(StreamedMachine):
    """EM on minibatches; its last state is evaluated on all data.

    Args:
        plan, settings, generator, shards: as for :class:`~ppl_em.em.streaming.StreamedMachine`.
        carried: averages of an earlier fit that this one continues.
    """

    carried: Averages | None = None
    averages: Averages = Averages()

    def states(self, start: Parameters) -> Iterator[State]:
        """States after every batch; the last one carries a status and the objective of all data."""
        return _Steps(self).run(start)

    def statistics(self, part: Part, parameters: Parameters, e: Any) -> dict[tuple[str, ...], Any]:
        """A batch's statistics per datum, by group.

        Raises:
            PlanError: a group of parameters has no statistics of fixed size.
        """
        totals: dict[int, Any] = {}
        self.add(totals, part, list(range(len(self.groups))), parameters, parameters, e)
        try:
            sums_only(self)
        except Refused as error:
            hint = 'method="svi", or EM() on all data'
            raise PlanError(message("stepwise EM cannot be had", why=str(error), hint=hint)) from error
        return {self.updaters[i].update.parameters: t.scaled(1.0 / part.size) for i, t in totals.items()}

    def solve(self, averages: Averages, parameters: Parameters, num_data: float) -> Parameters:
        """M-step from averages; what lies outside the data plate is added as it is at these parameters."""
        once: dict[int, Any] = {}
        rest = self.once()
        if rest is not None:
            self.add(
                once, rest, list(range(len(self.groups))), parameters, parameters, rest.machine.evaluate(parameters)
            )
        new = dict(parameters)
        for i, (updater, group) in enumerate(zip(self.updaters, self.groups, strict=True)):
            known = averages.by_group.get(updater.update.parameters)
            total = None if known is None else known.scaled(num_data)
            total = once[i] if total is None and i in once else total + once[i] if i in once else total
            if total is None or group is None:
                continue
            for _ in range(2):
                try:
                    new.update(group.solve(total, new))
                    break
                except Again:  # moments about the components' own means hold the digits that are left
                    total = group.recentred(total)
        return new

    def recentre(self, averages: Averages) -> Averages:
        """The averages with moments about the present means, and later batches' about the same."""
        groups = self.named_groups()
        moved = {names: groups[names].recentred(known) for names, known in averages.by_group.items()}
        return replace(averages, by_group=moved, ingredients=self.ingredients())

    def fitting(self, averages: Averages | None) -> Averages | None:
        """Averages of an earlier fit, if they are of these groups of parameters."""
        same = averages is not None and set(averages.by_group) == set(self.named_groups())
        return averages if same and averages is not None and averages.plate == self.shards.plate else None

    def resume(self, averages: Averages) -> None:
        """Collect statistics as they were collected for these averages."""
        self._verified = True
        groups = self.named_groups()
        for names, known in averages.by_group.items():
            groups[names].resume(known, averages.ingredients[names])


class _Steps:
    """One run of stepwise EM."""

    def __init__(self, machine: StepwiseMachine) -> None:
        self.machine, self.settings = machine, machine.settings
        self.num_data = machine.shards.num_data
        carried = machine.fitting(machine.carried)
        fresh = Averages(
            plate=machine.shards.plate, exponent=self.settings.step_exponent, offset=self.settings.step_offset
        )
        self.averages = fresh if carried is None else carried
        if carried is not None:
            machine.resume(carried)
        self.warm_up = 0 if carried is not None else self._warm_up()
        self.running = math.nan
        self.step = 0

    def _warm_up(self) -> int:
        """Data that are seen before the first M-step."""
        asked = self.settings.warm_up
        free = sum(p.init.numel() for p in self.machine.plan.program.parameters.values() if not p.frozen)
        return asked if asked is not None else min(WARM_UP_DATA * free, int(WARM_UP_SHARE * self.num_data))

    def run(self, start: Parameters) -> Iterator[State]:
        """States after every batch; the last one carries a status."""
        if self.settings.max_steps == 0:
            yield self._final(start, Status.EVALUATED)
            return
        parameters = start
        for _ in range(self.settings.passes):
            for shard in self.machine.shards.epoch(self.machine.generator):
                try:
                    new, e = self._one(parameters, shard)
                except Demoted as error:
                    why = str(error.__cause__ or "a closed form does not hold")
                    raise PlanError(message("stepwise EM cannot be had", why=why, hint="EM() on all data")) from error
                except (ValueError, RuntimeError) as error:
                    if isinstance(error, PlanError) or not is_numerical(error):
                        raise
                    yield replace(self._final(parameters, Status.DEGENERATE), detail=str(error).split("\n")[0])
                    return
                if self.step == 1:
                    yield self._state(0, start, e)
                where = collapsed(self.machine.plan, new, self.machine.watched)
                if where or not math.isfinite(self.running):
                    status = Status.DEGENERATE if where else Status.NON_FINITE
                    yield replace(self._final(parameters, status), detail=where)
                    return
                parameters = new
                if self.step >= self.settings.max_steps:
                    yield self._final(parameters, Status.ALL_STEPS)
                    return
                yield self._state(self.step, parameters, e)
        yield self._final(parameters, Status.ALL_STEPS)

    def _one(self, parameters: Parameters, shard: Any) -> tuple[Parameters, Any]:
        """One batch: its E-step, the averages, an M-step unless it is too early for one."""
        machine = self.machine
        machine.prove_once(parameters)
        part = machine.part(shard)
        e = part.machine.evaluate(parameters)
        estimate = self.num_data / part.size * e.log_likelihood + self._outside(parameters)
        self.running = estimate if self.step == 0 else self.running + SMOOTHING * (estimate - self.running)
        warm = self.averages.num_data < self.warm_up
        new = machine.statistics(part, parameters, e)
        self.averages = self.averages.mixed(new, self.averages.rate(warm), part.size)
        self.step += 1
        if self.averages.num_data >= self.warm_up:
            parameters = machine.solve(self.averages, parameters, self.num_data)
        self.averages = machine.recentre(self.averages)
        machine.averages = self.averages
        return parameters, e

    def _outside(self, parameters: Parameters) -> float:
        once = self.machine.once()
        return 0.0 if once is None else once.machine.evaluate(parameters).objective

    def _state(self, step: int, parameters: Parameters, e: Any) -> State:
        return State(step, parameters, self.running, self.running, 0.0, e, self.machine.plan)

    def _final(self, parameters: Parameters, status: Status) -> State:
        return evaluated(self.machine, self.step, parameters, status)


def evaluated(machine: StreamedMachine, step: int, parameters: Parameters, status: Status | None) -> State:
    """The state with the objective of all data."""
    e = machine.evaluate(parameters)
    return State(step, parameters, e.objective, e.log_likelihood, e.log_prior, e, machine.plan, status)


def settled(machine: Any, state: State) -> State:
    """The state with the objective of all data at its parameters, where it held an estimate."""
    if not isinstance(machine, StreamedMachine) or isinstance(state.e, PooledEStep):
        return state
    exact = evaluated(machine, state.step, state.parameters, state.status)
    return replace(exact, detail=state.detail, remaining=state.remaining)


def from_totals(machine: StreamedMachine, parameters: Parameters) -> Averages | None:
    """Averages per datum of statistics that were collected over all parts."""
    groups = list(range(len(machine.groups)))
    if any(g is None or not g.fixed_size for g in machine.groups):
        return None
    totals: dict[int, Any] = {}
    parts, num_data = 0, 0.0
    for part in machine.parts():
        machine.add(totals, part, groups, parameters, parameters, part.machine.evaluate(parameters))
        parts, num_data = parts + 1, num_data + part.size
    if any(not g.fixed_size for g in machine.groups if g is not None):
        return None
    settings = machine.settings
    named = {machine.updaters[i].update.parameters: t.scaled(1.0 / num_data) for i, t in totals.items()}
    served = machine.named_groups()
    named = {names: served[names].recentred(known) for names, known in named.items()}
    plate, ingredients = machine.shards.plate, machine.ingredients()
    return Averages(named, ingredients, parts, num_data, plate, settings.step_exponent, settings.step_offset)
