"""Several starts of EM: all are tried a little, the best are run to their end, every outcome is kept.

Reference:
    Biernacki, C., Celeux, G. & Govaert, G. (2003). Choosing starting values for the EM algorithm for getting the
    highest likelihood in multivariate Gaussian mixture models. Computational Statistics & Data Analysis 41(3-4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from ppl_em.em.loop import Machine, State, best_of
from ppl_em.em.start import data_start, perturb
from ppl_em.em.table_starts import broken_tables, has_tables, random_tables
from ppl_em.em.updates import Parameters
from ppl_em.status import Status

#: Steps by which starts are screened, and number of them that are run to their end.
SCREEN_STEPS, SCREEN_KEEP = 25, 3
#: Objectives closer than this after screening are one and the same basin, nats.
SAME_BASIN = 1e-7


@dataclass(frozen=True)
class Start:
    """Where a run of EM begins.

    Args:
        kind: ``"kmeans"``, ``"random"`` (from data, or random tables), ``"params"`` (the program's own),
            ``"perturbed"`` (moved).
        values: constrained values.
    """

    kind: str
    values: Parameters


@dataclass(frozen=True)
class Outcome:
    """Where a start ended.

    Args:
        start: how it began.
        state: last state; its step counts all evaluations of the EM map.
        history: objective at the start and after each evaluation of the map, nats.
        screened: it was dropped after a short run because others were ahead.
    """

    start: Start
    state: State
    history: tuple[float, ...]
    screened: bool = False


#: Called with a start's index and each of its states; True ends the fit.
Observer = Callable[[int, State], bool]


def make_starts(machine: Machine, base: Parameters, init: str, count: int, seed: int) -> list[Start]:
    """Starting points.

    Args:
        machine: plan and updaters.
        base: the program's own (or the user's) values.
        init: ``"params"`` (these values, then random moves from them), ``"data"`` (from clusters of the data) or
            ``"auto"`` (data, with the program's own values second).
        count: number of starts.
        seed: of their randomness.
    """
    starts: list[Start] = []
    for i in range(count):
        generator = torch.Generator().manual_seed(seed * 7919 + i)
        if init == "params" or not machine.plan.blocks:
            starts.append(_without_data(machine, base, init, i, generator))
        elif init == "auto" and i == 1:
            starts.append(Start("params", perturb(machine.plan, base, generator, 0.05)))
        else:
            starts.append(_from_data(machine, base, generator, "random" if i % 3 == 2 else "kmeans"))
    return starts


def _without_data(machine: Machine, base: Parameters, init: str, index: int, generator: torch.Generator) -> Start:
    """The program's own values or a random move from them; tables of a hidden structure are drawn at random."""
    if init == "params" or not has_tables(machine.updaters):
        if index == 0:
            return Start("params", base)
        return Start("perturbed", perturb(machine.plan, base, generator, 0.5))
    if init == "auto" and index == 0:
        return Start("params", broken_tables(machine.updaters, base, generator))
    return Start("random", random_tables(machine.updaters, base, generator))


def _from_data(machine: Machine, base: Parameters, generator: torch.Generator, kind: str) -> Start:
    base = random_tables(machine.updaters, base, generator)
    try:
        return Start(kind, data_start(machine, base, generator, kind))
    except (ValueError, RuntimeError):  # an M-step from these clusters is degenerate (a LinAlgError is a RuntimeError)
        return Start("perturbed", perturb(machine.plan, base, generator, 0.5))


@dataclass
class Runs:
    """The runs of one fit.

    Args:
        machine: plan, updaters and settings.
        observe: sees every state.
        outcomes: by index of the start.
        ended: None, or why all runs were ended early: ``INTERRUPTED`` or ``STOPPED``.
    """

    machine: Machine
    observe: Observer
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    ended: Status | None = None

    def run(self, starts: list[Start], *, screen: bool) -> Outcome:
        """Run the starts; the best outcome.

        Args:
            starts: where to begin.
            screen: run all of them a little and only the best to their end.
        """
        limit = self.machine.settings.max_steps
        screening = screen and len(starts) > SCREEN_KEEP and limit > SCREEN_STEPS
        for i in self._screen(starts) if screening else range(len(starts)):
            if self.ended is None:
                self._complete(i, starts[i], limit)
        best = self.best()
        if self.ended is not None:
            best = replace(best, state=replace(best.state, status=self.ended))
        return best

    def best(self) -> Outcome:
        """The best outcome so far; degenerate and undefined ones come last."""
        outcomes = list(self.outcomes.values())
        return outcomes[best_of([o.state for o in outcomes])]

    def _screen(self, starts: list[Start]) -> list[int]:
        """Run every start a little; the indices of those that are worth finishing."""
        settings = self.machine.settings
        self.machine.settings = replace(settings, accelerate=False)
        try:
            for i, start in enumerate(starts):
                if self.ended is None:
                    self._complete(i, start, SCREEN_STEPS)
        finally:
            self.machine.settings = settings
        unfinished = {i for i, o in self.outcomes.items() if _short_of_steps(o.state)}
        chosen: list[int] = []
        for i in sorted(self.outcomes, key=lambda i: -_rank(self.outcomes[i])):
            value = self.outcomes[i].state.objective
            same = any(abs(value - self.outcomes[j].state.objective) < SAME_BASIN for j in chosen)
            if len(chosen) < SCREEN_KEEP and not same:
                chosen.append(i)
        for i in unfinished - set(chosen):
            self.outcomes[i] = replace(self.outcomes[i], screened=True)
        return [i for i in chosen if i in unfinished]

    def _complete(self, index: int, start: Start, limit: int) -> None:
        """Run one start until it has taken ``limit`` steps, on from where screening left it."""
        before = self.outcomes.get(index)
        done = 0 if before is None else before.state.step
        history = [] if before is None else list(before.history)
        values = start.values if before is None else before.state.parameters
        state: State | None = None if before is None else replace(before.state, step=0)
        settings = self.machine.settings
        self.machine.settings = replace(settings, max_steps=limit - done)
        try:
            for state in self.machine.states(values):
                _record(history, state, done)
                if self.observe(index, replace(state, step=state.step + done)):
                    self.ended = Status.STOPPED
                    break
        except KeyboardInterrupt:
            if state is None and not self.outcomes:
                raise  # nothing to return yet
            self.ended = Status.INTERRUPTED
        finally:
            self.machine.settings = settings
        if state is not None:
            status = state.status or self.ended or Status.OUT_OF_STEPS
            last = replace(state, step=state.step + done, status=status)
            self.outcomes[index] = Outcome(start, last, tuple(history))


def _short_of_steps(state: State) -> bool:
    return state.status in (Status.OUT_OF_STEPS, Status.ALL_STEPS)


def _rank(outcome: Outcome) -> float:
    value = outcome.state.rank
    return value if value == value else float("-inf")


def _record(history: list[float], state: State, done: int) -> None:
    """history[i] is the objective after evaluation i of the map; an extrapolation that counts twice repeats it."""
    step = state.step + done
    while len(history) < step:
        history.append(history[-1])
    if len(history) == step:
        history.append(state.objective)
    else:
        history[step] = state.objective
