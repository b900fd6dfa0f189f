"""One latent per datum: what the lowered forms of its blocks share, from the prior to the responsibilities."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_em.ir import Factor
from ppl_em.ir.block import Block


class DatumLatent:
    """The latent of a mixture block whose prior is the same for all data.

    Args:
        block: a block for which :meth:`of` holds.
        dtype: of densities and responsibilities.
    """

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        self.latent = block.latents[0]
        self.name, self.data = self.latent.name, self.latent.plates
        self.prior = next(s for s in block.sites if s.role == "latent")
        sizes = [block.sizes[d] for d in self.data]
        self.num_data, self.num_states = math.prod(sizes), block.sizes[self.name]
        self.dtype = dtype
        self.scale: Tensor | None = None
        if block.scale is not None:
            wide = block.scale.expand(dict(zip(self.data, sizes, strict=True))).align(self.data)
            self.scale = wide.reshape(-1).to(dtype)

    @staticmethod
    def of(block: Block) -> bool:
        """Whether a block has one latent for each datum, a prior that is the same for all, and observations alone."""
        if len(block.latents) != 1 or block.axis is not None or not block.latents[0].plates or block.alive:
            return False
        priors = [s for s in block.sites if s.role == "latent"]
        observed = [s for s in block.sites if s.role == "observed"]
        if len(priors) != 1 or not observed or len(observed) + 1 != len(block.sites):
            return False
        return priors[0].lowered and not any(a.value.dims for a in priors[0].arguments.values())

    def log_prior(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Log-probability of each state, (K,)."""
        return self.prior.log_factor(parameters).align((self.name,)).detach().to(self.dtype)

    def normalise(self, logits: Tensor, top: Tensor, total: Tensor, start: int = 0) -> float:
        """Turn log-joints (K, n) into responsibilities times weights, in place; the sum of weight · log Z.

        Args:
            logits: log-joint of the states of n data.
            top, total: (n,) memory to work in.
            start: position of the first of these data, for their weights.
        """
        torch.amax(logits, 0, out=top)
        logits.sub_(top).exp_()
        torch.sum(logits, 0, out=total)
        logits.div_(total)
        total.log_().add_(top)
        if self.scale is not None:
            scale = self.scale[start : start + logits.shape[1]]
            logits.mul_(scale)
            total.mul_(scale)
        return float(total.sum(dtype=torch.float64))

    def weights(self, counts: Tensor) -> dict[str, tuple[Factor, frozenset[str]]]:
        """Expected weights of the prior's own site, from the expected number of data in each state."""
        return {self.prior.name: (Factor(counts.to(self.dtype), (self.name,)), frozenset(self.data))}
