"""What a result answers about its own uncertainty: the methods of ``FitResult`` on standard errors, checks and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pandas as pd
from torch import Tensor

from ppl_em.errors import PplEmError, message

if TYPE_CHECKING:
    from ppl_em.arviz_bridge import Loo
    from ppl_em.diagnostics.bootstrap import Bootstrap
    from ppl_em.diagnostics.check import Diagnosis
    from ppl_em.diagnostics.draws import Draws
    from ppl_em.diagnostics.information import Information
    from ppl_em.diagnostics.particles import Particles
    from ppl_em.diagnostics.predictive import Pit, PredictiveCheck
    from ppl_em.diagnostics.profile import Profile
    from ppl_em.diagnostics.refinement import Gap
    from ppl_em.diagnostics.simulated_calibration import Ranks
    from ppl_em.result import FitResult
    from ppl_em.svi.result import ApproximateResult


class Uncertainty:
    """Queries of a fit about uncertainty; what is costly is computed once and kept."""

    @property
    def _fit(self) -> FitResult:
        return cast("FitResult", self)

    @cached_property
    def information(self) -> Information:
        """Observed information at the estimates, in free coordinates (second derivatives of the exact objective).

        Raises:
            PplEmError: the fit is not exact, or has too many parameters.
        """
        from ppl_em.diagnostics.information import observed_information

        return observed_information(self._fit)

    @cached_property
    def _draws(self) -> Draws:
        return self.draws()

    def standard_errors(self, kind: str = "observed") -> dict[str, Tensor]:
        """Standard errors by parameter, on the constrained scale.

        Args:
            kind: ``"observed"`` (inverse observed information) or ``"sandwich"`` (also for misspecified models).

        Returns:
            By name, shaped as the parameter; NaN for elements on the boundary of their constraint, infinity for
            those that the data do not identify; frozen parameters are left out.

        Raises:
            PplEmError: the fit is not exact, or not at a maximum.
        """
        from ppl_em.diagnostics.information import standard_errors

        return standard_errors(self.information, kind)

    def standard_error(self, function: Callable[[Mapping[str, Tensor]], Tensor], kind: str = "observed") -> Tensor:
        """Standard error of a function of the parameters, by the delta method.

        Args:
            function: from the parameters by name to a tensor, e.g. ``lambda p: p["loc"][1] - p["loc"][0]``.
            kind: ``"observed"`` or ``"sandwich"``.
        """
        from ppl_em.diagnostics.information import standard_error

        return standard_error(self.information, function, kind)

    def vcov(self, kind: str = "observed") -> pd.DataFrame:
        """Covariance matrix of all elements of all parameters, constrained scale, with their labels."""
        from ppl_em.diagnostics.information import elements

        labels = self.information.coordinates.labels
        return pd.DataFrame(elements(self.information, kind)[0].numpy(), index=labels, columns=labels)

    def conf_int(self, level: float = 0.95, kind: str = "observed") -> pd.DataFrame:
        """Confidence intervals that respect the parameters' constraints.

        Args:
            level: confidence.
            kind: ``"observed"`` or ``"sandwich"``.

        Returns:
            One row per element; columns ``estimate``, ``std_error``, ``lower``, ``upper``.
        """
        from ppl_em.diagnostics.intervals import conf_int

        return conf_int(self.information, level, kind)

    def draws(self, n: int = 1000, seed: int = 0) -> Draws:
        """Draws of the parameters given the data: Laplace's approximation, corrected by importance resampling.

        Args:
            n: number of draws.
            seed: of the draws.

        Returns:
            A mapping from name to (n, *shape), with ``k_hat`` and ``reliable``.
        """
        from ppl_em.diagnostics.laplace import laplace_draws

        return laplace_draws(self.information, n, seed)

    def bootstrap(self, num: int = 200, kind: str = "parametric", seed: int = 0) -> Bootstrap:
        """Refits to new data, started from the estimates, labels aligned.

        Args:
            num: number of refits.
            kind: ``"parametric"`` (data drawn from the fitted program) or ``"case"`` (data drawn with replacement).
            seed: of the data.
        """
        from ppl_em.diagnostics.bootstrap import bootstrap

        return bootstrap(self._fit, num, kind, seed)

    def profile(self, name: str, place: Sequence[int] = (), level: float = 0.95) -> Profile:
        """Profile likelihood of one element of a parameter.

        Args:
            name: the parameter.
            place: position of the element, e.g. ``(0, 1)``.
            level: confidence of the interval.
        """
        from ppl_em.diagnostics.profile import profile

        return profile(self.information, name, tuple(place), level)

    @cached_property
    def _draw_log_likelihoods(self) -> Tensor:
        """Log-likelihood (S, n) of each datum at each of the default draws."""
        from ppl_em.diagnostics.loo import log_likelihood_draws

        return log_likelihood_draws(self.information, self._draws)

    @cached_property
    def _predictive_draws(self) -> dict[str, Tensor]:
        from ppl_em.diagnostics.predictive import predictive_draws

        return predictive_draws(self._fit)

    @cached_property
    def loo(self) -> Loo:
        """Leave-one-out predictive accuracy on the exact marginal log-likelihood, by ArviZ.

        Raises:
            PplEmError: the data are not independent, their weights are not counts, or the draws cannot be trusted.
        """
        from ppl_em.diagnostics.copies import copies
        from ppl_em.diagnostics.loo import loo

        counts = copies(self._fit._plan_for(()))
        return loo(self._draws, self._draw_log_likelihoods, counts)

    @cached_property
    def loo_pit(self) -> dict[str, Pit]:
        """Leave-one-out probability integral transforms by observed column; uniform if predictions are calibrated."""
        from ppl_em.diagnostics.predictive import loo_pits

        return loo_pits(self._fit)

    @cached_property
    def predictive_check(self) -> PredictiveCheck:
        """Observed statistics against those of predictive draws, marginal and reconstruction apart."""
        from ppl_em.diagnostics.predictive import predictive_check

        return predictive_check(self._fit)

    @cached_property
    def particles(self) -> Particles:
        """Importance samples of the approximate posterior of the training data, with k-hat and divergence (SVI).

        Raises:
            PplEmError: the posterior is exact, or data have no weights of their own.
        """
        from ppl_em.diagnostics.particles import particles

        return particles(self._approximate())

    @cached_property
    def gap(self) -> Gap | None:
        """What the bound loses by the shared encoder and by the family (SVI); None where it cannot be told apart."""
        from ppl_em.diagnostics.refinement import split_gap

        try:
            return split_gap(self._approximate())
        except PplEmError:
            return None

    @cached_property
    def calibration(self) -> Ranks:
        """Ranks of simulated latents among the encoder's draws (SVI).

        Raises:
            PplEmError: the posterior is exact, or data cannot be simulated.
        """
        from ppl_em.diagnostics.simulated_calibration import calibrate

        return calibrate(self._approximate(), seed=self._fit.seed)

    def _approximate(self) -> ApproximateResult:
        if not hasattr(self, "query"):
            raise PplEmError(message("the posterior is exact: there is no approximation to judge"))
        return cast("ApproximateResult", self)

    def diagnose(self, checks: Sequence[Callable[[Any], Any]] | None = None) -> Diagnosis:
        """Check what can be trusted about this fit.

        Args:
            checks: functions from a result to a ``Check``; ``ppl_em.diagnostics.CHECKS`` by default.

        Returns:
            A table of checks; ``.ok`` is True only if every check that applies was run and passed.
        """
        from ppl_em.diagnostics import CHECKS
        from ppl_em.diagnostics.check import run_checks

        return run_checks(self._fit, CHECKS if checks is None else checks)

    def report(self, path: str | Path, checks: Sequence[Callable[[Any], Any]] | None = None) -> Path:
        """Write one self-contained HTML file, and ``report.json`` with the same values beside it.

        Args:
            path: the HTML file; one that exists is replaced.
            checks: as for :meth:`diagnose`.
        """
        from ppl_em.report import write_report

        return write_report(self._fit, Path(path), checks)
