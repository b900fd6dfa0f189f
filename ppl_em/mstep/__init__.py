"""Weighted maximum likelihood: EM's M-step, one rule per distribution family.

Importing this package registers the rules below in `weighted_mle`.
"""

from ppl_em.mstep import (  # noqa: F401
    circular,
    compound,
    discrete,
    low_rank,
    missing,
    multivariate,
    normal,
    overdispersed,
    positive,
    robust,
    simplex_beta,
)
from ppl_em.mstep.block import Argument, Block
from ppl_em.mstep.gradient import Ascent, gradient_ascent
from ppl_em.mstep.inner import newton_rule
from ppl_em.mstep.least_squares import least_squares
from ppl_em.mstep.newton import NewtonResult, newton
from ppl_em.mstep.registry import Registry, Rule, weighted_mle
from ppl_em.mstep.sample import NoClosedForm, WeightedSample
from ppl_em.mstep.stationarity import residuals, stationarity

__all__ = [
    "Argument",
    "Ascent",
    "Block",
    "NewtonResult",
    "NoClosedForm",
    "Registry",
    "Rule",
    "WeightedSample",
    "gradient_ascent",
    "least_squares",
    "newton",
    "newton_rule",
    "residuals",
    "stationarity",
    "weighted_mle",
]
