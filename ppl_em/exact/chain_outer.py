"""Latents that live through a whole chain: summed outside it, with one chain for each of their values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ppl_em.exact.bucket_posterior import BucketPosterior
from ppl_em.exact.elimination import Elimination
from ppl_em.exact.engine import Expected
from ppl_em.ir import Factor, Site
from ppl_em.ir.block import Block
from ppl_em.ir.slices import Slices

#: Name of the factor that a chain becomes once its states are summed out.
CHAIN = "@chain"


class Outer:
    """The small block of outer latents, to which the chain is one factor.

    Args:
        block: the whole block.
        slices: its slices.
    """

    def __init__(self, block: Block, slices: Slices) -> None:
        self.slices, self.engine = slices, Elimination()
        outside = set(slices.outer)
        self.sites = tuple(s for s in block.sites if s.scope and set(s.scope) <= outside)
        zero = Factor(torch.zeros(()), ())
        chain = Site(CHAIN, "factor", slices.outer, slices.plates, slices.batch, (), None, {}, zero)
        latents = tuple(z for z in block.latents if z.name in outside)
        self.block = replace(
            block, latents=latents, sites=(*self.sites, chain), scale=None, alive={}, slices=None, times={}
        )

    def factors(self, factors: Mapping[str, Factor], chain: Tensor) -> dict[str, Factor]:
        """Log-factors of the block, given the chain's own (*outer, *plates)."""
        return {**{s.name: factors[s.name] for s in self.sites}, CHAIN: Factor(chain, self.slices.batch)}

    def log_z(self, factors: Mapping[str, Factor], chain: Tensor) -> Factor:
        """Log-partition by the block's plates, differentiable."""
        return self.engine.log_z(self.block, self.factors(factors, chain))

    def expected(self, factors: Mapping[str, Factor], chain: Tensor) -> tuple[Expected, Tensor]:
        """Expected weights of the outer sites, and the probability (*outer, *plates) of their joint values."""
        found = self.engine.expected(self.block, self.factors(factors, chain))
        return found, found.weights[CHAIN].factor.align(self.slices.batch)

    def posterior(self, factors: Mapping[str, Factor], chain: Tensor) -> BucketPosterior:
        """Queries of the outer latents."""
        return self.engine.posterior(self.block, self.factors(factors, chain))
