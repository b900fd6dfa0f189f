"""Incremental EM: the statistics of one part of the data are renewed at a time, an M-step after each.

Reference:
    Neal, R. & Hinton, G. (1998). A view of the EM algorithm that justifies incremental, sparse, and other variants.
    Every step raises the free energy F(q, θ); fixed points are those of EM.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ppl_em.em.degenerate import collapsed
from ppl_em.em.e_step import EStep
from ppl_em.em.loop import State, Stopping, is_numerical
from ppl_em.em.pooled_family import Again
from ppl_em.em.stepwise import evaluated
from ppl_em.em.streaming import Demoted, Part, PooledEStep, StreamedMachine, sums_only
from ppl_em.em.updates import Parameters, Refused
from ppl_em.errors import PlanError, message
from ppl_em.status import Status


class IncrementalMachine(StreamedMachine):
    """EM that renews one part's statistics at a time; see :class:`~ppl_em.em.streaming.StreamedMachine`."""

    def states(self, start: Parameters) -> Iterator[State]:
        """States after every part; objectives add up the parts' newest log-likelihoods, the last one is exact."""
        while True:
            try:
                yield from _Run(self).states(start)
                return
            except Demoted as error:
                why = str(error.__cause__ or "a closed form does not hold")
                raise PlanError(message("incremental EM cannot be had", why=why, hint="EM()")) from error
            except Again:  # a rule asks for other statistics than at first: they are collected from the start on
                continue


@dataclass(frozen=True)
class _Kept:
    """What is known of one part.

    Args:
        totals: its statistics by group.
        log_likelihood: at the parameters of its last E-step, nats.
    """

    totals: dict[int, Any]
    log_likelihood: float


class _Run:
    """One run of incremental EM."""

    def __init__(self, machine: IncrementalMachine) -> None:
        self.machine, self.settings = machine, machine.settings
        if not machine.shards.kept:
            why = "the loader's batches are too large to be kept, and their statistics must be told apart"
            raise PlanError(message("incremental EM cannot be had", why=why, hint='EM(variant="stepwise")'))

    def states(self, start: Parameters) -> Iterator[State]:
        """States after every part."""
        machine, settings = self.machine, self.settings
        first = evaluated(machine, 0, start, None)
        self._check()
        if settings.max_steps == 0 or not math.isfinite(first.objective):
            status = Status.EVALUATED if math.isfinite(first.objective) else Status.NON_FINITE
            yield replace(first, status=status)
            return
        yield first
        parts = list(machine.parts())
        kept = [self._visit(p, start) for p in parts]
        parameters = machine.maximise(start, first.e)
        step, stopping = 1, Stopping(settings.tol, first.objective)
        yield self._state(step, parameters, kept)
        while step < settings.max_steps:
            for i, part in enumerate(parts):
                try:
                    kept[i] = self._visit(part, parameters)
                    new = machine.maximise(parameters, self._pooled(kept, parameters))
                except (ValueError, RuntimeError) as error:
                    if not is_numerical(error):
                        raise
                    where = str(error).split("\n")[0]
                    yield replace(evaluated(machine, step, parameters, Status.DEGENERATE), detail=where)
                    return
                where = collapsed(machine.plan, new, machine.watched)
                if where:
                    yield replace(evaluated(machine, step, parameters, Status.DEGENERATE), detail=where)
                    return
                parameters, step = new, step + 1
                if step >= settings.max_steps:
                    break
                yield self._state(step, parameters, kept)
            state = evaluated(machine, step, parameters, None)
            remaining = stopping.update(state.objective)
            if stopping.satisfied:
                yield replace(state, status=Status.CONVERGED, remaining=remaining)
                return
        status = Status.ALL_STEPS if settings.tol == 0 else Status.OUT_OF_STEPS
        yield evaluated(machine, step, parameters, status)

    def _check(self) -> None:
        """Refuse programs whose free energy the steps would not raise."""
        machine = self.machine
        try:
            sums_only(machine)
            late = [u for u, g in zip(machine.updaters, machine.groups, strict=True) if g is not None and g.late]
            if late:
                names = ", ".join(late[0].update.parameters)
                raise Refused(f"{names}: statistics of residuals change with the coefficients")
        except Refused as error:
            raise PlanError(message("incremental EM cannot be had", why=str(error), hint="EM()")) from error

    def _visit(self, part: Part, parameters: Parameters) -> _Kept:
        e = part.machine.evaluate(parameters)
        totals: dict[int, Any] = {}
        self.machine.add(totals, part, list(range(len(self.machine.groups))), parameters, parameters, e)
        return _Kept(totals, e.log_likelihood)

    def _pooled(self, kept: list[_Kept], parameters: Parameters) -> PooledEStep:
        """The statistics of all parts, each from its last visit."""
        machine = self.machine
        totals: dict[int, Any] = {}
        likelihood, prior = sum(k.log_likelihood for k in kept), 0.0
        for known in kept:
            for i, t in known.totals.items():
                totals[i] = totals[i] + t if i in totals else t
        once = machine.once()
        if once is not None:
            e = once.machine.evaluate(parameters)
            likelihood, prior = likelihood + e.log_likelihood, e.log_prior
            machine.add(totals, once, list(range(len(machine.groups))), parameters, parameters, e)
        return PooledEStep(likelihood, prior, {}, totals=totals)

    def _state(self, step: int, parameters: Parameters, kept: list[_Kept]) -> State:
        once = self.machine.once()
        rest = once.machine.evaluate(parameters) if once is not None else None
        likelihood = sum(k.log_likelihood for k in kept) + (rest.log_likelihood if rest is not None else 0.0)
        prior = rest.log_prior if rest is not None else 0.0
        e = EStep(likelihood, prior, {})
        return State(step, parameters, likelihood + prior, likelihood, prior, e, self.machine.plan)
