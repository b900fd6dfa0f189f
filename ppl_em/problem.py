"""A fit that has been asked for: arguments checked, program traced, plan made, starting values known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ppl_em.arguments import as_tensors, column_names
from ppl_em.dividing import divide
from ppl_em.em.partition import Parts
from ppl_em.errors import DataError, ModelError, NotAvailableYet, PlanError, message
from ppl_em.methods import EM, SVI, Auto
from ppl_em.plan.plan import Plan
from ppl_em.planner import Planner
from ppl_em.result import FitResult
from ppl_em.trace.footprint import isolated
from ppl_em.trace.run import run_program
from ppl_em.trace.tracing import Source, trace_program
from ppl_em.variational_em.continuing import check_hyperparameters, split_hyperparameters

_METHODS = '"auto", "em", "svi", EM(...), SVI(...), Auto(...)'


@dataclass(frozen=True)
class Problem:
    """A fit that has been asked for, checked and traced.

    Args:
        source: program and data.
        plan: what will be done.
        em: settings of EM.
        svi: settings of SVI.
        values: constrained start values.
        init: the user's choice of start: ``"auto"``, ``"params"`` or ``"data"``.
        seed: of all randomness.
        columns: column names of tables among the arguments.
        guide: the user's guide, for SVI.
        guide_values: constrained start values of the guide's parameters.
        weights: one weight per datum, for SVI (EM finds them as scales of the program's sites).
        loader: where a loader stood among the arguments, and the loader; ``source`` holds its first batch.
        tracing: how the program was traced, to trace it on other data.
        parts: the data in parts, where EM goes through them so.
        carried: averaged statistics of a fit that this one continues.
    """

    source: Source
    plan: Plan
    em: EM
    svi: SVI
    values: dict[str, Tensor]
    init: str
    seed: int
    columns: list[list[str]]
    guide: Any = None
    guide_values: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Tensor | None = None
    loader: tuple[int, Any] | None = None
    tracing: Mapping[str, Any] = field(default_factory=dict)
    parts: Parts | None = None
    carried: Any = None


def pose(
    model: Any,
    args: tuple[Any, ...],
    engines: tuple[Any, ...],
    *,
    guide: Any = None,
    method: Any = "auto",
    init: Any = "auto",
    freeze: Sequence[str] = (),
    weights: Any = None,
    model_kwargs: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Problem:
    """Check what a user asks for, trace the program and plan the fit.

    Args:
        model, args: the program and its positional arguments.
        engines: exact engines, unless the method names its own.
        guide, method, init, freeze, weights, model_kwargs, seed: as for :func:`ppl_em.fit`.

    Raises:
        ModelError, DataError, PlanError: as :func:`ppl_em.fit`.
    """
    if not callable(model):
        raise ModelError(message("the model is not callable", value=type(model).__name__, hint="fit(model, *args)"))
    em, svi, auto, kind = settings_of(method)
    kwargs = dict(model_kwargs or {})
    source, loader = _source(model, args, kwargs, seed)
    carried = init._averages if isinstance(init, FitResult) else None
    if isinstance(init, Mapping):
        init = conformed(source, init)
    carried_factors = init.guide_params if em.globals == "variational" and isinstance(init, FitResult) else {}
    values, init = initial_values(init)
    factors: dict[str, Tensor] = {}
    if em.globals == "variational":
        values, factors = split_hyperparameters({**values, **carried_factors})
    names = (freeze,) if isinstance(freeze, str) else tuple(freeze)
    tracing, guide_values = _guided(guide, source, svi, kind, values, names)
    own = {n: v for n, v in values.items() if n not in guide_values}
    guided: tuple[str, ...] = tracing.pop("guided", ())
    frozen = tuple(n for n in names if n not in guide_values)
    chosen = "svi" if guide is not None else kind
    given = None if weights is None else torch.as_tensor(as_tensors(weights))
    planner = Planner(em.engines or engines, em, svi, auto, chosen, own, frozen, given, guided, tracing)
    source, plan = planner.plan(source)
    if em.globals == "variational" and loader is not None:
        what = 'EM(globals="variational") from a DataLoader is not available yet'
        raise NotAvailableYet(message(what, hint='one tensor, or globals="point"'))
    parts = None
    if plan.method == "em":
        try:
            plan, parts = divide(plan, planner, source, loader)
        except PlanError:
            if chosen == "em":
                raise
            source, plan = replace(planner, method="svi").plan(source)
    if plan.method == "svi":  # other data are treated alike
        tracing = {**tracing, "strict": False, "declined": dict(plan.program.refused), "guided": guided}
    check_hyperparameters(plan, factors)
    start = {**{n: p.init for n, p in plan.program.parameters.items()}, **factors}
    guides = {n: v for n, v in values.items() if n in guide_values}
    columns = column_names(args, kwargs)
    return Problem(
        source, plan, em, svi, start, init, seed, columns, guide, guides, given, loader, tracing, parts, carried
    )


def _source(
    model: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], seed: int
) -> tuple[Source, tuple[int, Any] | None]:
    """The program with its data, a loader's first batch in place of the loader; where it stood, and the loader."""
    source = Source(model, as_tensors(args), as_tensors(kwargs), seed)
    position = find_loader(args)
    if position is None:
        return source, None
    return first_batch(source, position), (position, args[position])


def _guided(
    guide: Any, source: Source, svi: SVI, kind: str, values: Mapping[str, Tensor], freeze: Sequence[str]
) -> tuple[dict[str, Any], set[str]]:
    """How to trace the program for what a guide (the user's or the automatic one) infers; the guide's parameters."""
    if kind == "em" and guide is not None:
        raise PlanError(message("EM takes no guide", hint='method="svi" or "auto"'))
    if guide is not None:
        from ppl_em.svi.user_guide import trace_guide

        seen = trace_guide(guide, source, values, freeze)
        tracing = {"variational": frozenset(seen.names), "coupled": seen.coupled, "guided": seen.names}
        return tracing, set(seen.parameters)
    if svi.globals == "mean-field" or (svi.globals is None and kind == "svi"):
        first = trace_program(source, witness=False, strict=False)
        points = frozenset(n for n, p in first.parameters.items() if p.origin == "site")
        return {"variational": points - set(freeze)}, set()
    return {}, set()


def find_loader(args: Sequence[Any]) -> int | None:
    """Position of a loader among positional arguments, None if there is none.

    Raises:
        PlanError: there are several.
    """
    found = [i for i, a in enumerate(args) if isinstance(a, DataLoader)]
    if len(found) > 1:
        raise PlanError(
            message("more than one DataLoader among the arguments", value=len(found), hint="one loader of tuples")
        )
    return found[0] if found else None


def first_batch(source: Source, position: int) -> Source:
    """The program with a loader's first batch in the place of the loader."""
    from ppl_em.svi.batches import call_arguments

    with isolated(source.seed):
        item = next(iter(source.args[position]), None)
    if item is None:
        raise DataError(message("the loader yields no batches"))
    args, kwargs = call_arguments(item, source, position)
    return Source(source.model, args, kwargs, source.seed, batch=True)


def settings_of(method: Any) -> tuple[EM, SVI, Auto, str]:
    """Settings of all algorithms and the kind of method: ``"auto"``, ``"em"`` or ``"svi"``."""
    if isinstance(method, str) and method in ("auto", "em", "svi"):
        return EM(), SVI(), Auto(), method
    if isinstance(method, EM):
        return method, SVI(), Auto(em=method), "em"
    if isinstance(method, SVI):
        return EM(), method, Auto(svi=method), "svi"
    if isinstance(method, Auto):
        return method.em, method.svi, method, "auto"
    shown = method if isinstance(method, str) else type(method).__name__
    raise PlanError(message("unknown method", value=shown, hint=_METHODS))


def initial_values(init: Any) -> tuple[dict[str, Tensor], str]:
    """Values given by the user, and the kind of start: ``"auto"``, ``"params"`` or ``"data"``."""
    if isinstance(init, FitResult):
        return {**init.params, **init.point_estimates}, "params"
    if isinstance(init, Mapping):
        values = {n: torch.as_tensor(as_tensors(v)).detach() for n, v in init.items()}
        for name, value in values.items():
            if not bool(torch.isfinite(value).all()):
                raise ModelError(message("the initial value is not finite", site=name))
        return values, "params"
    if isinstance(init, str) and init in ("auto", "params", "data"):
        return {}, init
    shown = init if isinstance(init, str) else type(init).__name__
    hint = '"auto", "params", "data", a dict of values, or a result'
    raise PlanError(message("unknown init", value=shown, hint=hint))


def conformed(source: Source, values: Mapping[str, Any]) -> dict[str, Any]:
    """Values that are given, in the program's precision where theirs is less; their shapes are the program's own.

    Raises:
        ModelError: one has another shape; named.
    """
    with isolated(source.seed):
        try:
            run = run_program(source.model, source.args, source.kwargs, time=source.time, compact=True)
        except Exception:  # not vectorised over its plates, or over the steps of a time loop
            try:
                run = run_program(source.model, source.args, source.kwargs, time=source.time)
            except Exception:
                if source.time is None:
                    raise
                run = run_program(source.model, source.args, source.kwargs)
    own = {n: p.value for n, p in run.parameters.items()}
    own |= {n: r.value for n, r in run.records.items() if r.role == "latent"}
    found = dict(values)
    for name, value in values.items():
        given = torch.as_tensor(as_tensors(value))
        if name not in own:
            continue
        if given.shape != own[name].shape:
            why = f"the program's own has shape {tuple(own[name].shape)}"
            shape = tuple(given.shape)
            raise ModelError(message("the initial value has another shape", site=name, value=shape, why=why))
        if given.is_floating_point() and own[name].is_floating_point():
            found[name] = given.to(torch.promote_types(given.dtype, own[name].dtype))
    return found
