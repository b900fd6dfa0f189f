"""The state of a fit after a step: what ``iterate`` yields and callbacks are given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from ppl_em.bound import terms
from ppl_em.em.loop import State
from ppl_em.errors import NotAvailableYet, PplEmError, message
from ppl_em.plan.plan import Plan
from ppl_em.posterior import Posterior
from ppl_em.status import Status


@dataclass(frozen=True, eq=False)
class Iterate:
    """A fit after a step.

    Args:
        step: evaluations of the EM map so far.
        params: constrained values by name, point estimates among them; of variational Bayes posterior means, and the
            factors' hyperparameters (``"weights.concentration"``).
        objective, log_likelihood, log_prior: at these values, nats.
        status: set on the last one of a start.
        plan: what is done.
        start: which of the starts this is.
    """

    step: int
    params: dict[str, Tensor]
    objective: float
    log_likelihood: float
    log_prior: float
    status: Status | None
    plan: Plan
    start: int = 0

    @classmethod
    def of(cls, state: State, start: int = 0) -> Iterate:
        """The public view of the loop's state; its tensors are copies."""
        params = {n: v.detach().clone() for n, v in state.parameters.items()}
        numbers = (state.objective, state.log_likelihood, state.log_prior)
        return cls(state.step, params, *numbers, state.status, state.plan, start)

    def posterior(self) -> Posterior:
        """Exact posterior over the latents at these values; the variational one under these factors.

        Raises:
            PplEmError: the data come from a loader.
        """
        self._require_data()
        if self._variational:
            from ppl_em.variational_em.posterior import VariationalPosterior

            return VariationalPosterior(self.plan, self.params)
        return Posterior(self.plan, self.params)

    def _require_data(self) -> None:
        if self.plan.partial:
            hint = "result.posterior(x) after the fit"
            raise PplEmError(message("the data of a loader are not at hand", hint=hint))

    @property
    def _variational(self) -> bool:
        return any(u.by == "variational" for u in self.plan.updates)

    def terms(
        self, params: Mapping[str, Tensor] | None = None, q: Mapping[str, Tensor] | None = None
    ) -> dict[str, float]:
        """The two readings of the bound, see :meth:`FitResult.terms`; these values are the default for both."""
        self._require_data()
        if self._variational:
            hint = "result.terms() after the fit"
            raise NotAvailableYet(message('terms() of a step of EM(globals="variational") is not available', hint=hint))
        return terms(self.plan, {**self.params, **dict(params or {})}, {**self.params, **dict(q or {})})
