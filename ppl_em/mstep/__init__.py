"""Weighted maximum likelihood: EM's M-step, one rule per distribution family."""

from ppl_em.mstep import (
    circular,
    discrete,
    multivariate,
    normal,
    overdispersed,
    positive,
    robust,
    simplex_beta,
)
from ppl_em.mstep.block import Argument, Block
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
    "discrete",
    "multivariate",
    "normal",
    "positive",
    "residuals",
    "stationarity",
    "circular",
    "overdispersed",
    "robust",
    "simplex_beta",
    "weighted_mle",
]
