"""Families on the positive half-line with closed forms.

Reference: Johnson, Kotz, Balakrishnan (1994), Continuous Univariate Distributions, volume 1.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch

from ppl_em.mstep.registry import weighted_mle
from ppl_em.mstep.sample import WeightedSample

TINY = torch.finfo(torch.float64).tiny


@weighted_mle.register(dist.Exponential)
def exponential(sample: WeightedSample) -> None:
    """Set rate to 1 / mean."""
    total = sample.pool("rate", sample.sum("x"))
    largest = 1 / torch.finfo(sample.args["rate"].value.dtype).tiny
    sample.propose("rate", (sample.mass("rate") / total.clamp(min=TINY)).clamp(max=largest))
