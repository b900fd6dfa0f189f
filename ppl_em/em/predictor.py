"""The M-step of coefficients of linear predictors in other than normal means: generalised linear models."""

from __future__ import annotations

from torch import Tensor

from ppl_em.em.closed_form import Parameters, check_density
from ppl_em.em.e_step import EStep, weighted_log_factor
from ppl_em.em.live_sites import with_run_values
from ppl_em.ir import Factor, Site
from ppl_em.mstep.predictor import Coefficients, Score
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update


class Predictors:
    """Coefficients of logistic and multinomial gates, of Poisson and Gamma regressions, of scales.

    Args:
        plan: the plan.
        update: its entry.
    """

    def __init__(self, plan: Plan, update: Update) -> None:
        self.plan, self.update = plan, update
        sites = {s.name: s for s in plan.sites()}
        self.sites = [sites[n] for n in update.sites]
        self.verified = False

    def step(self, parameters: Parameters, e: EStep) -> Parameters:
        """The maximiser of Q over these coefficients.

        Raises:
            Refused: the densities do not follow from their arguments.
        """
        filled = with_run_values(self.plan, self.sites, parameters)
        if not self.verified:
            check_density(self.plan, self.sites, filled, parameters)
            self.verified = True
        return Coefficients(filled, self.update.parameters, parameters).maximise(self._score(e))

    def runaway(self, parameters: Parameters, e: EStep) -> tuple[str, float] | None:
        """The coefficient that runs off to infinity and the largest linear predictor, None where none does."""
        filled = with_run_values(self.plan, self.sites, parameters)
        return Coefficients(filled, self.update.parameters, parameters).runaway(self._score(e))

    def _score(self, e: EStep) -> Score:
        original = {s.name: s for s in self.sites}

        def score(site: Site, factor: Factor) -> Tensor:
            return weighted_log_factor(self.plan, original[site.name], factor, e.weights[site.name])

        return score
