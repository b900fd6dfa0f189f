"""Closed forms of the discrete families whose expected counts are all that matters.

Reference: Johnson, Kemp, Kotz (2005), Univariate Discrete Distributions.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch

from ppl_em.mstep.probability import propose_simplex, propose_success
from ppl_em.mstep.registry import weighted_mle
from ppl_em.mstep.sample import WeightedSample


@weighted_mle.register(dist.Categorical)
def categorical(sample: WeightedSample) -> None:
    """Set probs to the share of each category."""
    name = "probs" if "probs" in sample.args else "logits"
    propose_simplex(sample, sample.histogram(sample.args[name].value.shape[-1]))


@weighted_mle.register(dist.OneHotCategorical, dist.OneHotCategoricalStraightThrough, dist.Multinomial)
def multinomial(sample: WeightedSample) -> None:
    """Set probs to the share of each category in all trials."""
    propose_simplex(sample, sample.sum("x"))


@weighted_mle.register(dist.Bernoulli)
def bernoulli(sample: WeightedSample) -> None:
    """Set probs to the share of ones."""
    propose_success(sample, sample.sum("x"), sample.count())


@weighted_mle.register(dist.Binomial)
def binomial(sample: WeightedSample) -> None:
    """Set probs to successes / trials."""
    propose_success(sample, sample.sum("x"), sample.count() * sample.rows("total_count"))


@weighted_mle.register(dist.Geometric)
def geometric(sample: WeightedSample) -> None:
    """Set probs to 1 / (1 + mean number of failures)."""
    propose_success(sample, sample.count(), sample.count() + sample.sum("x"))


@weighted_mle.register(dist.Poisson)
def poisson(sample: WeightedSample) -> None:
    """Set rate to mean."""
    total = sample.pool("rate", sample.sum("x"))
    sample.propose("rate", total / sample.mass("rate").clamp(min=torch.finfo(torch.float64).tiny))
