"""Several starts of EM: all are tried a little, the best are run to their end, every outcome is kept.

Reference:
    Biernacki, C., Celeux, G. & Govaert, G. (2003). Choosing starting values for the EM algorithm for getting the
    highest likelihood in multivariate Gaussian mixture models. Computational Statistics & Data Analysis 41(3-4).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from ppl_em.em.annealing import anneal_starts
from ppl_em.em.loop import Machine, State, best_of
from ppl_em.em.split_merge import moves
from ppl_em.em.start import data_start, drawn_probabilities, perturb
from ppl_em.em.symmetry import broken
from ppl_em.em.table_starts import broken_tables, has_tables, random_tables
from ppl_em.em.updates import Parameters
from ppl_em.status import Status

#: Rounds of screening: steps that a start has taken, and number of starts that go on.
SCREENING = ((8, 6), (25, 3))
#: Starts by which screening begins.
SCREEN_KEEP = SCREENING[-1][1]
#: Ends that are foreseen closer than this are one and the same, nats.
SAME_BASIN = 1e-3
#: What a start is credited with beyond its objective: its foreseen gain, at most this many times its last one.
HORIZON = 20.0
#: Kinds of the starts from data, in turn.
KINDS = ("kmeans", "kmeans", "random", "kmeans", "quantile", "random")
#: The same for chains; "drawn" are random data with all probabilities drawn.
CHAIN_KINDS = ("kmeans", "drawn", "drawn", "window", "drawn", "quantile")
#: Further batches of starts that are drawn while no other start came within this many nats of the best end.
BATCHES, NEAR = 2, 0.1
#: Rounds of split-and-merge moves, and gain in nats that calls for another round.
MOVE_ROUNDS, MOVE_GAIN = 4, 1e-4


@dataclass(frozen=True)
class Start:
    """Where a run of EM begins.

    Args:
        kind: ``"kmeans"``, ``"quantile"``, ``"window"``, ``"random"`` (from data, or random tables), ``"params"`` (the program's own),
            ``"broken"`` (these, components that were alike moved apart), ``"perturbed"`` (moved), ``"split-merge"``,
            ``"annealed"``.
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


def make_starts(machine: Machine, base: Parameters, init: str, count: int, seed: int, first: int = 0) -> list[Start]:
    """Starting points.

    Args:
        machine: plan and updaters.
        base: the program's own (or the user's) values.
        init: ``"params"`` (these values, then random moves from them), ``"data"`` (from clusters of the data) or
            ``"auto"`` (data, with the program's own values second).
        count: number of starts.
        seed: of their randomness.
        first: number of starts that there are already.
    """
    chains = any(b.block.axis is not None for b in machine.plan.blocks)
    kinds = CHAIN_KINDS if chains else KINDS
    starts: list[Start] = []
    for i in range(first, first + count):
        generator = torch.Generator().manual_seed(seed * 7919 + i)
        if init == "params" or not machine.plan.blocks:
            starts.append(_without_data(machine, base, init, i, generator))
        elif init == "auto" and i == 1:
            starts.append(Start("params", perturb(machine.plan, base, generator, 0.05)))
        else:
            starts.append(_from_data(machine, base, generator, kinds[i % len(kinds)]))
    return anneal_starts(machine, starts, seed)


def _without_data(machine: Machine, base: Parameters, init: str, index: int, generator: torch.Generator) -> Start:
    """The program's own values or a random move from them; tables of a hidden structure are drawn at random."""
    if init == "params" or not has_tables(machine.updaters):
        if index == 0:
            values = base if machine.settings.max_steps == 0 else broken(machine.plan, base, generator)
            return Start("params" if values is base else "broken", values)
        return Start("perturbed", perturb(machine.plan, base, generator, 0.5))
    if init == "auto" and index == 0:
        return Start("params", broken_tables(machine.updaters, base, generator))
    return Start("random", random_tables(machine.updaters, base, generator))


def _from_data(machine: Machine, base: Parameters, generator: torch.Generator, kind: str) -> Start:
    base = random_tables(machine.updaters, base, generator)
    try:
        if kind == "drawn":
            near_data = data_start(machine, base, generator, "random")
            return Start("random", drawn_probabilities(machine.plan, near_data, generator))
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
        starts: where the runs begin, moves from their ends included.
    """

    machine: Machine
    observe: Observer
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    ended: Status | None = None
    starts: list[Start] = field(default_factory=list)

    def run(self, starts: list[Start], *, screen: bool, more: Callable[[int], list[Start]] | None = None) -> Outcome:
        """Run the starts; the best outcome.

        Args:
            starts: where to begin.
            screen: run all of them a little and only the best to their end, and make moves from there.
            more: further starts, given how many there are: where the best end was reached but once, there may be better.
        """
        limit = self.machine.settings.max_steps
        screening = screen and len(starts) > SCREEN_KEEP and limit > SCREENING[-1][0]
        self._batch(starts, limit, screening)
        for _ in range(BATCHES):
            if more is not None and screening and self.ended is None and self._alone():
                self._batch(more(len(self.starts)), limit, screening)
        asked = self.machine.settings.split_merge
        if asked or (asked is None and screening):
            self._move(limit)
        best = self.best()
        if self.ended is not None:
            best = replace(best, state=replace(best.state, status=self.ended))
        return best

    def _batch(self, starts: list[Start], limit: int, screening: bool) -> None:
        indices = list(range(len(self.starts), len(self.starts) + len(starts)))
        self.starts += starts
        for i in self._screen(indices) if screening else indices:
            if self.ended is None:
                self._complete(i, limit)

    def _alone(self) -> bool:
        """Whether the best end, a converged one, is foreseen for no other start."""
        best = self.best()
        near = [o for o in self.outcomes.values() if _foreseen(o) > best.state.rank - NEAR]
        return best.state.status is Status.CONVERGED and len(near) < 2

    def _move(self, limit: int) -> None:
        """Split-and-merge moves from the best optimum as long as they lead higher."""
        for _ in range(MOVE_ROUNDS):
            best = self.best()
            if self.ended is not None or best.state.status is not Status.CONVERGED:
                return
            first = len(self.starts)
            self.starts += [Start("split-merge", v) for v in moves(self.machine, best.state.parameters)]
            fresh = list(range(first, len(self.starts)))
            if limit > SCREENING[-1][0]:
                fresh = self._screen(fresh, known=best)
            for i in fresh:
                if self.ended is None:
                    self._complete(i, limit)
            if self.best().state.rank <= best.state.rank + MOVE_GAIN:
                return

    def best(self) -> Outcome:
        """The best outcome so far; degenerate and undefined ones come last.

        Starts that were dropped count only where none was finished: a rank that leaves out what held values owe to their
        priors may fall while the objective rises.
        """
        every = list(self.outcomes.values())
        outcomes = [o for o in every if not o.screened] or every
        return outcomes[best_of([o.state for o in outcomes])]

    def _screen(self, indices: list[int], known: Outcome | None = None) -> list[int]:
        """Run starts a little, fewer of them a little more; the indices of those that are worth finishing.

        Args:
            indices: of the starts.
            known: an optimum; what is foreseen to end there, or below it, is dropped.
        """
        settings, left = self.machine.settings, indices
        self.machine.settings = replace(settings, accelerate=False)
        try:
            for steps, keep in SCREENING:
                for i in left:
                    if self.ended is None and (i not in self.outcomes or _short_of_steps(self.outcomes[i].state)):
                        self._complete(i, steps)
                left = self._worthwhile([i for i in left if i in self.outcomes], keep, known)
        finally:
            self.machine.settings = settings
        unfinished = [i for i in indices if i in self.outcomes and _short_of_steps(self.outcomes[i].state)]
        for i in set(unfinished) - set(left):
            self.outcomes[i] = replace(self.outcomes[i], screened=True)
        return [i for i in left if i in unfinished]

    def _worthwhile(self, indices: list[int], keep: int, known: Outcome | None) -> list[int]:
        """The starts with the highest foreseen ends that are not the same."""
        chosen: list[int] = []
        ends = {i: _foreseen(self.outcomes[i]) for i in indices}
        for i in sorted(indices, key=lambda i: -ends[i]):
            same = any(abs(ends[i] - ends[j]) < SAME_BASIN for j in chosen)
            lower = known is not None and ends[i] < known.state.rank + SAME_BASIN
            if len(chosen) < keep and not same and not lower:
                chosen.append(i)
        return chosen

    def _complete(self, index: int, limit: int) -> None:
        """Run one start until it has taken ``limit`` steps, on from where screening left it."""
        start, before = self.starts[index], self.outcomes.get(index)
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


def _foreseen(outcome: Outcome) -> float:
    """Where a start will end: its rank and Aitken's remaining gain, as far as that can be believed."""
    state, history = outcome.state, outcome.history
    if state.rank != state.rank:
        return float("-inf")
    last = history[-1] - history[-2] if len(history) > 1 else 0.0
    return state.rank + max(0.0, min(state.remaining, HORIZON * last))


def _record(history: list[float], state: State, done: int) -> None:
    """history[i] is the objective after evaluation i of the map; an extrapolation that counts twice repeats it."""
    step = state.step + done
    while len(history) < step:
        history.append(history[-1])
    if len(history) == step:
        history.append(state.objective)
    else:
        history[step] = state.objective
