"""Families on the positive half-line.

Reference: Johnson, Kotz, Balakrishnan (1994), Continuous Univariate Distributions, volume 1.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_em.mstep.inner import maximise, newton_rule
from ppl_em.mstep.normal import TINY
from ppl_em.mstep.registry import weighted_mle
from ppl_em.mstep.sample import WeightedSample

SHARPEST = 1e10
"""Largest concentration: equal data have no most likely one."""


@weighted_mle.register(dist.Exponential)
def exponential(sample: WeightedSample) -> None:
    """Set rate to 1 / mean."""
    total = sample.pool("rate", sample.sum("x"))
    largest = 1 / torch.finfo(sample.args["rate"].value.dtype).tiny
    sample.propose("rate", (sample.mass("rate") / total.clamp(min=TINY)).clamp(max=largest))


@weighted_mle.register(dist.Gamma, exact="newton", ceilings={"concentration": SHARPEST})
def gamma(sample: WeightedSample) -> None:
    """Match the mean of x and of log x.

    Reference: Minka (2002), Estimating a gamma distribution.
    """
    _fit_gamma(sample, dist.Gamma, sample.sum("x"), sample.sum("log x", torch.log))


@weighted_mle.register(dist.InverseGamma, exact="newton", ceilings={"concentration": SHARPEST})
def inverse_gamma(sample: WeightedSample) -> None:
    """Fit a gamma distribution to 1/x."""
    total = sample.sum("1/x", torch.reciprocal)
    _fit_gamma(sample, dist.InverseGamma, total, -sample.sum("log x", torch.log))


def _fit_gamma(sample: WeightedSample, family: type, total: Tensor, log_total: Tensor) -> None:
    """Concentration and rate from Σ w x (R,) and Σ w log x (R,)."""
    count = sample.count()
    if sample.free("rate"):
        shape = sample.rows("concentration")
        rate = sample.pool("rate", count * shape) / sample.pool("rate", total).clamp(min=TINY)
        sample.propose("rate", rate.clamp(max=1 / TINY))
    if not sample.free("concentration"):
        return

    def objective(args: Mapping[str, Tensor]) -> Tensor:
        shape, rate = args["concentration"], args["rate"]
        return count * (shape * rate.log() - shape.lgamma()) + (shape - 1) * log_total - rate * total

    maximise(sample, family, ("concentration", "rate"), objective, {"concentration": SHARPEST})


weighted_mle.register(dist.Weibull, exact="newton", ceilings={"concentration": SHARPEST})(
    newton_rule(dist.Weibull, {"concentration": SHARPEST})
)


def _least(sample: WeightedSample, name: str) -> Tensor:
    """The least datum with weight in each cell of an argument, (C,)."""
    _, x, row = sample.flat()
    cell = sample.ties(name).cells[row]
    least = x.new_full((sample.ties(name).num_cells,), torch.inf)
    return least.scatter_reduce(0, cell, x, "amin")


def _pareto_scale_residual(sample: WeightedSample) -> Tensor:
    """The scale belongs at the least datum: the likelihood rises up to it and is zero beyond."""
    least, scale = _least(sample, "scale"), sample.cell_values("scale")
    gap = (least - scale) / least
    return torch.where(least.isinf(), 0.0, torch.where(gap < 0, torch.inf, gap))


@weighted_mle.register(dist.Pareto, residuals={"scale": _pareto_scale_residual})
def pareto(sample: WeightedSample) -> None:
    """Set scale to the least datum, 1 / alpha to the mean of log(x / scale)."""
    if sample.free("scale"):
        sample.propose("scale", _least(sample, "scale"))
    if sample.free("alpha"):
        excess = sample.sum("log x", torch.log) - sample.count() * sample.rows("scale").log()
        total = sample.pool("alpha", excess)
        sample.propose("alpha", sample.mass("alpha") / total.clamp(min=TINY))
