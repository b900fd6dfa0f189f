"""From a plan to everything that the loop needs: guide, variables, trainer, batches."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_em.arguments import as_tensors
from ppl_em.errors import PlanError, message
from ppl_em.ir import Program
from ppl_em.methods import SVI
from ppl_em.plan.plan import Plan
from ppl_em.svi.automatic import AutomaticGuide
from ppl_em.svi.batch import Batch
from ppl_em.svi.batches import Batches, Cut, Loader, Rows, Whole, default_batch_size, split_rows
from ppl_em.svi.closed_form import WINDOW, admitted, averaged
from ppl_em.svi.guides import AutomaticRun, GuideRun
from ppl_em.svi.trainer import Trainer
from ppl_em.svi.user_guide import UserRun, check_guide, trace_guide
from ppl_em.svi.variables import Variables
from ppl_em.trace.footprint import isolated
from ppl_em.trace.run import run_program
from ppl_em.trace.tracing import Source


@dataclass(frozen=True)
class Setup:
    """A fit by SVI that is ready to run.

    Args:
        source: program and data.
        plan: the plan.
        guide: draws the sampled latents.
        trainer: takes gradient steps.
        train: the data to train on.
        held_out: data for early stopping, or None.
        batch_size: data in a step.
        num_values: observed numbers in the data to train on.
    """

    source: Source
    plan: Plan
    guide: GuideRun
    trainer: Trainer
    train: Batches
    held_out: Batches | None
    batch_size: int
    num_values: int


def prepare(
    source: Source,
    plan: Plan,
    settings: SVI,
    guide: Any,
    init: Mapping[str, Tensor],
    weights: Tensor | None,
    loader: tuple[int, Any] | None = None,
) -> Setup:
    """Build guide, variables and batches for a plan.

    Args:
        source: the program and its data.
        plan: the plan.
        settings: of SVI.
        guide: the user's guide, or None.
        init: constrained start values by name.
        weights: one weight per datum, or None.
        loader: where a loader stood among the arguments, and the loader.

    Raises:
        ModelError: the guide does not fit the program.
        PlanError: the settings cannot be had for these data.
    """
    program = plan.program
    run = _guide_run(source, program, settings, guide, init)
    if isinstance(run, UserRun):
        values = Variables({**program.parameters, **run.parameters}, init).detached()
        check_guide(run, source.model, Batch(source.args, source.kwargs, 1, keep_subsamples=source.batch), values)
    if loader is None:
        train, held_out, size = _data(source, plan, settings, run, weights)
    else:
        train, held_out, size = _loaded(source, plan, settings, loader, weights)
    seen = plan.program.plates[plan.program.data_plate].size if plan.program.data_plate is not None else 1
    count = round(num_values(plan) * train.num_data / seen) if plan.program.data_plate is not None else num_values(plan)
    trainer = _trainer(plan, source.model, run, settings, init, train)
    plan = trainer.plan
    return Setup(source, plan, run, trainer, train, held_out, size, count)


def _trainer(
    plan: Plan, model: Any, run: GuideRun, settings: SVI, init: Mapping[str, Tensor], train: Batches
) -> Trainer:
    """The trainer, with the closed forms that hold when they are tried on a first batch."""
    parameters = {**plan.program.parameters, **run.parameters}
    window = 1 if isinstance(train, Whole) and not plan.approximated else WINDOW
    refused: set[str] = set()
    while True:
        plan = admitted(plan, settings.closed_form and settings.loss == "elbo", refused)
        closed = averaged(plan, window)
        fixed = {n for group in closed for n in group.names}
        trainer = Trainer(plan, model, run, Variables(parameters, init, fixed), settings, closed)
        if not closed:
            return trainer
        failed = trainer.rehearse(next(iter(train.all()))[1])
        if not failed:
            return trainer
        refused |= set(failed)


def _loaded(
    source: Source, plan: Plan, settings: SVI, loader: tuple[int, Any], weights: Tensor | None
) -> tuple[Batches, Batches | None, int]:
    if weights is not None:
        raise PlanError(
            message("weights need all data in one call", hint="poutine.scale in the program, fed by the loader")
        )
    position, batches = loader
    train = Loader(batches, source, position, plan.program, settings.num_data)
    held: Batches | None = None
    if not isinstance(settings.validation, float):
        held = Loader(settings.validation, source, position, plan.program, None)
    elif settings.validation > 0:
        raise PlanError(message("a fraction of a loader cannot be held out", hint="SVI(validation=another_loader)"))
    plate = plan.program.data_plate
    return train, held, plan.program.plates[plate].size if plate is not None else 1


def _guide_run(source: Source, program: Program, settings: SVI, guide: Any, init: Mapping[str, Tensor]) -> GuideRun:
    if guide is None:
        automatic = AutomaticGuide(
            program, source, covariance=settings.covariance, hidden=settings.hidden, encoder=settings.encoder
        )
        return AutomaticRun(automatic, held=settings.loss == "elbo")
    if isinstance(guide, AutomaticGuide):
        return AutomaticRun(guide)
    return UserRun(guide, trace_guide(guide, source, init), program)


def num_values(plan: Plan) -> int:
    """Observed numbers: elements of all observed values."""
    return sum(s.value.tensor.numel() for s in plan.program.sites.values() if s.role == "observed")


def _data(
    source: Source, plan: Plan, settings: SVI, run: GuideRun, weights: Tensor | None
) -> tuple[Batches, Batches | None, int]:
    program = plan.program
    plate = program.data_plate
    size = program.plates[plate].size if plate is not None else 1
    observed, columns = None, ()
    if isinstance(run, AutomaticRun):
        guide: AutomaticGuide = run.callable
        start = {n: p.init for n, p in program.parameters.items()}
        observed, columns = guide.read(source.args, source.kwargs, start, source.batch), guide.columns
    batch_size = default_batch_size(size, _declared(source, program), settings.batch_size)
    fraction = settings.validation if isinstance(settings.validation, float) else 0.0
    given = _given(settings.validation, source, program, run) if not isinstance(settings.validation, float) else None
    if batch_size is None and fraction == 0.0:
        whole = Whole(
            Batch(
                source.args,
                source.kwargs,
                size,
                plate=plate,
                weights=weights,
                observed=observed,
                keep_subsamples=source.batch,
            )
        )
        return whole, given, size
    cut = Cut(source, program, observed, columns, weights)
    chosen = batch_size or size
    if fraction == 0.0:
        return Rows(cut, torch.arange(size), chosen), given, min(chosen, size)
    kept, held = split_rows(size, fraction, torch.Generator().manual_seed(source.seed))
    return Rows(cut, kept, chosen), Rows(cut, held, max(chosen, 1)), min(chosen, len(kept))


def _given(held_out: Any, source: Source, program: Program, run: GuideRun) -> Batches:
    """Held-out data that the user gives: the model's arguments."""
    args = as_tensors(held_out if isinstance(held_out, tuple) else (held_out,))
    plate = program.data_plate
    if plate is None:
        raise PlanError(message("held-out data need a plate around the data", hint='pyro.plate("data", len(x))'))
    with isolated(source.seed):
        start = {n: p.init for n, p in program.parameters.items()}
        records = run_program(
            source.model, args, source.kwargs, assign=lambda n, fn: start.get(n), parameters=start
        ).records
    frames = [f for r in records.values() for f in r.frames if f.name == plate]
    size = frames[0].size if frames else 1
    return Whole(Batch(args, source.kwargs, size, plate=plate))


def _declared(source: Source, program: Program) -> int | None:
    """Subsample size that the program's data plate declares."""
    if source.batch or program.data_plate is None:
        return None
    start = {n: p.init for n, p in program.parameters.items()}
    run = run_program(source.model, source.args, source.kwargs, assign=lambda n, fn: start.get(n), parameters=start)
    return run.declared.get(program.data_plate)
