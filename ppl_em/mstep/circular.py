"""Von Mises: the mean direction, and the concentration whose mean resultant length is the observed one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_em.mstep.inner import maximise
from ppl_em.mstep.normal import settle
from ppl_em.mstep.positive import SHARPEST
from ppl_em.mstep.registry import weighted_mle
from ppl_em.mstep.sample import WeightedSample


@weighted_mle.register(dist.VonMises, exact="newton", ceilings={"concentration": SHARPEST})
def von_mises(sample: WeightedSample) -> None:
    """Set loc to the direction of the resultant; concentration κ from I₁(κ)/I₀(κ) = resultant length.

    The Bessel function is the density's own (through its normaliser), so that the two agree to rounding.

    Reference: Mardia, Jupp (2000), Directional Statistics, section 5.3.1.
    """
    count, cosines, sines = sample.count(), sample.sum("cos", torch.cos), sample.sum("sin", torch.sin)

    def objective(args: Mapping[str, Tensor]) -> Tensor:
        loc, concentration = args["loc"], args["concentration"]
        zero = torch.zeros_like(concentration)
        peak = dist.VonMises(zero, concentration, validate_args=False).log_prob(zero)
        short = (cosines * loc.cos() + sines * loc.sin()) - count
        return concentration * short + count * (peak + math.log(2 * math.pi))

    def step() -> None:
        if sample.free("loc"):
            concentration = sample.rows("concentration")
            weight = concentration / concentration.max()
            sine, cosine = sample.pool("loc", weight * sines), sample.pool("loc", weight * cosines)
            sample.propose("loc", torch.atan2(sine, cosine))
        maximise(sample, dist.VonMises, ("concentration",), objective, {"concentration": SHARPEST})

    settle(sample, step, outer="concentration")
