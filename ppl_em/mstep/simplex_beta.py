"""Beta and Dirichlet: the mean of the log-probabilities is matched by Newton's method."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_em.mstep.inner import maximise
from ppl_em.mstep.positive import SHARPEST
from ppl_em.mstep.registry import weighted_mle
from ppl_em.mstep.sample import WeightedSample

PAIR = ("concentration1", "concentration0")


@weighted_mle.register(dist.Beta, exact="newton", ceilings=dict.fromkeys(PAIR, SHARPEST))
def beta(sample: WeightedSample) -> None:
    """Match the means of log x and log (1 − x).

    Reference: Johnson, Kotz, Balakrishnan (1995), Continuous Univariate Distributions, volume 2, chapter 25.
    """
    count = sample.count()
    log_x, log_rest = sample.sum("log x", torch.log), sample.sum("log 1-x", lambda x: (-x).log1p())

    def objective(args: Mapping[str, Tensor]) -> Tensor:
        a, b = args["concentration1"], args["concentration0"]
        normaliser = (a + b).lgamma() - a.lgamma() - b.lgamma()
        return count * normaliser + (a - 1) * log_x + (b - 1) * log_rest

    maximise(sample, dist.Beta, PAIR, objective, dict.fromkeys(PAIR, SHARPEST))


@weighted_mle.register(dist.Dirichlet, exact="newton", ceilings={"concentration": SHARPEST})
def dirichlet(sample: WeightedSample) -> None:
    """Match the mean of log x.

    Reference: Minka (2000), Estimating a Dirichlet distribution.
    """
    count, log_x = sample.count(), sample.sum("log x", torch.log)

    def objective(args: Mapping[str, Tensor]) -> Tensor:
        a = args["concentration"]
        normaliser = a.sum(-1).lgamma() - a.lgamma().sum(-1)
        return count * normaliser + ((a - 1) * log_x).sum(-1)

    maximise(sample, dist.Dirichlet, ("concentration",), objective, {"concentration": SHARPEST})
