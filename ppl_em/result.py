"""The outcome of a fit: a frozen value that answers every question about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import Tensor

from ppl_em.diagnostics.copies import number_of_data
from ppl_em.diagnostics.queries import Uncertainty
from ppl_em.em.e_step import e_step
from ppl_em.em.loop import State
from ppl_em.errors import PplEmError, message
from ppl_em.free_parameters import num_parameters
from ppl_em.plan.plan import Plan
from ppl_em.queries import Queries, settings
from ppl_em.status import Status
from ppl_em.trace.tracing import Source

if TYPE_CHECKING:
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
class FitResult(Queries, Uncertainty):
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
        num_observations: elements of the outermost data plate (as many as their weights say, where these are counts;
            those that are missing altogether left out), or time steps of a single series.
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
    _settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    _engines: tuple[Any, ...] | None = field(default=None, repr=False)
    _averages: Any = field(default=None, repr=False)
    _parted: bool = field(default=False, repr=False)
    _schedule: tuple[float, float] = field(default=(0.6, 0.0), repr=False)

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
            _settings=settings(problem.source.kwargs),
            _engines=problem.em.engines,
            _schedule=(problem.em.step_exponent, problem.em.step_offset),
        )

    # how it ended --------------------------------------------------------------------------------------------

    @property
    def converged(self) -> bool:
        """True only if the estimated remaining gain fell below the tolerance."""
        return self.status is Status.CONVERGED

    @property
    def log_prior(self) -> float:
        """What the priors of point estimates add to the log-likelihood, nats: 0 where there are none."""
        return self.objective - self._likelihood("log_prior") if self.objective_name == "log_posterior" else 0.0

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
            raise PplEmError(message(f"{name} needs an exact log-likelihood", hint="estimate_log_likelihood()"))
        return self.log_likelihood

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

    def __str__(self) -> str:
        parts = ""
        if self.objective_name == "log_posterior" and self.log_likelihood is not None:
            parts = f" (log_likelihood {self.log_likelihood:.6f}, log_prior {self.log_prior:.6f})"
        lines = [
            f"{self.objective_name} {self.objective:.6f}{parts} after {self.num_steps} steps, "
            f"{self.num_parameters} parameters, {self.num_observations} observations",
            f"{self.status.name.lower()}: {self.status}" + (f" ({self.detail})" if self.detail else ""),
        ]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        import html

        table = self.summary()
        return f"<div><p>{html.escape(str(self)).replace(chr(10), '<br>')}</p>{table.to_html(max_rows=40)}</div>"


def _observations(plan: Plan) -> int:
    """Elements of the outermost data plate; time steps of a single series; else observed sites."""
    program = plan.program
    if (count := number_of_data(plan)) is not None:
        return count
    for entry in plan.blocks:
        if entry.block.axis is not None:
            return len(entry.block.axis.states)
    return max(1, sum(1 for s in program.sites.values() if s.role == "observed"))


def evaluate(plan: Plan, values: Mapping[str, Tensor]) -> float:
    """Objective of a plan at given values."""
    return e_step(plan, values).objective
