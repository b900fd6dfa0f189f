"""``fit``, ``explain`` and ``iterate``: the way from a program to a result."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_em.arguments import as_tensors, column_names
from ppl_em.bound import terms
from ppl_em.em.loop import Machine, State, best_of, run_em
from ppl_em.em.start import data_start, perturb
from ppl_em.errors import ModelError, NotAvailableYet, PlanError, message
from ppl_em.exact.chain import Chain
from ppl_em.exact.elimination import Elimination
from ppl_em.exact.mixture import Mixture
from ppl_em.ir import Factor, Program
from ppl_em.methods import EM, SVI, Auto
from ppl_em.mstep import weighted_mle
from ppl_em.plan.plan import Plan, make_plan
from ppl_em.posterior import Posterior
from ppl_em.progress import Progress
from ppl_em.result import FitResult, Restart
from ppl_em.status import Status
from ppl_em.trace.footprint import isolated
from ppl_em.trace.tracing import Source, trace_program

#: Exact engines in order of preference; the first that accepts a block within the budget takes it.
ENGINES: tuple[Any, ...] = (Mixture(), Chain(), Elimination())

#: Number of starts for programs with local latents, where none is asked for.
DEFAULT_RESTARTS = 10
#: Steps by which starts are screened, and number of them that are run to their end.
SCREEN_STEPS, SCREEN_KEEP = 25, 3


@dataclass(frozen=True)
class Problem:
    """A fit that has been asked for, checked and traced.

    Args:
        source: program and data.
        plan: what will be done.
        em: settings of EM.
        svi: settings of SVI.
        values: constrained start values.
        init: the user's choice of start.
        seed: of all randomness.
        columns: column names of tables among the arguments.
    """

    source: Source
    plan: Plan
    em: EM
    svi: SVI
    values: dict[str, Tensor]
    init: Any
    seed: int
    columns: list[list[str]]


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
    return _problem(model, args, **_accepted(options)).plan


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
        args: its positional arguments; arrays and tables become tensors.
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
        checkpoint: a path at which the state is kept (not available yet).
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
    if checkpoint is not None:
        raise NotAvailableYet(
            message("checkpoints are not available yet", hint="result.save(path) after the fit")
        )
    problem = _problem(
        model,
        args,
        guide=guide,
        method=method,
        init=init,
        freeze=freeze,
        weights=weights,
        model_kwargs=model_kwargs,
        seed=seed,
    )
    if problem.plan.method == "svi":
        raise NotAvailableYet(
            message("variational inference is not available yet", value=", ".join(problem.plan.approximated))
        )
    if verify:
        from ppl_em.verify import verify_plan

        problem = replace(problem, plan=verify_plan(problem.plan, problem.values))
    return _fit_em(problem, restarts, progress, coords)


@dataclass(frozen=True)
class Iterate:
    """What :func:`iterate` yields after every step.

    Args:
        step: evaluations of the EM map so far.
        params: constrained values by name, point estimates among them.
        objective, log_likelihood, log_prior: at these values, nats.
        status: set on the last one.
        plan: what is done.
    """

    step: int
    params: dict[str, Tensor]
    objective: float
    log_likelihood: float
    log_prior: float
    status: Status | None
    plan: Plan

    def posterior(self) -> Posterior:
        """Exact posterior over the latents at these values."""
        return Posterior(self.plan, self.params)

    def terms(
        self, params: Mapping[str, Tensor] | None = None, q: Mapping[str, Tensor] | None = None
    ) -> dict[str, float]:
        """The two readings of the bound, see :meth:`FitResult.terms`."""
        return terms(self.plan, {**self.params, **dict(params or {})}, {**self.params, **dict(q or {})})


def iterate(model: Any, *args: Any, **options: Any) -> Iterator[Iterate]:
    """The states of a single start, one after every step: for teaching, plotting and custom stopping.

    Args:
        model, args, options: as for :func:`fit`.

    Yields:
        States with ``step``, ``params``, ``objective``, ``posterior()`` and ``terms()``; the last has a ``status``.
    """
    problem = _problem(model, args, **_accepted(options))
    generator = torch.Generator().manual_seed(problem.seed)
    with isolated(problem.seed):
        machine = Machine(problem.plan, problem.em, generator)
        start = _starts(problem, machine, 1)[0][1]
    for state in _isolated_states(machine, start, problem.seed):
        yield Iterate(
            state.step,
            state.parameters,
            state.objective,
            state.log_likelihood,
            state.log_prior,
            state.status,
            state.plan,
        )


def _isolated_states(machine: Machine, start: dict[str, Tensor], seed: int) -> Iterator[State]:
    states = run_em(machine, start)
    while True:
        with isolated(seed):
            state = next(states, None)
        if state is None:
            return
        yield state


def _accepted(options: dict[str, Any]) -> dict[str, Any]:
    known = {"guide", "method", "init", "freeze", "weights", "model_kwargs", "seed"}
    ignored = {"restarts", "coords", "progress", "checkpoint", "verify"}
    unknown = set(options) - known - ignored
    if unknown:
        raise TypeError(f"unknown options {sorted(unknown)}; known are {sorted(known | ignored)}")
    return {k: v for k, v in options.items() if k in known}


def _settings(method: Any) -> tuple[EM, SVI, Auto, str]:
    if isinstance(method, str):
        if method not in ("auto", "em", "svi"):
            raise PlanError(
                message(
                    "unknown method", value=method, hint='"auto", "em", "svi", EM(...), SVI(...), Auto(...)'
                )
            )
        return EM(), SVI(), Auto(), method
    if isinstance(method, EM):
        return method, SVI(), Auto(em=method), "em"
    if isinstance(method, SVI):
        return EM(), method, Auto(svi=method), "svi"
    if isinstance(method, Auto):
        return method.em, method.svi, method, "auto"
    raise PlanError(
        message(
            "unknown method",
            value=type(method).__name__,
            hint='"auto", "em", "svi", EM(...), SVI(...), Auto(...)',
        )
    )


def rule_lookup(family: type) -> str | None:
    """What the registry of M-step rules promises for a family."""
    if family not in weighted_mle:
        return None
    return {True: "closed form", "newton": "newton", "ascent": "ascent"}[weighted_mle[family].exact]


def _memory_budget() -> float:
    import os

    try:
        return 0.25 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 4e9


def _problem(
    model: Any,
    args: tuple[Any, ...],
    *,
    guide: Any = None,
    method: Any = "auto",
    init: Any = "auto",
    freeze: Sequence[str] = (),
    weights: Any = None,
    model_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Problem:
    if not callable(model):
        raise ModelError(
            message("the model is not callable", value=type(model).__name__, hint="fit(model, *args)")
        )
    em, svi, auto, kind = _settings(method)
    if guide is not None or kind == "svi":
        raise NotAvailableYet(message("variational inference is not available yet"))
    if em.globals == "variational":
        raise NotAvailableYet(
            message('EM(globals="variational") is not available yet', hint='globals="point"')
        )
    kwargs = dict(model_kwargs or {})
    columns = column_names(args, kwargs)
    source = Source(model, as_tensors(args), as_tensors(kwargs), seed)
    values, kind_of_init = _initial_values(init)
    names = (freeze,) if isinstance(freeze, str) else tuple(freeze)
    budget = auto.memory_bytes or _memory_budget()
    program = trace_program(source, values=values, freeze=names, max_elements=budget / 16)
    _check_values(program, values)
    if weights is not None:
        program = _weighted(program, torch.as_tensor(as_tensors(weights)))
    plan = make_plan(program, em.engines or ENGINES, rule_lookup, max_bytes=budget, method=kind)
    start = {n: p.init for n, p in program.parameters.items()}
    return Problem(source, plan, em, svi, start, kind_of_init, seed, columns)


def _initial_values(init: Any) -> tuple[dict[str, Tensor], Any]:
    if isinstance(init, FitResult):
        return {**init.params, **init.point_estimates}, "params"
    if isinstance(init, Mapping):
        return {n: torch.as_tensor(as_tensors(v)).detach() for n, v in init.items()}, "params"
    if init not in ("auto", "params", "data"):
        raise PlanError(
            message(
                "unknown init", value=init, hint='"auto", "params", "data", a dict of values, or a result'
            )
        )
    return {}, init


def _check_values(program: Program, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameter = program.parameters.get(name)
        if parameter is None:
            raise ModelError(
                message(
                    "init names something that is not estimated",
                    site=name,
                    hint=f"one of {sorted(program.parameters)}",
                )
            )
        inside = parameter.constraint.check(value)
        if not bool(torch.as_tensor(inside).all()) and not bool(torch.isclose(value, parameter.init).all()):
            raise ModelError(
                message("the initial value is outside the constraint", site=name, value=parameter.constraint)
            )


def _weighted(program: Program, weights: Tensor) -> Program:
    plate = program.data_plate
    if plate is None:
        raise ModelError(message("weights need an outermost data plate", hint="pyro.plate around the data"))
    size = program.plates[plate].size
    if weights.shape != (size,):
        raise ModelError(
            message(
                "weights must have one element per datum",
                site=plate,
                value=tuple(weights.shape),
                why=f"the plate has {size}",
            )
        )
    if bool((weights < 0).any()) or not bool(torch.isfinite(weights).all()):
        raise ModelError(message("weights must be finite and non-negative", site=plate))
    factor = Factor(weights.to(torch.get_default_dtype()), (plate,))
    sites = {
        n: replace(s, scale=factor if s.scale is None else s.scale * factor) if plate in s.plates else s
        for n, s in program.sites.items()
    }
    return replace(program, sites=sites)


def _starts(problem: Problem, machine: Machine, count: int) -> list[tuple[str, dict[str, Tensor]]]:
    """(kind, values) of each start."""
    init, base = problem.init, problem.values
    has_latents = bool(problem.plan.blocks)
    starts: list[tuple[str, dict[str, Tensor]]] = []
    for i in range(count):
        generator = torch.Generator().manual_seed(problem.seed * 7919 + i)
        if init == "params" or not has_latents:
            starts.append(
                ("params", base) if i == 0 else ("perturbed", perturb(problem.plan, base, generator, 0.5))
            )
        elif init == "auto" and i == 1:
            starts.append(("params", perturb(problem.plan, base, generator, 0.05)))
        else:
            kind = "random" if i % 3 == 2 else "kmeans"
            try:
                starts.append((kind, data_start(machine, base, generator, kind)))
            except (torch.linalg.LinAlgError, ValueError, RuntimeError):
                starts.append(("perturbed", perturb(problem.plan, base, generator, 0.5)))
    return starts


def _fit_em(
    problem: Problem, restarts: int | None, progress: bool | None, coords: Mapping[str, Any] | None
) -> FitResult:
    explicit = restarts is not None
    if restarts is not None and restarts < 1:
        raise PlanError(message("restarts must be at least 1", value=restarts))
    several = problem.init != "params" and bool(problem.plan.blocks)
    count = restarts if restarts is not None else (DEFAULT_RESTARTS if several else 1)
    with isolated(problem.seed), Progress(progress, count) as bar:
        machine = Machine(problem.plan, problem.em, torch.Generator().manual_seed(problem.seed))
        starts = _starts(problem, machine, count)
        screen = (
            not explicit
            and count > SCREEN_KEEP
            and problem.em.max_steps > SCREEN_STEPS
            and problem.em.callback is None
        )
        runs = _Runs(problem, machine, bar)
        order = runs.screen(starts) if screen else list(range(count))
        for i in order:
            if runs.interrupted:
                break
            runs.complete(i, starts[i])
        best = runs.best()
        machine.plan.program.leaves(runs.outcomes[best].parameters)
    problem = replace(problem, plan=machine.plan)
    outcome = runs.outcomes[best]
    restarts_seen = tuple(
        Restart(
            starts[i][0],
            s.objective,
            s.status or Status.OUT_OF_STEPS,
            s.step,
            i in runs.screened_only,
            dict(s.parameters),
        )
        for i, s in sorted(runs.outcomes.items())
    )
    return FitResult.from_em(problem, outcome, runs.histories[best], restarts_seen, coords or {})


class _Runs:
    """Outcomes of the starts of one fit."""

    def __init__(self, problem: Problem, machine: Machine, bar: Progress) -> None:
        self.problem, self.machine, self.bar = problem, machine, bar
        self.outcomes: dict[int, State] = {}
        self.histories: dict[int, list[float]] = {}
        self.screened_only: set[int] = set()
        self.interrupted = False

    def screen(self, starts: list[tuple[str, dict[str, Tensor]]]) -> list[int]:
        """Run every start a little; the indices of those that are worth finishing."""
        settings = self.machine.settings
        self.machine.settings = replace(settings, max_steps=SCREEN_STEPS, accelerate=False)
        for i, start in enumerate(starts):
            self.complete(i, start)
            if self.interrupted:
                break
        self.machine.settings = settings
        ranked = sorted(self.outcomes, key=lambda i: -best_key(self.outcomes[i]))
        chosen: list[int] = []
        for i in ranked:
            same = any(abs(self.outcomes[i].objective - self.outcomes[j].objective) < 1e-7 for j in chosen)
            if len(chosen) < SCREEN_KEEP and not same:
                chosen.append(i)
        pending = [i for i in chosen if self.outcomes[i].status is Status.OUT_OF_STEPS]
        self.screened_only = {
            i for i in self.outcomes if self.outcomes[i].status is Status.OUT_OF_STEPS
        } - set(pending)
        return pending

    def complete(self, index: int, start: tuple[str, dict[str, Tensor]]) -> None:
        """Run one start to its end, or on from where screening left it."""
        earlier = self.outcomes.get(index)
        history = self.histories.setdefault(index, [])
        state = None
        offset = 0 if earlier is None else earlier.step
        try:
            for state in run_em(self.machine, start[1] if earlier is None else earlier.parameters):
                if earlier is None or state.step > 0:
                    _record(history, state, offset)
                self.bar.update(index, state)
                if self.problem.em.callback is not None and _stops(self.problem.em.callback, state):
                    state = replace(state, status=state.status or Status.STOPPED)
                    break
        except KeyboardInterrupt:
            self.interrupted = True
            if state is None:
                raise
            state = replace(state, status=Status.INTERRUPTED)
        assert state is not None
        self.outcomes[index] = replace(state, step=state.step + offset)

    def best(self) -> int:
        """Index of the best outcome."""
        keys = list(self.outcomes)
        return keys[best_of([self.outcomes[i] for i in keys])]


def best_key(state: State) -> float:
    """Objective, with undefined ones last."""
    return state.objective if math.isfinite(state.objective) else -math.inf


def _record(history: list[float], state: State, offset: int) -> None:
    """history[i] is the objective after evaluation i of the map; an extrapolation that counts twice repeats it."""
    step = state.step + offset
    if len(history) == step + 1 and state.status is not None:
        history[step] = state.objective
        return
    while len(history) < step:
        history.append(history[-1])
    if len(history) == step:
        history.append(state.objective)


def _stops(callback: Any, state: State) -> bool:
    try:
        callback(state)
    except StopIteration:
        return True
    return False
