"""A fit that has been asked for: arguments checked, program traced, plan made, starting values known."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ppl_em.arguments import as_tensors, column_names
from ppl_em.errors import DataError, ModelError, NotAvailableYet, PlanError, message
from ppl_em.ir import Factor, Program
from ppl_em.methods import EM, SVI, Auto
from ppl_em.mstep import weighted_mle
from ppl_em.plan.plan import Plan, make_plan
from ppl_em.result import FitResult
from ppl_em.trace.tracing import Source, trace_program

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
    """

    source: Source
    plan: Plan
    em: EM
    svi: SVI
    values: dict[str, Tensor]
    init: str
    seed: int
    columns: list[list[str]]


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
    if guide is not None or kind == "svi":
        raise NotAvailableYet(message("variational inference is not available yet"))
    if em.globals == "variational":
        raise NotAvailableYet(message('EM(globals="variational") is not available yet', hint='globals="point"'))
    kwargs = dict(model_kwargs or {})
    if any(isinstance(a, DataLoader) for a in (*args, *kwargs.values())):
        raise NotAvailableYet(message("a DataLoader among the arguments is not available yet", hint="one tensor"))
    source = Source(model, as_tensors(args), as_tensors(kwargs), seed)
    values, init = initial_values(init)
    names = (freeze,) if isinstance(freeze, str) else tuple(freeze)
    budget = auto.memory_bytes or memory_budget()
    program = trace_program(source, values=values, freeze=names, max_elements=budget / 16)
    _check_values(program, values)
    if weights is not None:
        program = weighted(program, weights)
    plan = make_plan(program, em.engines or engines, rule_lookup, max_bytes=budget, method=kind)
    start = {n: p.init for n, p in program.parameters.items()}
    return Problem(source, plan, em, svi, start, init, seed, column_names(args, kwargs))


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


def rule_lookup(family: type) -> str | None:
    """What the registry of M-step rules promises for a family."""
    if family not in weighted_mle:
        return None
    return {True: "closed form", "newton": "newton", "ascent": "ascent"}[weighted_mle[family].exact]


def memory_budget() -> float:
    """Bytes that an E-step may use where nothing else is said: a quarter of the machine's memory."""
    try:
        return 0.25 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 4e9


def initial_values(init: Any) -> tuple[dict[str, Tensor], str]:
    """Values given by the user, and the kind of start: ``"auto"``, ``"params"`` or ``"data"``."""
    if isinstance(init, FitResult):
        return {**init.params, **init.point_estimates}, "params"
    if isinstance(init, Mapping):
        return {n: torch.as_tensor(as_tensors(v)).detach() for n, v in init.items()}, "params"
    if isinstance(init, str) and init in ("auto", "params", "data"):
        return {}, init
    shown = init if isinstance(init, str) else type(init).__name__
    hint = '"auto", "params", "data", a dict of values, or a result'
    raise PlanError(message("unknown init", value=shown, hint=hint))


def _check_values(program: Program, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameter = program.parameters.get(name)
        if parameter is None:
            hint = f"one of {sorted(program.parameters)}"
            raise ModelError(message("init names something that is not estimated", site=name, hint=hint))
        if not bool(torch.isfinite(value).all()):
            raise ModelError(message("the initial value is not finite", site=name))
        inside = torch.as_tensor(parameter.constraint.check(value))
        if not bool(inside.all()):
            why = f"its constraint is {parameter.constraint}"
            raise ModelError(message("the initial value is outside the constraint", site=name, why=why))


def weighted(program: Program, weights: Any) -> Program:
    """The program with one weight per datum as the scale of all sites in the outermost data plate."""
    given = torch.as_tensor(as_tensors(weights))
    plate = program.data_plate
    if plate is None:
        raise ModelError(message("weights need an outermost data plate", hint="pyro.plate around the data"))
    size = program.plates[plate].size
    if given.shape != (size,):
        shape = tuple(given.shape)
        why = f"the plate has {size} elements"
        raise DataError(message("weights must have one element per datum", site=plate, value=shape, why=why))
    if bool((given < 0).any()) or not bool(torch.isfinite(given).all()):
        raise DataError(message("weights must be finite and non-negative", site=plate))
    if not bool((given > 0).any()):
        raise DataError(message("all weights are zero", site=plate))
    factor = Factor(given.to(torch.get_default_dtype()), (plate,))
    sites = {
        n: replace(s, scale=factor if s.scale is None else s.scale * factor) if plate in s.plates else s
        for n, s in program.sites.items()
    }
    return replace(program, sites=sites)
