"""Counts with more spread than their simple families: compound and zero-inflated distributions.

Reference: Johnson, Kemp, Kotz (2005), Univariate Discrete Distributions, chapters 5, 6 and 8.
"""

from __future__ import annotations

import pyro.distributions as dist

from ppl_em.mstep.inner import newton_rule
from ppl_em.mstep.probability import propose_success
from ppl_em.mstep.registry import weighted_mle
from ppl_em.mstep.sample import WeightedSample

LARGEST = 1e5
"""Largest dispersion parameter: counts without excess spread have no most likely one (the simple family is
the limit), and beyond this the difference from the limit is lost in rounding."""

_TOTAL = {"total_count": LARGEST}
_fit_negative_binomial = newton_rule(dist.NegativeBinomial, _TOTAL)


@weighted_mle.register(dist.NegativeBinomial, exact="newton", ceilings=_TOTAL)
def negative_binomial(sample: WeightedSample) -> None:
    """Set probs to Σ x / (Σ x + Σ total_count); a free total_count by Newton's method with it."""
    total = sample.sum("x")
    propose_success(sample, total, total + sample.count() * sample.rows("total_count"))
    if sample.free("total_count"):
        _fit_negative_binomial(sample)


for _family, _names in (
    (dist.BetaBinomial, ("concentration1", "concentration0")),
    (dist.DirichletMultinomial, ("concentration",)),
    (dist.ZeroInflatedPoisson, ()),
    (dist.ZeroInflatedNegativeBinomial, ("total_count",)),
):
    _ceilings = dict.fromkeys(_names, LARGEST)
    weighted_mle.register(_family, exact="newton", ceilings=_ceilings)(newton_rule(_family, _ceilings))
