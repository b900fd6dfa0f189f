"""One independent discrete latent per plate element: mixtures, latent classes, gates.

Reference:
    McLachlan, G. & Peel, D. (2000). Finite Mixture Models. Wiley. Section 2.8.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ppl_em.exact.elimination import Elimination
from ppl_em.exact.engine import Cost, Expected, Weights, count_weights, full_factor
from ppl_em.ir import Factor
from ppl_em.ir.block import Block
from ppl_em.ir.factor import add_all


class Mixture(Elimination):
    """A single latent: log Z is one logsumexp, the responsibilities one softmax."""

    name = "mixture"

    def reject(self, block: Block) -> str | None:
        """Only blocks of one latent."""
        return None if len(block.latents) == 1 else f"the block has {len(block.latents)} connected latents, not one"

    def cost(self, block: Block) -> Cost:
        """A few operations for each element and state."""
        latent = block.latents[0]
        elements = latent.cardinality * math.prod(block.sizes[p] for p in latent.plates)
        wide = max(math.prod(block.sizes[d] for d in s.dims) for s in block.sites)
        # Joint, responsibilities and one temporary of the widest density.
        return Cost(6.0 * elements + 2.0 * wide * len(block.sites), 16.0 * (2 * elements + wide))

    def within(self, block: Block, max_bytes: float, max_flops: float) -> Mixture:
        """There is nothing to slice."""
        return self

    def expected(self, block: Block, factors: Mapping[str, Factor]) -> Expected:
        """Responsibilities; every site of the block has the same ones."""
        latent = block.latents[0]
        order = (*latent.plates, latent.name)
        joint = add_all(
            full_factor(block, s, factors[s.name]).sum([p for p in s.plates if p not in latent.plates])
            for s in block.sites
        ).align(order)
        joint = joint.detach().expand([block.sizes[d] for d in order])
        log_z = torch.logsumexp(joint, -1)
        responsibilities = Factor((joint - log_z.unsqueeze(-1)).exp_(), order)
        if not bool(torch.isfinite(log_z).all()):
            empty = ~torch.isfinite(log_z).unsqueeze(-1)
            responsibilities = Factor(responsibilities.tensor.masked_fill(empty, 0.0), order)
        weights = {s.name: Weights(count_weights(block, s, responsibilities)) for s in block.sites}
        return Expected(Factor(log_z, tuple(latent.plates)), weights)
