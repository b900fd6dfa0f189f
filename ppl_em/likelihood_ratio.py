"""Is one component more needed? The likelihood-ratio test whose null distribution is simulated."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_em.errors import ConvergenceError, DataError, PlanError, message
from ppl_em.methods import EM

if TYPE_CHECKING:
    from ppl_em.result import FitResult

__all__ = ["LikelihoodRatio", "likelihood_ratio_test"]

#: A larger program that ends this far below the smaller one, in nats, is not at its optimum or not larger.
ROUNDING = 1e-3
#: Tolerance of fits to drawn data, nats: the statistic needs no more.
REFIT_TOL = 1e-3


@dataclass(frozen=True, eq=False)
class LikelihoodRatio:
    """Outcome of a parametric-bootstrap likelihood-ratio test.

    Args:
        statistic: 2 (log L of the larger − log L of the smaller program), nats.
        p_value: share of statistics that are no smaller, the observed one counted among them.
        draws: (num_samples − num_failed,) statistics of data drawn from the smaller fit, float64.
        num_failed: drawn data for which one of the fits ended in a collapse; left out.
    """

    statistic: float
    p_value: float
    draws: Tensor = field(repr=False)
    num_failed: int = 0

    def __str__(self) -> str:
        left = f", {self.num_failed} samples left out" if self.num_failed else ""
        return f"likelihood ratio {self.statistic:.3f}, p = {self.p_value:.3g} ({len(self.draws)} samples{left})"


def likelihood_ratio_test(
    smaller: FitResult, larger: FitResult, num_samples: int = 99, seed: int = 0, **options: Any
) -> LikelihoodRatio:
    """Test a smaller program (k components) against a larger one (k + 1) that contains it.

    The statistic of mixtures has no χ² distribution: the smaller program lies on the boundary of the larger one, where its
    parameters are not identified. Its distribution is simulated: data are drawn from the smaller fit and both programs are
    fitted to them.

    Args:
        smaller, larger: fits of the same data; the data must be at hand.
        num_samples: data sets that are drawn; the smallest p-value is 1 / (num_samples + 1).
        seed: of the draws and the fits.
        options: as for :func:`ppl_em.fit`, for the fits to drawn data (``restarts=3`` is faster than the default).

    Raises:
        DataError: the fits are not of the same data.
        PlanError: a log-likelihood is not exact, or too few samples.
        ConvergenceError: the larger fit lies below the smaller one, or no sample could be fitted.

    Reference:
        McLachlan, G. J. (1987). On bootstrapping the likelihood ratio test statistic for the number of components in a
        normal mixture. Applied Statistics 36(3).

    Example:
        >>> import functools, torch, pyro, pyro.distributions as dist, ppl_em
        >>> def mixture(x, K):
        ...     loc = pyro.param("loc", torch.linspace(-1, 1, K))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Categorical(torch.ones(K) / K))
        ...         pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)
        >>> x = torch.tensor([-5.1, -4.2, -4.9, 4.8, 5.3, 4.1, -5.5, 5.9])
        >>> one, two = (ppl_em.fit(functools.partial(mixture, K=K), x) for K in (1, 2))
        >>> ppl_em.likelihood_ratio_test(one, two, num_samples=9).p_value
        0.1
    """
    _check(smaller, larger, num_samples)
    statistic = 2 * (_exact(larger) - _exact(smaller))
    if statistic < -2 * ROUNDING:
        why = f"it is {-statistic / 2:.4g} nats below the smaller one"
        hint = "more restarts, or exchange the two"
        raise ConvergenceError(message("the larger fit is not at its optimum", why=why, hint=hint))
    options = {"method": EM(tol=REFIT_TOL), **options}
    drawn = smaller.predict(num_samples=num_samples, latents="prior", seed=seed)
    found = []
    for i in range(num_samples):
        values = {n: v[i] for n, v in drawn.items()}
        low = _refit(smaller, values, seed, init=dict(smaller._values), **{**options, "restarts": 1})
        high = _refit(larger, values, seed, **options)
        if low is not None and high is not None:
            found.append(max(0.0, 2 * (high - low)))
    if not found:
        raise ConvergenceError(message("no sample could be fitted", hint="priors, or fewer components"))
    draws = torch.tensor(found, dtype=torch.float64)
    p_value = (1 + int((draws >= statistic).sum())) / (1 + len(draws))
    return LikelihoodRatio(statistic, p_value, draws, num_samples - len(draws))


def _check(smaller: FitResult, larger: FitResult, num_samples: int) -> None:
    if num_samples < 1:
        raise PlanError(message("num_samples must be at least 1", value=num_samples))
    sizes = smaller.num_observations, larger.num_observations
    if sizes[0] != sizes[1]:
        raise DataError(message("fits of different data cannot be tested", value=sizes))
    if not smaller.num_parameters < larger.num_parameters:
        counts = smaller.num_parameters, larger.num_parameters
        hint = "likelihood_ratio_test(smaller, larger)"
        raise PlanError(message("the second program must have more parameters", value=counts, hint=hint))


def _exact(result: FitResult) -> float:
    if result.log_likelihood is None:
        raise PlanError(message("the test needs exact log-likelihoods", hint='method="em"'))
    return result.log_likelihood


def _refit(result: FitResult, values: dict[str, Tensor], seed: int, **options: Any) -> float | None:
    """Log-likelihood of a result's program on drawn observations; None where it has no optimum."""
    from ppl_em.fitting import fit
    from ppl_em.status import Status
    from ppl_em.trace.reobserve import Reobserved

    source = result._source_for(())
    again = fit(Reobserved(source.model, values), *source.args, model_kwargs=source.kwargs, seed=seed, **options)
    bad = (Status.DEGENERATE, Status.NON_FINITE, Status.NOT_MONOTONE)
    return None if again.status in bad else again.log_likelihood
