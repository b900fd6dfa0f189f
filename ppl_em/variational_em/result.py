"""The result of variational Bayes: distributions in the place of point estimates, bounds in the place of likelihoods."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from ppl_em.diagnostics.coordinates import element_labels
from ppl_em.diagnostics.draws import Draws
from ppl_em.em.loop import State
from ppl_em.errors import NotAvailableYet, message
from ppl_em.free_parameters import num_parameters
from ppl_em.per_datum import contributions
from ppl_em.plan.plan import Plan
from ppl_em.posterior import Posterior
from ppl_em.prediction import check_kinds, predict, predict_draws
from ppl_em.result import FitResult, Restart
from ppl_em.variational_em.draws import factor_draws, likelihoods, weighed
from ppl_em.variational_em.network import Network
from ppl_em.variational_em.plan import variational_plan
from ppl_em.variational_em.posterior import VariationalPosterior

if TYPE_CHECKING:
    from ppl_em.problem import Problem

#: Draws from which intervals are computed, and the seed of draws for predictions.
INTERVAL_DRAWS = 20_000


@dataclass(frozen=True, eq=False)
class VariationalResult(FitResult):
    """A program fitted by variational Bayes.

    ``point_estimates`` holds posterior means of the global latents (of an inverse gamma factor without a mean: its mode),
    ``guide_params`` the hyperparameters of their factors (``"weights.concentration"``), ``objective`` the bound on the log
    evidence. ``posterior().marginal(name)`` is a global latent's distribution.
    """

    @classmethod
    def from_em(
        cls,
        problem: Problem,
        outcome: State,
        history: list[float],
        restarts: tuple[Restart, ...],
        coords: Mapping[str, Any],
    ) -> FitResult:
        """The result of the best start's last state."""
        program = problem.plan.program
        own = {n: v for n, v in outcome.parameters.items() if n in program.parameters}
        hyper = {n: v.detach().clone() for n, v in outcome.parameters.items() if n not in own}
        result = super().from_em(problem, replace(outcome, parameters=own), history, restarts, coords)
        fixed = {n: replace(p, frozen=True) if p.origin == "site" else p for n, p in program.parameters.items()}
        count = num_parameters(replace(program, parameters=fixed))
        return replace(
            result, guide_params=hyper, objective_name="elbo", log_likelihood=None, num_parameters=count, exact=False
        )

    # queries -------------------------------------------------------------------------------------------------

    @property
    def _all(self) -> dict[str, Tensor]:
        return {**self._values, **self.guide_params}

    def _plan_of(self, program: Any) -> Plan:
        from ppl_em.planner import rule_lookup

        return variational_plan(super()._plan_of(program), rule_lookup)

    def posterior(self, *args: Any, **kwargs: Any) -> VariationalPosterior:
        """q(z) q(θ): of the training data, or q(z) of other data under the fitted factors.

        Args:
            args, kwargs: the model's arguments; the training data if none are given.
        """
        return VariationalPosterior(self._plan_for(args, kwargs), self._all)

    @torch.no_grad()
    def log_prob(self, *args: Any, **kwargs: Any) -> Tensor:
        """Lower bound on the log predictive density of each datum under the factors, nats.

        This is log Σ_z exp E_q[log p(x, z | θ)] ≤ log E_q[p(x | θ)], datum by datum.

        Args:
            args, kwargs: the model's arguments; the training data if none are given.

        Returns:
            Shaped by the outermost data plate; a scalar where there is none.
        """
        plan = self._plan_for(args, kwargs)
        network = Network(plan)
        factors = network.read(self._all)
        assert factors is not None
        plain = [s for s in plan.plain if s.point is None]
        logs = network.log_factors([s for b in plan.blocks for s in b.block.sites] + plain, factors, self._all)
        return contributions(plan, self._values, factors=logs)

    def predict(
        self,
        *args: Any,
        num_samples: int = 100,
        latents: str = "posterior",
        params: str = "point",
        seed: int | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """Draws of every observed site anew.

        Args:
            args, kwargs: the model's arguments; the training data if none are given.
            num_samples: number of draws.
            latents: ``"posterior"`` (q given the data) or ``"prior"`` (generate).
            params: ``"point"`` (posterior means of the global latents), or ``"draws"`` from their factors, with the summed
                latents given each draw.
            seed: of the draws; None draws afresh.

        Returns:
            By site, (num_samples, *shape of the observed value).
        """
        check_kinds(latents, params)
        source = self._source_for(args, kwargs)
        plan = self._plan_for(args, kwargs)
        q = VariationalPosterior(plan, self._all)
        if params == "point":
            local = Posterior(plan, self._values, q._factors) if latents == "posterior" else None
            return predict(source, self._values, local, num_samples, seed)
        fresh = int(torch.Generator().seed() % 2**31) if seed is None else seed
        drawn = q.sample_globals(num_samples, fresh)
        return predict_draws(source, self._values, drawn, plan if latents == "posterior" else None, num_samples, fresh)

    def terms(
        self, params: Mapping[str, Tensor] | None = None, q: Mapping[str, Tensor] | None = None
    ) -> dict[str, float]:
        """The bound as E_q[log p(x, z, θ)] + entropy of q, nats; its gap to the log evidence is not known.

        Returns:
            ``expected_log_joint`` + ``entropy`` = ``elbo``.

        Raises:
            NotAvailableYet: other parameters or another q are given.
        """
        if params is not None or q is not None:
            raise _refused("terms(params, q)", "the bound is known at its own factors", "terms()")
        entropy = float(self.posterior().entropy())
        return {"expected_log_joint": self.objective - entropy, "entropy": entropy, "elbo": self.objective}

    @torch.no_grad()
    def estimate_log_likelihood(self, num_samples: int = 1000) -> tuple[float, float]:
        """Importance-weighted estimate of the log evidence log p(x), the factors as proposal, and its standard error.

        The factors keep to one labelling of exchangeable components: the estimate is that of the evidence of this labelling,
        log K! below the whole where all K components are in use.

        Args:
            num_samples: draws of the global latents; the summed ones are summed for each.
        """
        _, joint, own = weighed(self._plan_for(()), self._all, num_samples, self.seed)
        weights = joint - own
        estimate = float(torch.logsumexp(weights, 0)) - math.log(num_samples)
        relative = (weights - weights.max()).exp()
        return estimate, float(relative.std() / relative.mean() / math.sqrt(num_samples))

    # uncertainty ---------------------------------------------------------------------------------------------

    def draws(self, n: int = 1000, seed: int = 0) -> Draws:
        """Draws of the global latents given the data: from their factors, corrected by importance resampling.

        Args:
            n: number of draws.
            seed: of the draws.

        Returns:
            A mapping from name to (n, *shape), with ``k_hat`` and ``reliable``; plain draws of the factors where k-hat
            forbids a correction.
        """
        return factor_draws(self._plan_for(()), self._all, n, seed)

    @cached_property
    def _draw_log_likelihoods(self) -> Tensor:
        return likelihoods(self._plan_for(()), self._all, self._draws)

    def _of_factors(self) -> dict[str, Tensor]:
        return self.posterior().sample_globals(INTERVAL_DRAWS, 0)

    def standard_errors(self, kind: str = "observed") -> dict[str, Tensor]:
        """Standard deviations of the global latents under their factors, by name."""
        drawn = self._of_factors()
        return {n: v.std(0) for n, v in drawn.items()}

    def conf_int(self, level: float = 0.95, kind: str = "observed") -> pd.DataFrame:
        """Credible intervals of the global latents under their factors (equal tails, from draws).

        Args:
            level: posterior probability of each interval.
            kind: has no meaning here.

        Returns:
            One row per element; columns ``estimate`` (posterior mean), ``std_error`` (standard deviation), ``lower``,
            ``upper``.
        """
        tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
        rows, index = [], []
        for name, drawn in self._of_factors().items():
            flat = drawn.reshape(len(drawn), -1).double()
            bounds = torch.quantile(flat, tails, 0)
            index += element_labels(name, drawn.shape[1:])
            estimate = self.point_estimates[name].reshape(-1)
            rows += [
                dict(zip(("estimate", "std_error", "lower", "upper"), row, strict=True))
                for row in zip(estimate.tolist(), flat.std(0).tolist(), *bounds.tolist(), strict=True)
            ]
        return pd.DataFrame(rows, index=pd.Index(index, name="parameter"))

    @property
    def information(self) -> Any:
        """Not defined: the uncertainty is that of the factors."""
        why = "uncertainty is that of the factors, not of a likelihood's curvature"
        raise _refused("observed information", why, "conf_int(), draws() or posterior().marginal(name)")

    @property
    def particles(self) -> Any:
        """Not available."""
        raise _refused("particles", "it judges encoders", "estimate_log_likelihood()")

    @property
    def calibration(self) -> Any:
        """Not available."""
        raise _refused("calibration", "it judges encoders", "estimate_log_likelihood()")

    def bootstrap(self, num: int = 200, kind: str = "parametric", seed: int = 0) -> Any:
        """Not available."""
        raise _refused("bootstrap()", "a factor is no point estimate", "draws()")

    def relabel(self, by: Any) -> FitResult:
        """Not available."""
        raise _refused("relabel()", "the factors would have to be permuted too", 'globals="point"')

    def impute(self, *args: Any, **kwargs: Any) -> Any:
        """Not available."""
        raise _refused("impute()", "it is written for point estimates", 'predict(params="draws")')

    def update(self, *batch: Any, **options: Any) -> Any:
        """Not available."""
        raise _refused("update()", "factors are fitted to all data at once", "fit on all data")


def _refused(what: str, why: str, hint: str) -> NotAvailableYet:
    return NotAvailableYet(message(f'{what} is not available after EM(globals="variational")', why=why, hint=hint))
