"""The outcome of a fit: a frozen value that answers every question about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from ppl_em import fitted_model
from ppl_em.arguments import as_tensors
from ppl_em.diagnostics.queries import Uncertainty
from ppl_em.em.e_step import e_step
from ppl_em.em.loop import State
from ppl_em.errors import NotAvailableYet, PplEmError, message
from ppl_em.free_parameters import num_parameters
from ppl_em.plan.plan import Plan
from ppl_em.posterior import Posterior
from ppl_em.status import Status
from ppl_em.trace.tracing import Source, trace_program

if TYPE_CHECKING:
    from ppl_em.ir import Program
    from ppl_em.problem import Problem


@dataclass(frozen=True)
class Restart:
    """One start of a fit and where it ended.

    Args:
        kind: how the start was chosen (``"kmeans"``, ``"random"``, ``"params"``, ``"perturbed"``).
        objective: where it ended, nats.
        status: how it ended.
        num_steps: evaluations of the EM map.
        screened: it was dropped after a short run because others were ahead.
        params: constrained values where it ended, point estimates among them; empty in a loaded result.
    """

    kind: str
    objective: float
    status: Status
    num_steps: int
    screened: bool = False
    params: Mapping[str, Tensor] = field(default_factory=dict, repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class FitResult(Uncertainty):
    """A fitted program.

    Args:
        params: every ``pyro.param`` by name, constrained values (module weights as ``module$$$weight``).
        point_estimates: global continuous latents that were point-estimated, by site name.
        guide_params: parameters of the guide (SVI), by name.
        objective: value at the returned parameters, nats, full data.
        objective_name: ``"log_likelihood"``, ``"log_posterior"`` or ``"elbo"``.
        log_likelihood: exact log marginal likelihood at the returned parameters; None where inexact.
        exact: whether every latent was summed exactly, with evidence.
        plan: what was done.
        history: (num_steps + 1,) float64 objective at the start and after each step, nats.
        status: how it ended; ``str`` gives a sentence.
        num_steps: evaluations of the EM map, or gradient steps.
        seed: of the fit.
        restarts: every start with its outcome.
        num_parameters: free parameters.
        num_observations: elements of the outermost data plate, or time steps of a single series.
    """

    params: dict[str, Tensor]
    point_estimates: dict[str, Tensor]
    guide_params: dict[str, Tensor]
    objective: float
    objective_name: str
    log_likelihood: float | None
    exact: bool
    plan: Any
    history: Tensor
    status: Status
    num_steps: int
    seed: int
    restarts: tuple[Restart, ...]
    num_parameters: int
    num_observations: int
    detail: str = ""
    _source: Source | None = field(default=None, repr=False)
    _coords: Mapping[str, Any] = field(default_factory=dict, repr=False)
    _columns: list[list[str]] = field(default_factory=list, repr=False)
    _model: Any = field(default=None, repr=False)
    _engines: tuple[Any, ...] | None = field(default=None, repr=False)

    @classmethod
    def from_em(
        cls,
        problem: Problem,
        outcome: State,
        history: list[float],
        restarts: tuple[Restart, ...],
        coords: Mapping[str, Any],
    ) -> FitResult:
        """The result of exact EM from the best start's last state."""
        program = problem.plan.program
        values = {n: v.detach().clone() for n, v in outcome.parameters.items()}
        points = {n: v for n, v in values.items() if program.parameters[n].origin == "site"}
        params = {n: v for n, v in values.items() if n not in points}
        status = outcome.status or Status.OUT_OF_STEPS
        if history and history[-1] != outcome.objective:
            history = [*history[:-1], outcome.objective]
        return cls(
            params=params,
            point_estimates=points,
            guide_params={},
            objective=outcome.objective,
            objective_name="log_posterior" if points else "log_likelihood",
            log_likelihood=outcome.log_likelihood,
            exact=problem.plan.exact,
            plan=problem.plan,
            history=torch.tensor(history, dtype=torch.float64),
            status=status,
            num_steps=outcome.step,
            seed=problem.seed,
            restarts=restarts,
            num_parameters=num_parameters(program),
            num_observations=_observations(problem.plan),
            detail=outcome.detail,
            _source=problem.source,
            _coords=dict(coords),
            _columns=problem.columns,
            _model=problem.source.model,
            _engines=problem.em.engines,
        )

    # how it ended --------------------------------------------------------------------------------------------

    @property
    def converged(self) -> bool:
        """True only if the estimated remaining gain fell below the tolerance."""
        return self.status is Status.CONVERGED

    @property
    def aic(self) -> float:
        """Akaike's information criterion, −2 log L + 2 k; smaller is better."""
        return -2 * self._likelihood("aic") + 2 * self.num_parameters

    @property
    def bic(self) -> float:
        """Schwarz's criterion, −2 log L + k log n; smaller is better."""
        return -2 * self._likelihood("bic") + self.num_parameters * math.log(self.num_observations)

    @property
    def icl(self) -> float:
        """Integrated completed likelihood: BIC − 2 log of the posterior probability of the most probable assignment.

        Reference:
            Biernacki, C., Celeux, G. & Govaert, G. (2000). IEEE PAMI 22(7). In the sign of BIC: smaller is better.
        """
        return self.bic - 2 * self.posterior().log_prob_of_mode()

    def _likelihood(self, name: str) -> float:
        if self.log_likelihood is None:
            raise PplEmError(
                message(f"{name} needs an exact log-likelihood", hint="estimate_log_likelihood()")
            )
        return self.log_likelihood

    # queries -------------------------------------------------------------------------------------------------

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
        from ppl_em.problem import rule_lookup

        return make_plan(program, self._engines or ENGINES, rule_lookup, max_bytes=math.inf)

    def _source_for(self, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Source:
        if not args and not kwargs:
            if self._source is None:
                raise PplEmError(message("the training data are not at hand", hint="passing the data"))
            return self._source
        return Source(self._model, as_tensors(args), as_tensors(dict(kwargs or {})), self.seed)

    def with_data(self, *args: Any, **kwargs: Any) -> FitResult:
        """The same fit with data at hand: for a loaded result, whose data were not kept.

        Args:
            args, kwargs: the model's arguments.
        """
        return replace(self, _source=self._source_for(args, kwargs), plan=self._plan_for(args, kwargs))

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

        return log_prob(self._plan_for(args, kwargs), self._values)

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
        from ppl_em.prediction import predict, predict_draws

        if params not in ("point", "draws"):
            raise PplEmError(message("unknown params", value=params, hint='"point" or "draws"'))
        if latents not in ("posterior", "prior"):
            raise PplEmError(message("unknown latents", value=latents, hint='"posterior" or "prior"'))
        if params == "draws":
            plan = self._plan_for(args, kwargs) if latents == "posterior" else None
            return predict_draws(
                self._source_for(args, kwargs), self._values, self._draws, plan, num_samples, seed
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
        return fitted_model.FittedModel(self._model, dict(self.params))

    @property
    def guide(self) -> Any:
        """A guide that draws latents from the exact posterior given the data it is called with."""
        return fitted_model.PosteriorGuide(self)

    def write_params(self) -> None:
        """Copy the fitted values into Pyro's parameter store."""
        fitted_model.write_params(self)

    # tables and files ----------------------------------------------------------------------------------------

    def summary(self) -> pd.DataFrame:
        """Estimates as a table: one row for each free element, with the rule that found it."""
        from ppl_em.summary import summary

        return summary(self)

    def to_arviz(self) -> Any:
        """The result as ArviZ's own object (``InferenceData`` or ``DataTree``)."""
        from ppl_em.arviz_groups import to_arviz

        return to_arviz(self)

    def save(self, path: str | Path, *, data: bool = False) -> Path:
        """Write the result to a directory: ``result.json`` and ``tensors.safetensors``, no pickle, without the data.

        Args:
            path: the directory; its files are replaced atomically.
            data: also keep the tensors among the model's arguments.
        """
        from ppl_em.storage import save

        return save(self, Path(path), data=data)

    def plot(self, kind: str = "history", ax: Any = None, **options: Any) -> Any:
        """Draw one figure on a matplotlib axis.

        Args:
            kind: ``"history"``, ``"restarts"``, ``"parameters"``, ``"profile"``, ``"data"``, ``"series"``,
                ``"latents"``, ``"predictive"``, ``"reconstruction"``, ``"loo"`` or ``"pit"``.
            ax: the axis; a new figure by default.
            options: of the figure, see :func:`ppl_em.plotting.plot`.
        """
        from ppl_em.plotting import plot

        return plot(self, kind, ax, **options)

    def relabel(self, by: Any) -> FitResult:
        """Components permuted everywhere, see :func:`ppl_em.relabelling.relabel`."""
        from ppl_em.relabelling import relabel

        return relabel(self, by)

    def _not_yet(self, what: str) -> Any:
        raise NotAvailableYet(message(f"{what} is not available yet"))

    def estimate_log_likelihood(self, num_samples: int = 1000) -> tuple[float, float]:
        """Log marginal likelihood and its standard error; exact (error 0) where the fit is exact."""
        if self.log_likelihood is None:
            self._not_yet("an importance-weighted log-likelihood")
        return self._likelihood("log-likelihood"), 0.0

    def impute(self, *args: Any) -> Any:
        """Completed data (not available yet)."""
        return self._not_yet("impute()")

    def update(self, *batch: Any) -> Any:
        """One stepwise step on new data (not available yet)."""
        return self._not_yet("update()")

    def __str__(self) -> str:
        lines = [
            f"{self.objective_name} {self.objective:.6f} after {self.num_steps} steps, "
            f"{self.num_parameters} parameters, {self.num_observations} observations",
            f"{self.status.name.lower()}: {self.status}" + (f" ({self.detail})" if self.detail else ""),
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        import html

        table = self.summary()
        return (
            f"<div><p>{html.escape(str(self)).replace(chr(10), '<br>')}</p>{table.to_html(max_rows=40)}</div>"
        )


def _observations(plan: Plan) -> int:
    """Elements of the outermost data plate; time steps of a single series; else observed sites."""
    program = plan.program
    if program.data_plate is not None:
        return program.plates[program.data_plate].size
    for entry in plan.blocks:
        if entry.block.axis is not None:
            return len(entry.block.axis.states)
    return max(1, sum(1 for s in program.sites.values() if s.role == "observed"))


def evaluate(plan: Plan, values: Mapping[str, Tensor]) -> float:
    """Objective of a plan at given values."""
    return e_step(plan, values).objective
