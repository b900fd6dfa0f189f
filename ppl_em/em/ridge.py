"""The M-step of coefficients of normal means under normal priors: ridge regression."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ppl_em.em.closed_form import KKT_TOLERANCE, Parameters, Refused
from ppl_em.em.e_step import EStep, e_step, expected_log_joint
from ppl_em.em.least_squares import LeastSquares
from ppl_em.em.prior import prior_of
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update

#: Solutions of a float32 program are stationary to this residual.
SINGLE = 1e-2


class Ridge:
    """Coefficients of linear predictors of normal means, some of them under normal priors.

    The prior's precision is added to the normal equations of the data.

    Args:
        plan: the plan.
        update: its entry; the priors are among its sites.

    Reference:
        Hoerl, A. & Kennard, R. (1970). Ridge regression: biased estimation for nonorthogonal problems. Technometrics 12(1).
    """

    def __init__(self, plan: Plan, update: Update) -> None:
        self.plan, self.update = plan, update
        sites = {s.name: s for s in plan.sites()}
        self.sites = [sites[n] for n in update.sites]
        self.priors = [s for s in self.sites if s.point in update.parameters]
        data = tuple(n for n in update.sites if sites[n] not in self.priors)
        self.likelihood = LeastSquares(plan, replace(update, sites=data))
        self.verified = False

    def step(self, parameters: Parameters, e: EStep) -> Parameters:
        """The mode of the coefficients given scales and expected weights.

        Raises:
            Refused: it is not stationary.
        """
        if not self.verified:
            lowered = any(n in e.moments for n in self.likelihood.update.sites)
            self._verify(parameters, e_step(self.plan, parameters) if lowered else e)
            self.verified = True
        return self._solved(parameters, e)

    def _solved(self, parameters: Parameters, e: EStep) -> Parameters:
        return self.likelihood.regression.solved(*self.equations(parameters, e), parameters)

    def equations(self, parameters: Parameters, e: EStep) -> tuple[Tensor, Tensor]:
        """Curvature (P, P) and slope (P,) of Q and the log-prior at the current coefficients."""
        hessian, gradient = self.likelihood.equations(parameters, e)
        at = 0
        spans = {}
        for name in self.update.parameters:
            spans[name] = slice(at, at + parameters[name].numel())
            at = spans[name].stop
        for site in self.priors:
            assert site.point is not None
            value = parameters[site.point].detach().double()
            prior = prior_of(site, parameters, value.shape)
            span = spans[site.point]
            if type(prior).__name__ == "Normal":
                precision = torch.diag(prior.scale.pow(-2).reshape(-1))
            else:
                precision = torch.block_diag(*prior.precision_matrix.reshape(-1, *prior.precision_matrix.shape[-2:]))
            hessian[span, span] += precision
            gradient[span] += precision @ (prior.loc - value).reshape(-1)
        return hessian, gradient

    def _verify(self, parameters: Parameters, e: EStep) -> None:
        """Q with the log-prior has no slope at the solution, in units of one posterior standard deviation."""
        new = self._solved(parameters, e)
        leaves = [new[n].detach().clone().requires_grad_() for n in self.update.parameters]
        at = {**parameters, **dict(zip(self.update.parameters, leaves, strict=True))}
        with torch.enable_grad():
            slopes = torch.autograd.grad(expected_log_joint(self.plan, self.sites, e.weights, at), leaves)
        slope = torch.cat([g.double().reshape(-1) for g in slopes])
        curvature = self.equations({**parameters, **new}, e)[0].diagonal()
        residual = float((slope / curvature.clamp_min(1e-300).sqrt()).abs().max())
        if not residual <= (KKT_TOLERANCE if leaves[0].dtype == torch.float64 else SINGLE):
            raise Refused(f"least squares with the prior is not stationary (residual {residual:.1e})")
