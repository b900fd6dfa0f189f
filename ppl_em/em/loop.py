"""The EM loop: init, step, terminate; monotone by construction, checked at every step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ppl_em.em.accelerate import Accelerator, Space, Squarem
from ppl_em.em.daarem import Daarem
from ppl_em.em.degenerate import Watched, collapsed, empty, watch
from ppl_em.em.e_step import EStep, e_step
from ppl_em.em.held import Floor, described, divergent, find_floors
from ppl_em.em.lowering import lower_blocks, prove
from ppl_em.em.stopping import Stopping
from ppl_em.em.structured import refuse_variants, with_counts
from ppl_em.em.updates import ClosedForm, Parameters, Refused, Updater, make_updater
from ppl_em.em.variants import harden
from ppl_em.methods import EM
from ppl_em.mstep.given import LostPrecision
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update, by_optimiser, refused
from ppl_em.status import Status

#: A fall of the objective by more than this, relative to its size, is not rounding.
ROUNDING = 1e-9
#: Plain steps before the first extrapolation.
WARM_UP = 6


@dataclass(frozen=True)
class State:
    """The loop's state after a step.

    Args:
        step: evaluations of the EM map so far.
        parameters: constrained values by name.
        objective: value at these parameters, nats.
        log_likelihood, log_prior: its two parts.
        e: the E-step at these parameters.
        plan: the plan (it changes when a closed form is refused).
        status: set on the last state.
        remaining: Aitken's estimate of what is still to gain, nats (infinite while unknown).
        detail: what the status is about, e.g. the component that collapsed.
        divergent: part of the log-prior that values held from a boundary owe to its unbounded factor there, nats.
    """

    step: int
    parameters: Parameters
    objective: float
    log_likelihood: float
    log_prior: float
    e: EStep
    plan: Plan
    status: Status | None = None
    remaining: float = math.inf
    detail: str = ""
    divergent: float = 0.0

    @property
    def rank(self) -> float:
        """What starts are compared by: the objective less unbounded factors of priors at values that are held.

        Such a factor is as large as the distance at which a value is held is small: an end at the boundary is no better
        than one in the interior for its sake.
        """
        return self.objective - self.divergent


@dataclass
class Machine:
    """A plan with its updaters, ready to run.

    Args:
        plan: the plan.
        settings: of EM.
        generator: randomness of stochastic variants.
    """

    plan: Plan
    settings: EM
    generator: torch.Generator
    updaters: list[Updater] = field(default_factory=list)
    lowered: dict[int, Any] = field(default_factory=dict)
    watched: tuple[Watched, ...] = ()
    floors: dict[str, Floor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.floors = find_floors(self.plan)
        self._build()

    def _build(self) -> None:
        self.updaters = []
        self.watched = watch(self.plan)
        for update in self.plan.updates:
            try:
                updater = make_updater(self.plan, update, self.settings)
            except Refused as error:
                self._demote(update, str(error))
                return
            if updater is not None:
                self.updaters.append(updater)
        self.lowered = lower_blocks(self.plan, self.updaters) if self.settings.e_step == "exact" else {}

    def _demote(self, update: Update, why: str) -> None:
        """A refused rule makes way for the next one on the ladder, and the plan says why."""
        updates = refused(self.plan.program, self.plan.updates, update, why)
        self.plan = replace(self.plan, updates=by_optimiser(updates) if self.settings.m_step_optim else updates)
        self._build()

    def evaluate(self, parameters: Parameters) -> EStep:
        """E-step of the chosen kind."""
        e = e_step(self.plan, parameters, self.lowered)
        if self.settings.e_step != "exact":
            refuse_variants(self.plan, self.settings.e_step)
            return harden(self.plan, parameters, e, self.settings.e_step, self.generator)
        return with_counts(self.plan, parameters, e)

    def hold(self, parameters: Parameters) -> Parameters:
        """Parameters under priors that are unbounded at a boundary, kept at their least distance from it."""
        return {n: self.floors[n].project(v) if n in self.floors else v for n, v in parameters.items()}

    def maximise(self, parameters: Parameters, e: EStep) -> Parameters:
        """M-step: every group in turn, each at the newest values of the others."""
        new = dict(parameters)
        for updater in list(self.updaters):
            try:
                if isinstance(updater, ClosedForm) and not updater.verified:
                    prove(self.plan, self.lowered, updater, parameters, e)
                new.update(updater.step(new, e))
            except LostPrecision:  # the statistics do not suffice: this step is made from the data themselves
                e = e_step(self.plan, parameters)
                new.update(updater.step(new, e))
            except Refused as error:
                self._demote(updater.update, str(error))
                return self.maximise(parameters, self.evaluate(parameters) if e.moments else e)
        return new

    def space(self, parameters: Parameters) -> Space:
        """Coordinates in which extrapolations are made; ``parameters`` are the current values."""
        return Space({n: p.constraint for n, p in self.plan.program.parameters.items() if not p.frozen})

    def states(self, start: Parameters) -> Iterator[State]:
        """States of a run from a start; the last one carries a status."""
        return run_em(self, start)


def run_em(machine: Machine, start: Parameters) -> Iterator[State]:
    """States of EM from a start; the last one carries a status.

    Args:
        machine: plan and updaters.
        start: constrained values.
    """
    settings = machine.settings
    start = machine.hold(start)
    e = machine.evaluate(start)
    state = _state(machine, 0, start, e)
    if not math.isfinite(state.objective):
        yield replace(state, status=Status.NON_FINITE)
        return
    if settings.max_steps == 0 or not machine.updaters:
        yield replace(state, status=Status.EVALUATED if settings.max_steps == 0 else Status.CONVERGED, remaining=0.0)
        return
    accelerator = _accelerator(settings)
    stopping = Stopping(settings.tol, state.objective, _precision(start), accelerator is not None)
    while True:
        yield state
        previous = state
        try:
            state = _advance(machine, previous, None if stopping.confirming else accelerator)
        except (ValueError, RuntimeError) as error:
            if not is_numerical(error):
                raise
            yield replace(previous, status=Status.DEGENERATE, detail=str(error).split("\n")[0])
            return
        status, detail = _terminal(machine, previous, state)
        detail = detail or described(machine.floors, state.parameters)
        remaining = stopping.update(state.objective, previous.parameters, state.parameters)
        if status is None and stopping.satisfied:
            where = empty(machine.plan, state.e)
            status, detail = (Status.DEGENERATE, where) if where else (Status.CONVERGED, detail)
        if status is None and state.step >= settings.max_steps:
            status = Status.ALL_STEPS if settings.tol == 0 else Status.OUT_OF_STEPS
        if status in (Status.NON_FINITE, Status.DEGENERATE, Status.NOT_MONOTONE):
            state = replace(previous, step=state.step)  # the values before it
        state = replace(state, remaining=remaining, status=status, detail=detail)
        if status is not None:
            yield state
            return


def _state(machine: Machine, step: int, parameters: Parameters, e: EStep) -> State:
    owed = divergent(machine.floors, parameters)
    return State(step, parameters, e.objective, e.log_likelihood, e.log_prior, e, machine.plan, divergent=owed)


def _advance(machine: Machine, state: State, accelerator: Accelerator | None) -> State:
    """One evaluation of the EM map, extrapolated where that pays; a refused extrapolation costs a second one."""
    new = machine.maximise(state.parameters, state.e)
    if accelerator is not None and state.step >= WARM_UP and state.step + 2 <= machine.settings.max_steps:
        jump = accelerator.propose(machine.space(new), state.parameters, new)
        if jump is not None:
            tried = _try_jump(machine, state, jump)
            accelerator.judged(tried is not None)
            return tried or _state(machine, state.step + 2, new, machine.evaluate(new))
    return _state(machine, state.step + 1, new, machine.evaluate(new))


def _accelerator(settings: EM) -> Accelerator | None:
    """The extrapolation that the settings ask for: of exact EM only, whose map is the same at every step."""
    if settings.accelerate is False or settings.e_step != "exact":
        return None
    return Daarem() if settings.accelerate == "daarem" else Squarem()


def _try_jump(machine: Machine, state: State, jump: Parameters) -> State | None:
    """The extrapolated point, if its objective is no worse than the current one."""
    try:
        jump = machine.hold(jump)
        e = machine.evaluate(jump)
        if not math.isfinite(e.objective) or e.objective < state.objective:
            return None
        if collapsed(machine.plan, jump, machine.watched):
            return None
        return _state(machine, state.step + 1, jump, e)
    except (ValueError, RuntimeError) as error:
        if not is_numerical(error):
            raise
        return None


def _terminal(machine: Machine, previous: State, state: State) -> tuple[Status | None, str]:
    if not math.isfinite(state.objective):
        return Status.NON_FINITE, ""
    where = collapsed(machine.plan, state.parameters, machine.watched)
    if where:
        return Status.DEGENERATE, where
    slack = ROUNDING * (1 + abs(previous.objective)) if _double(state) else 1e-4 * (1 + abs(previous.objective))
    if machine.settings.e_step == "exact" and state.objective < previous.objective - slack:
        return Status.NOT_MONOTONE, f"by {previous.objective - state.objective:.3g} nats at step {state.step}"
    return None, ""


def _double(state: State) -> bool:
    return all(t.dtype == torch.float64 for t in state.parameters.values())


def _precision(parameters: Parameters) -> float:
    """Relative spacing of numbers of the coarsest dtype among the parameters."""
    return max((torch.finfo(t.dtype).eps for t in parameters.values()), default=torch.finfo(torch.float64).eps)


def is_numerical(error: Exception) -> bool:
    """Whether an error is one of the arithmetic: a matrix that is not positive definite."""
    text = str(error).lower()
    return "linalg" in type(error).__name__.lower() or any(w in text for w in ("cholesky", "singular", "positive"))


def best_of(states: list[State]) -> int:
    """Index of the best outcome by :attr:`State.rank`: degenerate and undefined ones come last."""
    bad = (Status.DEGENERATE, Status.NON_FINITE, Status.NOT_MONOTONE)

    def key(i: int) -> tuple[bool, float]:
        value = states[i].rank
        return states[i].status not in bad, value if math.isfinite(value) else -math.inf

    return max(range(len(states)), key=key)


def tensor_history(values: list[float]) -> Tensor:
    """Objectives as a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)
