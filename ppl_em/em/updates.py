"""The M-step of a plan: one updater for each group of parameters."""

from __future__ import annotations

from typing import Protocol

from ppl_em.em.climb import Gradient, Newton
from ppl_em.em.closed_form import KKT_TOLERANCE, VERIFY_DATA, ClosedForm, Parameters, Refused
from ppl_em.em.conjugate import Conjugate
from ppl_em.em.e_step import EStep
from ppl_em.em.held import find_floors
from ppl_em.em.least_squares import LeastSquares
from ppl_em.em.lookup import LookupForm, lookup_of
from ppl_em.em.predictor import Predictors
from ppl_em.em.ridge import Ridge
from ppl_em.em.tables import Tables
from ppl_em.ir import Site
from ppl_em.methods import EM
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update
from ppl_em.plan.structured import structured


class Updater(Protocol):
    """One step of the M-step: new values of a group of parameters, none of which lowers Q."""

    update: Update
    sites: list[Site]

    def step(self, parameters: Parameters, e: EStep) -> Parameters:
        """New values of the group's parameters at the newest values of all others."""
        ...


def make_updater(plan: Plan, update: Update, settings: EM) -> Updater | None:
    """What carries out one entry of the plan; None for frozen parameters.

    Args:
        plan: the plan.
        update: the entry.
        settings: of EM.

    Raises:
        Refused: the entry's rule does not apply to this program.
    """
    if update.by == "family":
        tables = any(structured(s) for s in plan.sites() if s.name in update.sites)
        lookup = None if tables else lookup_of(plan, update)
        if lookup is not None:
            return LookupForm(plan, update, lookup)
        return Tables(plan, update) if tables else ClosedForm(plan, update)
    if update.by == "conjugate":
        return Conjugate(plan, update, find_floors(plan))
    if update.by == "ridge":
        return Ridge(plan, update)
    if update.by == "regression":
        return LeastSquares(plan, update)
    if update.by == "predictor":
        return Predictors(plan, update)
    if update.by == "objective":
        return Newton(plan, update, settings) if update.rule == "newton" else Gradient(plan, update, settings)
    return None


__all__ = [
    "KKT_TOLERANCE",
    "VERIFY_DATA",
    "ClosedForm",
    "Conjugate",
    "Gradient",
    "LeastSquares",
    "Newton",
    "Parameters",
    "Predictors",
    "Refused",
    "Ridge",
    "Updater",
    "make_updater",
]
