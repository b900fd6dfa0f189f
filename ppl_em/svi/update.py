"""One gradient step of a finished fit on new data, as a new result: the optimiser goes on where it was."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from ppl_em.arguments import as_tensors
from ppl_em.errors import PplEmError, message
from ppl_em.loaders import gathered
from ppl_em.methods import SVI
from ppl_em.status import Status
from ppl_em.svi.batch import Batch
from ppl_em.svi.closed_form import WINDOW, Averaged, admitted
from ppl_em.svi.guides import AutomaticRun, GuideRun
from ppl_em.svi.isolation import Isolation
from ppl_em.svi.saved_guide import describe
from ppl_em.svi.trainer import NonFinite, Trainer
from ppl_em.svi.variables import Variables
from ppl_em.trace.tracing import Source, trace_program

if TYPE_CHECKING:
    from ppl_em.plan.plan import Plan
    from ppl_em.svi.result import ApproximateResult


@dataclass(frozen=True)
class Training:
    """Where the training of a fit stands.

    Args:
        settings: of SVI.
        optimiser: its state, None where nothing is moved by gradients.
        closed: groups of parameters with a closed form, with their averaged statistics.
        num_data: number of data that the fit stands for.
    """

    settings: SVI
    optimiser: Mapping[str, Any] | None
    closed: tuple[Averaged, ...]
    num_data: float

    @classmethod
    def of(cls, trainer: Trainer, num_data: float) -> Training:
        """A copy of a trainer's state."""
        state = None if trainer.optimiser is None else copy.deepcopy(trainer.optimiser.state_dict())
        return cls(trainer.settings, state, tuple(map(_copied, trainer.closed)), num_data)


def _copied(group: Averaged) -> Averaged:
    """A group whose further steps leave the original alone; one batch does not stand for all data."""
    twin = copy.copy(group)
    twin._recent = deque(group._recent, maxlen=max(group._recent.maxlen or 1, WINDOW))
    return twin


def update_svi(result: ApproximateResult, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ApproximateResult:
    """The result after one gradient step on new data.

    The default optimiser steps at its full learning rate, one of the user's as its state says. The data at hand and the
    bound of the new result are those of the batch.

    Args:
        result: a fit by SVI.
        args, kwargs: the model's arguments, with the new data.

    Raises:
        PplEmError: the optimiser's state is not at hand (a loaded result), or the bound is not finite.
    """
    training = result._training
    if training is None or result._run is None:
        why = "the state of the optimiser is not saved with a fit"
        hint = "ppl_em.fit(model, data, init=result, method=SVI(...))"
        raise PplEmError(message("a loaded fit cannot be updated", why=why, hint=hint))
    data = as_tensors(gathered(args))
    source = Source(result._model, data, as_tensors(dict(kwargs)), result.seed, batch=result._loader is not None)
    with Isolation(result.seed + result.num_steps)():
        values = {**result.params, **result.point_estimates, **result.guide_params}
        program = trace_program(source, values=result._values, witness=False, **result._tracing)
        settings = training.settings
        plan = admitted(result._plan_of(program), settings.closed_form and settings.loss == "elbo")
        run = _fresh(result, plan, source, values)
        groups = list(map(_copied, training.closed))
        fixed = {n for group in groups for n in group.names}
        variables = Variables({**program.parameters, **run.parameters}, values, fixed)
        trainer = Trainer(plan, result._model, run, variables, settings, groups)
        _resume(trainer, training)
        plate = program.data_plate
        size = program.plates[plate].size if plate is not None else 1
        total = training.num_data + size
        plain = Batch(source.args, source.kwargs, size, plate=plate, keep_subsamples=source.batch)
        try:
            trainer.step(replace(plain, scale=total / size))
        except NonFinite as error:
            raise PplEmError(message("the bound of the batch is not finite", site=error.site)) from error
        objective = trainer.evaluate([(1.0, plain)], settings.evaluation_particles)
        new = variables.detached()
    return replace(
        result,
        params={n: new[n] for n in result.params},
        point_estimates={n: new[n] for n in result.point_estimates},
        guide_params={n: new[n] for n in result.guide_params},
        objective=objective,
        plan=plan,
        history=torch.cat([result.history, torch.tensor([objective], dtype=torch.float64)]),
        status=Status.ALL_STEPS,
        detail="",
        num_steps=result.num_steps + 1,
        num_observations=size,
        num_trained=total,
        _source=source,
        _loader=None,
        _run=run,
        _training=Training.of(trainer, total),
    )


def _fresh(result: ApproximateResult, plan: Plan, source: Source, values: Mapping[str, Any]) -> GuideRun:
    """The guide with weights of its own, so that the old result keeps its answers; a user's modules are trained in place."""
    run = result._run
    if not isinstance(run, AutomaticRun):
        return result._guide_on(plan, source)
    saved = replace(describe(run), given=copy.deepcopy(run.callable.given))
    return saved.restore(plan.program, source, values)


def _resume(trainer: Trainer, training: Training) -> None:
    """Give the optimiser its state back; the default one steps at its full rate again."""
    if trainer.optimiser is None or training.optimiser is None:
        return
    trainer.optimiser.load_state_dict(copy.deepcopy(dict(training.optimiser)))
    if training.settings.optim is None:
        for group in trainer.optimiser.param_groups:
            group["lr"] = training.settings.lr
