"""``fit``, ``explain`` and ``iterate``: the way from a program to a result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from ppl_em.checkpointing import Checkpoint
from ppl_em.em.loop import Machine, State
from ppl_em.em.restarts import Outcome, Runs, make_starts
from ppl_em.em.runaway import warn_of_runaways
from ppl_em.em.stepwise import settled
from ppl_em.em.structured import refuse_impossible
from ppl_em.em.updates import Parameters
from ppl_em.errors import NotAvailableYet, PlanError, message
from ppl_em.exact.chain import Chain
from ppl_em.exact.elimination import Elimination
from ppl_em.exact.mixture import Mixture
from ppl_em.iterates import Iterate
from ppl_em.parted import begun, machine_for, of_parts
from ppl_em.plan.plan import Plan
from ppl_em.planner import rule_lookup
from ppl_em.problem import Problem, pose
from ppl_em.progress import Progress
from ppl_em.result import FitResult, Restart
from ppl_em.status import Status
from ppl_em.svi.fitting import fit_svi, iterate_svi
from ppl_em.trace.footprint import isolated
from ppl_em.variational_em.machine import VariationalMachine, make_machine
from ppl_em.variational_em.result import VariationalResult

#: Exact engines in order of preference; the first that accepts a block within the budget takes it.
ENGINES: tuple[Any, ...] = (Mixture(), Chain(), Elimination())

#: Number of starts for programs with summed latents, where none is asked for.
DEFAULT_RESTARTS = 10


def explain(model: Any, *args: Any, **options: Any) -> Plan:
    """What ``fit`` would do, without doing it: a few runs of the model, no inference.

    Args:
        model: any Pyro callable.
        args: its arguments.
        options: as for :func:`fit`.

    Returns:
        The plan; ``print`` it.

    Raises:
        ModelError, DataError, PlanError: as :func:`fit`.
    """
    return pose(model, args, ENGINES, **_accepted(options)).plan


def fit(
    model: Any,
    *args: Any,
    guide: Any = None,
    method: Any = "auto",
    init: Any = "auto",
    restarts: int | None = None,
    freeze: Sequence[str] = (),
    weights: Any = None,
    model_kwargs: Mapping[str, Any] | None = None,
    coords: Mapping[str, Any] | None = None,
    seed: int = 0,
    progress: bool | None = None,
    checkpoint: Any = None,
    verify: bool = False,
) -> FitResult:
    """Fit a Pyro program the best way that its structure allows.

    Args:
        model: any Pyro callable; no annotation is needed.
        args: its positional arguments; arrays and tables become tensors. Of a ``DataLoader`` each batch is one call of the
            model: sites in the data plate add up over batches, others are counted once.
        guide: a Pyro guide, for SVI.
        method: ``"auto"``, ``"em"``, ``"svi"``, or an :class:`EM`, :class:`SVI` or :class:`Auto` with settings.
        init: ``"auto"``, ``"params"`` (the program's own values), ``"data"``, values by name, or a result to continue.
        restarts: number of starts; None leaves it to the method.
        freeze: names of parameters held fixed.
        weights: one non-negative weight per datum (element of the outermost data plate).
        model_kwargs: keyword arguments of the model.
        coords: labels of dimensions, for tables and ArviZ.
        seed: of all randomness.
        progress: show progress; None shows it in a terminal when the fit takes long.
        checkpoint: a file in which the best values so far are kept (every 20 seconds, and at the end). If it exists, the
            fit goes on from there, as a single start; a file of another program or other data is refused.
        verify: check the engines against brute force on a shrunken copy.

    Returns:
        The result at the best optimum found.

    Raises:
        ModelError: the program cannot be read.
        DataError: the data cannot be scored.
        PlanError: what was asked for cannot be had; the site is named.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def coin(x):
        ...     p = pyro.param("p", torch.tensor(0.5), constraint=dist.constraints.unit_interval)
        ...     with pyro.plate("tosses", len(x)):
        ...         pyro.sample("x", dist.Bernoulli(p), obs=x)
        >>> round(float(fit(coin, torch.tensor([1.0, 1.0, 0.0, 1.0])).params["p"]), 4)
        0.75
    """
    if restarts is not None and restarts < 1:
        raise PlanError(message("restarts must be at least 1", value=restarts))
    options = {"guide": guide, "method": method, "init": init, "freeze": freeze, "weights": weights}
    problem = pose(model, args, ENGINES, **options, model_kwargs=model_kwargs, seed=seed)
    kept = None if checkpoint is None else Checkpoint.open(checkpoint)
    if kept is not None:
        problem, restarts = _resumed(problem, kept, restarts)
    if problem.plan.method == "svi":
        return fit_svi(problem, restarts, progress, coords or {}, kept)
    if verify:
        from ppl_em.verify import verify_plan

        plan = verify_plan(problem.plan, problem.values, problem.em.engines or ENGINES, rule_lookup)
        problem = replace(problem, plan=plan)
    return _fit_em(problem, restarts, progress, coords or {}, kept)


def _resumed(problem: Problem, kept: Checkpoint, restarts: int | None) -> tuple[Problem, int | None]:
    """The problem as its checkpoint left it, and the number of starts."""
    if problem.em.globals == "variational" and problem.plan.method == "em":
        hint = "result.save(path) after the fit"
        raise NotAvailableYet(message("checkpoints of variational Bayes are not available yet", hint=hint))
    kept.of(problem.plan)
    if not kept.values:
        return problem, restarts
    own = {n: v for n, v in kept.values.items() if n in problem.values}
    guide = {n: v for n, v in kept.values.items() if n not in own}
    values = {**problem.values, **own}
    return replace(problem, values=values, guide_values={**problem.guide_values, **guide}, init="params"), 1


def iterate(model: Any, *args: Any, **options: Any) -> Iterator[Any]:
    """The states of a single start, one after every step: for teaching, plotting and custom stopping.

    Args:
        model, args, options: as for :func:`fit`.

    Yields:
        States with ``step``, ``params``, ``objective``, ``posterior()`` and ``terms()``; the last has a ``status``.
    """
    problem = pose(model, args, ENGINES, **_accepted(options))
    if problem.plan.method == "svi":
        yield from iterate_svi(problem)
        return
    generator = torch.Generator().manual_seed(problem.seed)
    with isolated(problem.seed), torch.enable_grad():
        refuse_impossible(problem.plan, problem.values)
        machine = make_machine(problem.plan, problem.em, generator)
        start = begun(problem, make_starts(machine, problem.values, problem.init, 1, problem.seed))[0]
        machine = machine_for(problem, machine)
    for state in _isolated_states(machine, start.values, problem.seed):
        yield Iterate.of(state)


def _isolated_states(machine: Machine, start: Parameters, seed: int) -> Iterator[State]:
    states = machine.states(start)
    while True:
        with isolated(seed), torch.enable_grad():
            state = next(states, None)
        if state is None:
            return
        yield state


def _accepted(options: dict[str, Any]) -> dict[str, Any]:
    """The options that matter before the first step; an unknown one is an error."""
    known = {"guide", "method", "init", "freeze", "weights", "model_kwargs", "seed"}
    others = {"restarts", "coords", "progress", "checkpoint", "verify"}
    unknown = set(options) - known - others
    if unknown:
        raise TypeError(f"unknown options {sorted(unknown)}; known are {sorted(known | others)}")
    return {k: v for k, v in options.items() if k in known}


def _fit_em(
    problem: Problem,
    restarts: int | None,
    progress: bool | None,
    coords: Mapping[str, Any],
    kept: Checkpoint | None = None,
) -> FitResult:
    several = (
        problem.em.variant == "batch"
        and problem.init != "params"
        and (bool(problem.plan.blocks) or problem.plan.tabulated)
    )
    count = restarts if restarts is not None else (DEFAULT_RESTARTS if several else 1)
    with isolated(problem.seed), torch.enable_grad(), Progress(progress, count, kept) as bar:
        refuse_impossible(problem.plan, problem.values)
        machine = make_machine(problem.plan, problem.em, torch.Generator().manual_seed(problem.seed))
        more = partial(make_starts, machine, problem.values, problem.init, count, problem.seed)
        starts = begun(problem, more(0))
        machine = machine_for(problem, machine)
        runs = Runs(machine, _observer(bar, problem.em.callback))
        best = runs.run(starts, screen=restarts is None, more=more)
        best = replace(best, state=settled(machine, best.state))
        machine.plan.program.leaves(best.state.parameters)  # modules hold the returned values
        if problem.parts is None:
            warn_of_runaways(machine, best.state)
    outcomes = tuple(_restart(runs.outcomes[i]) for i in sorted(runs.outcomes))
    problem = replace(problem, plan=machine.plan)
    kind = VariationalResult if isinstance(machine, VariationalMachine) else FitResult
    result = kind.from_em(problem, best.state, list(best.history), outcomes, coords)
    return result if problem.parts is None else of_parts(result, machine, problem)


def _observer(bar: Progress, callback: Callable[[Iterate], Any] | None) -> Callable[[int, State], bool]:
    """Shows every state and hands it to the user's callback; True where that asks to stop."""

    def observe(index: int, state: State) -> bool:
        bar.update(index, state)
        if callback is None:
            return False
        try:
            callback(Iterate.of(state, index))
        except StopIteration:
            return True
        return False

    return observe


def _restart(outcome: Outcome) -> Restart:
    state, start = outcome.state, outcome.start
    status = state.status or Status.OUT_OF_STEPS
    return Restart(start.kind, state.objective, status, state.step, outcome.screened, dict(state.parameters))


__all__ = ["ENGINES", "Iterate", "explain", "fit", "iterate"]
