"""The M-step of coefficients of normal means: normal equations from designs."""

from __future__ import annotations

from torch import Tensor

from ppl_em.em.closed_form import Parameters
from ppl_em.em.e_step import EStep
from ppl_em.mstep.regression import Regression
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update


class LeastSquares:
    """Coefficients of linear predictors of normal means.

    Args:
        plan: the plan.
        update: its entry.
    """

    def __init__(self, plan: Plan, update: Update) -> None:
        self.update = update
        sites = {s.name: s for s in plan.sites()}
        sizes = dict(plan.program.sizes())
        for entry in plan.blocks:
            sizes.update(entry.block.sizes)
        self.sites = [sites[n] for n in update.sites]
        for site in self.sites:
            for factor in (site.value, *(a.value for a in site.arguments.values())):
                sizes.update({d: n for d, n in factor.sizes.items() if n > 1 or d not in sizes})
        self.regression = Regression(self.sites, update.parameters, sizes)

    def step(self, parameters: Parameters, e: EStep) -> Parameters:
        """New coefficients."""
        return self.regression.solved(*self.equations(parameters, e), parameters)

    def equations(self, parameters: Parameters, e: EStep) -> tuple[Tensor, Tensor]:
        """Normal equations: Σ w/σ² x xᵀ (P, P) and Σ w/σ² x (value − loc) (P,)."""
        known = {n: e.moments[n] for n in self.update.sites if n in e.moments}
        if len(known) == len(self.sites):
            return self.regression.equations_of(known, parameters)
        weights = {n: (e.weights[n].factor, e.weights[n].summed) for n in self.update.sites}
        return self.regression.equations(weights, parameters)
