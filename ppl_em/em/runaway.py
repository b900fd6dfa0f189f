"""Coefficients whose likelihood has no maximum: they are named in a warning."""

from __future__ import annotations

import warnings

from ppl_em.em.loop import Machine, State
from ppl_em.em.predictor import Predictors
from ppl_em.errors import message
from ppl_em.status import Status


def warn_of_runaways(machine: Machine, state: State) -> None:
    """Name the coefficients that would run off to infinity, had the steps not ended where they gain nothing.

    Args:
        machine: plan and updaters.
        state: the last state of the best run.
    """
    if state.status is not Status.CONVERGED:
        return
    for updater in machine.updaters:
        found = updater.runaway(state.parameters, state.e) if isinstance(updater, Predictors) else None
        if found is None:
            continue
        name, reach = found
        sites = ", ".join(f"'{m}'" for s in updater.sites for m in s.members[:1])
        why = f"the covariates separate some outcomes at {sites} perfectly: the likelihood has no maximum"
        hint = "a prior on the coefficients, or fewer covariates"
        text = message(
            "coefficients run off to infinity", site=name, value=f"linear predictor {reach:.3g}", why=why, hint=hint
        )
        warnings.warn(text, UserWarning, stacklevel=4)
