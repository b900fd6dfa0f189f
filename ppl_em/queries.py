"""What a fit answers about data: posteriors, densities, predictions, the bound; and the program as fitted."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ppl_em import fitted_model
from ppl_em.arguments import as_tensors
from ppl_em.errors import NotAvailableYet, PplEmError, message
from ppl_em.loaders import batches, gathered
from ppl_em.plan.plan import Plan
from ppl_em.posterior import Posterior
from ppl_em.trace.provenance import tensors_in
from ppl_em.trace.tracing import Source, trace_program

if TYPE_CHECKING:
    from ppl_em.ir import Program
    from ppl_em.result import FitResult


def settings(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments that are not data: they apply to later queries too."""
    return {k: v for k, v in kwargs.items() if not any(True for _ in tensors_in(v))}


class Queries:
    """Queries of a fit. Each takes what ``fit`` took; keyword arguments that are not data need not be repeated."""

    params: dict[str, Tensor]
    point_estimates: dict[str, Tensor]
    plan: Any
    log_likelihood: float | None
    seed: int
    _source: Source | None
    _model: Any
    _settings: Mapping[str, Any]
    _engines: tuple[Any, ...] | None
    _parted: bool

    @property
    def _fit(self) -> FitResult:
        return cast("FitResult", self)

    @property
    def _values(self) -> dict[str, Tensor]:
        return {**self.params, **self.point_estimates}

    def _plan_for(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Plan:
        """The plan for given data (the training data if none are given)."""
        if not args and not kwargs:
            if isinstance(self.plan, Plan):
                return self.plan
            if self._source is None:
                raise PplEmError(
                    message("the training data are not at hand", hint="passing the data: result.posterior(x)")
                )
        source = self._source_for(args, kwargs)
        program = trace_program(source, values=self._values, freeze=self._frozen, witness=False)
        return self._plan_of(program)

    @property
    def _frozen(self) -> tuple[str, ...]:
        """Names that were held fixed."""
        if isinstance(self.plan, Plan):
            return tuple(n for n, p in self.plan.program.parameters.items() if p.frozen)
        updates = self.plan.to_dict()["updates"]
        return tuple(n for u in updates if u["rule"] == "frozen" for n in u["parameters"])

    def _plan_of(self, program: Program) -> Plan:
        """The plan for a program, by the engines of the fit."""
        from ppl_em.fitting import ENGINES
        from ppl_em.plan.plan import make_plan
        from ppl_em.planner import rule_lookup

        plan = make_plan(program, self._engines or ENGINES, rule_lookup, max_bytes=math.inf)
        return replace(plan, map_space=self.plan.map_space)

    def _source_for(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Source:
        if not args and not kwargs:
            if self._source is None:
                raise PplEmError(message("the training data are not at hand", hint="passing the data"))
            return self._source
        given = dict(kwargs or {})
        given = {**given.pop("model_kwargs", {}), **given}
        data = as_tensors(gathered(args))
        return Source(self._model, data, as_tensors({**self._settings, **given}), self.seed, batch=self._parted)

    def with_data(self, *args: Any, **kwargs: Any) -> FitResult:
        """The same fit with data at hand: for a loaded result, whose data were not kept.

        Args:
            args, kwargs: the model's arguments.
        """
        return replace(self._fit, _source=self._source_for(args, kwargs), plan=self._plan_for(args, kwargs))

    def posterior(self, *args: Any, **kwargs: Any) -> Posterior:
        """Posterior over the latents, given the training data or other data.

        Args:
            args, kwargs: the model's arguments; the training data if none are given.
        """
        return Posterior(self._plan_for(args, kwargs), self._values)

    def log_prob(self, *args: Any, **kwargs: Any) -> Tensor:
        """Log marginal likelihood of each datum.

        Args:
            args, kwargs: the model's arguments; the training data if none are given.

        Returns:
            Shaped by the outermost data plate; a scalar where there is none (or where a global latent ties all data).
        """
        from ppl_em.per_datum import log_prob
        from ppl_em.problem import find_loader

        position = find_loader(args)
        if position is None:
            return log_prob(self._plan_for(args, kwargs), self._values)
        parts = [log_prob(self._plan_for(call, kwargs), self._values) for call in batches(args, position)]
        return torch.cat(parts) if parts[0].dim() else torch.stack(parts).sum()

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
            latents: ``"posterior"`` (given the data) or ``"prior"`` (generate).
            params: ``"point"``, or ``"draws"`` for another draw of the parameters in each sample.
            seed: of the draws; None draws afresh.

        Returns:
            By site, (num_samples, *shape of the observed value).
        """
        from ppl_em.prediction import check_kinds, predict, predict_draws

        check_kinds(latents, params)
        if params == "draws":
            plan = self._plan_for(args, kwargs) if latents == "posterior" else None
            return predict_draws(
                self._source_for(args, kwargs), self._values, self._fit._draws, plan, num_samples, seed
            )
        posterior = self.posterior(*args, **kwargs) if latents == "posterior" else None
        return predict(self._source_for(args, kwargs), self._values, posterior, num_samples, seed)

    def terms(
        self, params: Mapping[str, Tensor] | None = None, q: Mapping[str, Tensor] | None = None
    ) -> dict[str, float]:
        """The two readings of the bound at parameters θ = ``params`` and q = the posterior at parameters ``q``.

        Args:
            params: constrained values; the fitted ones by default.
            q: constrained values at which the posterior is taken; the fitted ones by default.

        Returns:
            ``expected_log_joint`` + ``entropy`` = ``elbo`` = ``log_likelihood`` − ``kl`` (plus ``log_prior``), nats.
        """
        from ppl_em.bound import terms

        mine = self._values
        return terms(self._plan_for(()), {**mine, **dict(params or {})}, {**mine, **dict(q or {})})

    # models --------------------------------------------------------------------------------------------------

    @property
    def model(self) -> Any:
        """The program with the fitted parameter values, for ``Predictive``, ``NUTS`` and plain tracing."""
        return fitted_model.FittedModel(self._model, dict(self.params), self._settings)

    @property
    def guide(self) -> Any:
        """A guide that draws latents from the exact posterior given the data it is called with."""
        return fitted_model.PosteriorGuide(self._fit)

    def write_params(self) -> None:
        """Copy the fitted values into Pyro's parameter store."""
        fitted_model.write_params(self._fit)

    def _not_yet(self, what: str) -> Any:
        raise NotAvailableYet(message(f"{what} is not available yet"))

    def estimate_log_likelihood(self, num_samples: int = 1000) -> tuple[float, float]:
        """Log marginal likelihood and its standard error; exact (error 0) where the fit is exact."""
        if self.log_likelihood is None:
            self._not_yet("an importance-weighted log-likelihood")
        return float(self.log_likelihood or 0.0), 0.0

    def impute(
        self, *args: Any, num_samples: int | None = None, seed: int | None = None, **kwargs: Any
    ) -> dict[str, Tensor]:
        """Completed data: what is missing (NaN) filled in, given what was observed.

        By default with conditional means, the exact posterior over the latents included: of a multivariate normal the
        regression on the observed elements, of a chain's step by the smoothed posterior. Whole numbers get their most
        probable value.

        Args:
            args, kwargs: the model's arguments; the training data if none are given.
            num_samples: so many joint draws of what is missing, in place of means.
            seed: of the draws; None draws afresh.

        Returns:
            By observed site, shaped as its value; (num_samples, …) where draws were asked for.

        Raises:
            PplEmError: there is no conditional mean (draws can be had).

        Example:
            >>> import ppl_em, torch, pyro, pyro.distributions as dist
            >>> def model(x):
            ...     loc = pyro.param("loc", torch.zeros(2))
            ...     with pyro.plate("data", len(x)):
            ...         pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)
            >>> x = torch.tensor([[1.0, 4.0], [3.0, torch.nan], [2.0, 6.0]])
            >>> ppl_em.fit(model, x).impute()["x"][1].round()
            tensor([3., 5.])
        """
        from ppl_em.imputation import impute

        return impute(self._fit, args, kwargs, num_samples, seed)

    def update(self, *args: Any, **kwargs: Any) -> FitResult:
        """One step on new data, as a new result; this one is unchanged.

        A fit by exact EM takes a step of stepwise EM: the new data's expected statistics enter the averaged ones with a
        weight of (number of batches of this size seen so far + 1)^−κ, κ = ``EM(step_exponent=…)``, and an M-step
        follows. The data at hand, the objective and the number of observations of the new result are the batch's.

        Args:
            args, kwargs: the model's arguments, with the new data.

        Raises:
            PplEmError: no statistics of fixed size stand for the data seen so far, or they are not at hand.

        Example:
            >>> import torch, pyro, pyro.distributions as dist, ppl_em
            >>> def coin(x):
            ...     p = pyro.param("p", torch.tensor(0.5), constraint=dist.constraints.unit_interval)
            ...     with pyro.plate("tosses", len(x)):
            ...         pyro.sample("x", dist.Bernoulli(p), obs=x)
            >>> result = ppl_em.fit(coin, torch.tensor([1.0, 1.0, 0.0, 1.0]), method=ppl_em.EM(step_exponent=1.0))
            >>> round(float(result.update(torch.tensor([0.0, 0.0, 0.0, 0.0])).params["p"]), 4)
            0.375
        """
        from ppl_em.updating import update_em

        return update_em(self._fit, args, kwargs)
