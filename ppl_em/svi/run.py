"""The loop of stochastic variational inference: step, look, stop; the best values are kept."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ppl_em.errors import message
from ppl_em.methods import SVI
from ppl_em.plan.plan import Plan
from ppl_em.status import Status
from ppl_em.svi.batch import Batch
from ppl_em.svi.batches import Batches, empty_loader
from ppl_em.svi.isolation import Isolation
from ppl_em.svi.setup import Setup, prepare
from ppl_em.svi.trainer import NonFinite, Trainer
from ppl_em.svi.variables import Snapshot
from ppl_em.trace.footprint import isolated
from ppl_em.trace.tracing import Source

#: Share of the newest estimate in the running one.
SMOOTHING = 0.1
#: Steps between two looks at least, where none are asked for.
LOOK_STEPS = 100
#: Draws per datum when the held-out bound is looked at; the same at every look.
LOOK_PARTICLES = 4


@dataclass(frozen=True)
class SVIState:
    """The loop's state after a step.

    Args:
        step: gradient steps so far.
        objective: running estimate of the bound on all data, nats.
        num_values: observed numbers in the data, for bits per observed value.
        held_out: newest bound per held-out datum, nats; None without validation.
        status: set on the last state.
        detail: what the status is about.
        trainer: gives the parameters; they change with the next step.
        stop: ends the fit after this state.
    """

    step: int
    objective: float
    num_values: int
    held_out: float | None = None
    status: Status | None = None
    detail: str = ""
    trainer: Trainer | None = field(default=None, repr=False)
    stop: Callable[[], None] = field(default=lambda: None, repr=False)

    @property
    def remaining(self) -> float:
        """Not known to a stochastic method."""
        return math.inf

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Constrained values of model and guide at this moment, by name."""
        assert self.trainer is not None
        return self.trainer.variables.detached()

    @property
    def bits(self) -> float:
        """Bits per observed value that the bound promises."""
        return -self.objective / math.log(2) / max(1, self.num_values)

    def describe(self) -> str:
        """A few words for a progress line."""
        text = f"bound {self.objective:.2f} nats, {self.bits:.4f} bits per value"
        return text if self.held_out is None else f"{text}, held out {self.held_out:.3f} nats per datum"


@dataclass(frozen=True)
class SVIOutcome:
    """Where stochastic variational inference ended.

    Args:
        parameters: the model's, constrained, by name; point estimates among them.
        guide_params: the guide's.
        history: running estimate of the bound on all data at the start and after each step, nats.
        objective: the bound on all data at the returned parameters, many draws per datum, nats.
        held_out: bound per held-out datum at each look, nats.
        status: how it ended.
        num_steps: gradient steps taken.
        detail: what the status is about.
        setup: everything that was trained, for queries.
    """

    parameters: dict[str, Tensor]
    guide_params: dict[str, Tensor]
    history: list[float]
    objective: float
    held_out: list[float]
    status: Status
    num_steps: int
    detail: str
    setup: Setup = field(repr=False)


def run_svi(
    source: Source,
    plan: Plan,
    settings: SVI,
    *,
    guide: Any = None,
    init: Mapping[str, Tensor] | None = None,
    weights: Tensor | None = None,
    seed: int = 0,
    every: int = 1,
    loader: tuple[int, Any] | None = None,
) -> Iterator[SVIState | SVIOutcome]:
    """States of stochastic variational inference, then its outcome.

    Args:
        source: the program and its data (a loader's first batch).
        plan: traced on all data, or on a loader's first batch.
        settings: of SVI.
        guide: the user's guide, None for the automatic one.
        init: constrained start values by name.
        weights: one weight per datum.
        seed: of all randomness.
        every: steps between two states.
        loader: where a loader stood among the arguments, and the loader.

    Yields:
        A state at the start and after every ``every`` steps; last the outcome. Between two states the caller's random
        state is in force.
    """
    isolation = Isolation(seed)
    with isolation():
        setup = prepare(source, plan, settings, guide, init or {}, weights, loader)
        loop = _Loop(setup, settings, seed)
        state = loop.start()
    yield state
    while loop.status is None:
        with isolation():
            loop.advance(every)
        yield loop.state()
    with isolation():
        outcome = loop.outcome()
    yield outcome


class _Loop:
    """Position of one fit between two states."""

    def __init__(self, setup: Setup, settings: SVI, seed: int) -> None:
        self.setup, self.settings, self.seed = setup, settings, seed
        self.trainer = setup.trainer
        self.status: Status | None = None
        self.detail = ""
        self.step = 0
        self.history: list[float] = []
        self.held_out: list[float] = []
        self._batches = _endless(setup.train)
        self._best: Snapshot = self.trainer.variables.snapshot()
        self._best_value = -math.inf
        self._since_look: list[float] = []
        self._waited = 0
        per_epoch = max(1, round(setup.train.num_data / max(1, setup.batch_size)))
        self._look_every = settings.check_every or max(per_epoch, LOOK_STEPS)

    def start(self) -> SVIState:
        """The bound at the start."""
        value = math.nan
        try:
            value = self.trainer.evaluate(self.setup.train.all(), 1)
        except KeyboardInterrupt:
            self.status = Status.INTERRUPTED
        self.history.append(value)
        if not math.isfinite(value) and self.status is None:
            self.status, self.detail = Status.NON_FINITE, self._culprit()
        elif self.settings.max_steps == 0:
            self.status = Status.EVALUATED
        elif self.trainer.optimiser is None and not self.trainer.closed:
            self.status = Status.CONVERGED
        return self.state()

    def _culprit(self) -> str:
        batch = next(iter(self.setup.train.all()))[1]
        _, terms = self.trainer.estimate(batch, 1)
        from ppl_em.svi.trainer import first_non_finite

        return f"site '{first_non_finite(terms)}'"

    def state(self) -> SVIState:
        """Where the loop stands."""
        newest = self.held_out[-1] if self.held_out else None
        return SVIState(
            self.step,
            self.history[-1],
            self.setup.num_values,
            newest,
            self.status,
            self.detail,
            self.trainer,
            self.stop,
        )

    def advance(self, count: int) -> None:
        """Take some steps; stops with a status."""
        try:
            for _ in range(count):
                self._one()
                if self.status is not None:
                    return
        except NonFinite as error:
            self.status, self.detail = Status.NON_FINITE, f"site '{error.site}'"
        except KeyboardInterrupt:
            self.status = Status.INTERRUPTED

    def _one(self) -> None:
        self.trainer.anneal(self.step)
        value = self.trainer.step(next(self._batches))
        self.step += 1
        last = self.history[-1]
        self.history.append(last + SMOOTHING * (value - last))
        self._since_look.append(value)
        if self.step % self._look_every == 0 or self.step == self.settings.max_steps:
            self._look()
        if self.status is None and self.step >= self.settings.max_steps:
            self.status = Status.ALL_STEPS

    def _look(self) -> None:
        """Judge the present values: by the held-out bound, else by the mean estimate since the last look."""
        if self.setup.held_out is not None:
            with isolated(self.seed + 1):
                value = self._held_out_bound()
            self.held_out.append(value)
        else:
            value = sum(self._since_look) / max(1, len(self._since_look))
        self._since_look = []
        if value > self._best_value:
            self._best_value, self._best, self._waited = value, self.trainer.variables.snapshot(), 0
        else:
            self._waited += 1
        if self.setup.held_out is not None and self._waited >= self.settings.patience:
            self.status = Status.HELD_OUT

    def _held_out_bound(self) -> float:
        assert self.setup.held_out is not None
        total, count = 0.0, 0
        for _, batch in self.setup.held_out.all():
            total += float(self.trainer.per_datum(batch, LOOK_PARTICLES).sum())
            count += batch.size
        return total / count

    def stop(self) -> None:
        """End the fit from outside."""
        self.status = self.status or Status.STOPPED

    def outcome(self) -> SVIOutcome:
        """Restore the best values and evaluate the bound at them."""
        if math.isfinite(self._best_value):
            self.trainer.variables.restore(self._best)
        if self.status in (Status.NON_FINITE, Status.INTERRUPTED) and not math.isfinite(self._best_value):
            self.trainer.variables.restore(self._best)
        try:
            objective = self.trainer.evaluate(self.setup.train.all(), self.settings.evaluation_particles)
        except KeyboardInterrupt:
            objective = self.history[-1]
        values = self.trainer.variables.detached()
        own = set(self.setup.plan.program.parameters)
        assert self.status is not None
        if self.trainer.stuck:
            stuck = f"{', '.join(self.trainer.stuck)}: the closed form did not hold at the last step"
            self.detail = "; ".join(filter(None, (self.detail, stuck)))
            warnings.warn(message(stuck, hint="SVI(closed_form=False)"), stacklevel=2)
        return SVIOutcome(
            parameters={n: v for n, v in values.items() if n in own},
            guide_params={n: v for n, v in values.items() if n not in own},
            history=self.history,
            objective=objective,
            held_out=self.held_out,
            status=self.status,
            num_steps=self.step,
            detail=self.detail,
            setup=self.setup,
        )


def _endless(batches: Batches) -> Iterator[Batch]:
    """Batches, epoch after epoch."""
    while True:
        empty = True
        for batch in batches.epoch():
            empty = False
            yield batch
        if empty:
            raise empty_loader()
