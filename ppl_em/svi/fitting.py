"""From a posed problem to a result, by stochastic variational inference."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_em.checkpointing import Checkpoint
from ppl_em.em.e_step import e_step
from ppl_em.em.loop import Machine
from ppl_em.em.restarts import Start, make_starts
from ppl_em.em.structured import refuse_impossible
from ppl_em.errors import DataError, message
from ppl_em.free_parameters import num_parameters
from ppl_em.progress import Progress
from ppl_em.result import FitResult, Restart
from ppl_em.status import Status
from ppl_em.svi.result import ApproximateResult
from ppl_em.svi.run import SVIOutcome, SVIState, run_svi
from ppl_em.svi.update import Training
from ppl_em.trace.footprint import isolated

if TYPE_CHECKING:
    from ppl_em.problem import Problem

#: Steps between two looks at the progress where no callback wants to see every step.
STRIDE = 25
#: Starts of which the best is taken, where latents are summed and none was asked for.
NUM_STARTS = 10


@dataclass(frozen=True)
class Iterate:
    """A fit by SVI after a step.

    Args:
        step: gradient steps so far.
        params: constrained values of model and guide by name.
        objective: running estimate of the bound on all data, nats.
        held_out: newest bound per held-out datum, nats.
        status: set on the last one.
    """

    step: int
    params: dict[str, Tensor]
    objective: float
    held_out: float | None
    status: Status | None

    @classmethod
    def of(cls, state: SVIState) -> Iterate:
        """The public view of the loop's state; its tensors are copies."""
        return cls(state.step, state.parameters, state.objective, state.held_out, state.status)


def fit_svi(
    problem: Problem,
    restarts: int | None,
    progress: bool | None,
    coords: Mapping[str, Any],
    kept: Checkpoint | None = None,
) -> FitResult:
    """Fit a problem whose plan asks for SVI.

    Args:
        problem: program, data, plan and settings.
        restarts: number of starts; None runs one, from the best of several first guesses.
        progress: see :class:`~ppl_em.progress.Progress`.
        coords: labels of dimensions.
        kept: where the best values are kept while the fit runs.

    Raises:
        DataError: data without any hidden structure.
    """
    if not problem.plan.approximated:
        with isolated(problem.seed):
            refuse_impossible(problem.plan, problem.values)
    starts = _starts(problem, restarts)
    outcomes: list[tuple[Start, SVIOutcome]] = []
    with Progress(progress, len(starts), kept) as bar:
        for index, start in enumerate(starts):
            outcome = _run(problem, start, index, bar)
            outcomes.append((start, outcome))
            if outcome.status in (Status.INTERRUPTED, Status.STOPPED):
                break
    best = max(range(len(outcomes)), key=lambda i: _rank(outcomes[i][1]))
    seen = tuple(Restart(s.kind, o.objective, o.status, o.num_steps, False, dict(o.parameters)) for s, o in outcomes)
    outcome = outcomes[best][1]
    outcome.setup.trainer.variables.set({**outcome.parameters, **outcome.guide_params})
    if outcome.status is Status.NON_FINITE and problem.plan.structured:
        _refuse_impossible_batches(problem, outcome)
    return _result(problem, outcome, seen, coords)


def _refuse_impossible_batches(problem: Problem, outcome: SVIOutcome) -> None:
    """Name the data without any hidden structure in batches that were not at hand before the fit."""
    site = problem.plan.structured[0]
    with isolated(problem.seed), torch.no_grad():
        for number, (_, batch) in enumerate(outcome.setup.train.all()):
            bad = outcome.setup.trainer.per_datum(batch, 1).isneginf().nonzero().flatten().tolist()
            if bad:
                where = f"data {', '.join(map(str, bad[:5]))} of batch {number}"
                what = f"{len(bad)} of {batch.size} data have probability zero under {site.family}"
                hint = "leaving them out"
                raise DataError(message(what, site=site.name, value=where, hint=hint))


def _rank(outcome: SVIOutcome) -> tuple[bool, float]:
    finite = math.isfinite(outcome.objective)
    return finite and outcome.status is not Status.NON_FINITE, outcome.objective if finite else -math.inf


def _starts(problem: Problem, restarts: int | None) -> list[Start]:
    """Starting values; where latents are summed, first guesses from the data as for EM."""
    count = restarts or 1
    if problem.plan.approximated or not problem.plan.blocks or problem.init == "params":
        return [Start("params", problem.values)] * count
    with isolated(problem.seed):
        machine = Machine(problem.plan, problem.em, torch.Generator().manual_seed(problem.seed))
        starts = make_starts(machine, problem.values, problem.init, restarts or NUM_STARTS, problem.seed)
        if restarts is not None:
            return starts
        ranked = sorted(starts, key=lambda s: _height(problem, s), reverse=True)
    return ranked[:1]


def _height(problem: Problem, start: Start) -> float:
    value = e_step(problem.plan, start.values).objective
    return value if math.isfinite(value) else -math.inf


def _run(problem: Problem, start: Start, index: int, bar: Progress) -> SVIOutcome:
    callback: Callable[[Iterate], Any] | None = problem.svi.callback
    for state in _states(problem, start, index, 1 if callback is not None else STRIDE):
        if isinstance(state, SVIOutcome):
            return state
        bar.update(index, state)
        if callback is not None:
            try:
                callback(Iterate.of(state))
            except StopIteration:
                state.stop()
    raise AssertionError("the loop ended without an outcome")


def _states(problem: Problem, start: Start, index: int, every: int) -> Iterator[SVIState | SVIOutcome]:
    return run_svi(
        problem.source,
        problem.plan,
        problem.svi,
        guide=problem.guide,
        init={**start.values, **problem.guide_values},
        weights=problem.weights,
        seed=problem.seed + 7919 * index,
        every=every,
        loader=problem.loader,
    )


def iterate_svi(problem: Problem) -> Iterator[Iterate]:
    """States of a single start, one after every step."""
    for state in _states(problem, _starts(problem, None)[0], 0, 1):
        if isinstance(state, SVIState):
            yield Iterate.of(state)


def _result(
    problem: Problem, outcome: SVIOutcome, restarts: tuple[Restart, ...], coords: Mapping[str, Any]
) -> FitResult:
    from ppl_em.result import _observations

    plan = outcome.setup.plan
    program = plan.program
    points = {n: v for n, v in outcome.parameters.items() if program.parameters[n].origin == "site"}
    params = {n: v for n, v in outcome.parameters.items() if n not in points}
    common: dict[str, Any] = {
        "params": params,
        "point_estimates": points,
        "guide_params": outcome.guide_params,
        "objective": outcome.objective,
        "objective_name": "elbo",
        "log_likelihood": None,
        "exact": False,
        "plan": plan,
        "history": torch.tensor(outcome.history, dtype=torch.float64),
        "status": outcome.status,
        "num_steps": outcome.num_steps,
        "seed": problem.seed,
        "restarts": restarts,
        "num_parameters": num_parameters(program),
        "num_observations": round(outcome.setup.train.num_data) if problem.loader is not None else _observations(plan),
        "detail": outcome.detail,
        "_source": problem.source,
        "_coords": dict(coords),
        "_columns": problem.columns,
        "_model": problem.source.model,
        "_engines": problem.em.engines,
    }
    if not plan.approximated and problem.loader is None:
        with isolated(problem.seed):
            e = e_step(plan, outcome.parameters)
        name = "log_posterior" if points else "log_likelihood"
        exact = {
            "objective": e.objective,
            "objective_name": name,
            "log_likelihood": e.log_likelihood,
            "exact": plan.exact,
        }
        return FitResult(**{**common, **exact})
    return ApproximateResult(
        **common,
        held_out=tuple(outcome.held_out),
        num_values=outcome.setup.num_values,
        num_trained=outcome.setup.train.num_data,
        _run=outcome.setup.guide,
        _training=Training.of(outcome.setup.trainer, outcome.setup.train.num_data),
        _tracing=problem.tracing,
        _loader=problem.loader,
    )


__all__ = ["Iterate", "fit_svi", "iterate_svi"]
