"""From a program with its data to a plan: traced, weighted, planned within the budget, handed on where it is too large."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_em.arguments import as_tensors
from ppl_em.errors import DataError, ModelError, message
from ppl_em.ir import Factor, Program
from ppl_em.ir.verify import verify_block, verify_program
from ppl_em.methods import EM, SVI, Auto
from ppl_em.mstep import weighted_mle
from ppl_em.plan.choice import Unaffordable
from ppl_em.plan.hyperparameters import refuse_hyperparameters
from ppl_em.plan.plan import Plan, make_plan
from ppl_em.plan.rules import by_optimiser
from ppl_em.trace.partly_labelled import PartlyLabelled
from ppl_em.trace.tracing import Source, trace_program


@dataclass(frozen=True)
class Planner:
    """What a plan depends on besides the program.

    Args:
        engines: exact engines in order of preference.
        em, svi, auto: settings.
        method: ``"auto"``, ``"em"`` or ``"svi"``.
        values: constrained values that the user gives for the model's parameters.
        frozen: names of parameters that are held fixed.
        weights: one weight per datum, or None.
        guided: latents that a guide draws.
        tracing: further options of tracing.
    """

    engines: tuple[Any, ...]
    em: EM
    svi: SVI
    auto: Auto
    method: str
    values: Mapping[str, Tensor]
    frozen: tuple[str, ...]
    weights: Tensor | None
    guided: tuple[str, ...]
    tracing: Mapping[str, Any]

    @property
    def budget(self) -> float:
        """Bytes that an E-step may use."""
        return self.auto.memory_bytes or memory_budget()

    def plan(self, source: Source) -> tuple[Source, Plan]:
        """The program as it will be run, and the plan.

        Raises:
            ModelError, DataError, PlanError: as :func:`ppl_em.fit`.
        """
        plan = self._affordable(source)
        run = plan.program.runner.source
        if isinstance(run.model, PartlyLabelled):  # queries and gradient steps run what was planned
            source = replace(source, model=run.model)
        if plan.method == "svi" and plan.program.axes:
            # Gradient steps run the program step by step: a time axis is unrolled.
            source = replace(source, time=None)
            plan = self._affordable(source)
        if plan.method == "svi":
            from ppl_em.svi.closed_form import admitted

            plan = admitted(plan, self.svi.closed_form and self.svi.loss == "elbo")
        elif self.em.m_step_optim is not None:
            plan = replace(plan, updates=by_optimiser(plan.updates))
        if plan.method != "svi":
            refuse_hyperparameters(plan)
        if self.em.globals == "variational" and self.method != "svi":
            from ppl_em.variational_em.plan import variational_plan

            plan = variational_plan(plan, rule_lookup, self.em)
        for entry in plan.blocks:
            verify_block(entry.block, plan.program)
        return source, replace(plan, meter=_analyze, map_space=self.em.map_space)

    def _affordable(self, source: Source) -> Plan:
        """The plan; blocks beyond the budget are left to variational inference, unless EM was asked for."""
        budget = self.budget
        limits = {"max_elements": budget / 16, "max_flops": self.auto.max_flops, "strict": self.method == "em"}
        declined: dict[str, str] = {}
        while True:
            program = trace_program(
                source,
                values=self.values,
                freeze=self.frozen,
                declined=declined,
                guided=self.guided,
                **limits,  # type: ignore[arg-type]
                **self.tracing,
            )
            _check_values(program, self.values)
            program = verify_program(program if self.weights is None else weighted(program, self.weights))
            try:
                return make_plan(
                    program,
                    self.engines,
                    rule_lookup,
                    max_bytes=budget,
                    max_flops=self.auto.max_flops,
                    method=self.method,
                    guided=self.guided,
                )
            except Unaffordable as error:
                if self.method == "em":
                    raise
                declined.update(dict.fromkeys(error.latents, str(error)))


def _analyze(plan: Plan) -> Any:
    from ppl_em.analysis import analyze

    return analyze(plan)


def rule_lookup(family: type) -> str | None:
    """What the registry of M-step rules promises for a family."""
    if family not in weighted_mle:
        return None
    return {True: "closed form", "newton": "newton", "ascent": "ascent", "em": "closed form"}[
        weighted_mle[family].exact
    ]


def memory_budget() -> float:
    """Bytes that an E-step may use where nothing else is said: a quarter of the machine's memory."""
    try:
        return 0.25 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 4e9


def _check_values(program: Program, values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        parameter = program.parameters.get(name)
        if parameter is None:
            hint = f"one of {sorted(program.parameters)}"
            raise ModelError(message("init names something that is not estimated", site=name, hint=hint))
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
