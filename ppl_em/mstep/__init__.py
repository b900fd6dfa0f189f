"""Weighted maximum likelihood: EM's M-step, one rule per distribution family.

Importing this package registers the rules below in `weighted_mle`.
"""

from ppl_em.mstep import (  # noqa: F401
    circular,
    discrete,
    low_rank,
    multivariate,
    normal,
    overdispersed,
    positive,
    robust,
    simplex_beta,
)
from ppl_em.mstep.block import Argument, Block
from ppl_em.mstep.inner import newton_rule
from ppl_em.mstep.newton import newton
from ppl_em.mstep.registry import Registry, Rule, weighted_mle
from ppl_em.mstep.sample import NoClosedForm, WeightedSample
from ppl_em.mstep.stationarity import residuals, stationarity

__all__ = [
    "Argument",
    "Block",
    "NoClosedForm",
    "Registry",
    "Rule",
    "WeightedSample",
    "newton",
    "newton_rule",
    "residuals",
    "stationarity",
    "weighted_mle",
]
