"""A mixture's E-step and expected statistics in one pass over cache-sized chunks of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_em.ir import Factor
from ppl_em.ir.block import Block
from ppl_em.lower.emission import Emission, eligible

#: Data per chunk: statistics and responsibilities of a chunk stay in the cache.
CHUNK_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class Lowered:
    """Outcome of a lowered E-step.

    Args:
        total: Σ scale · log Z, float64.
        moments: expected statistics of each observed site.
        weights: expected weights of the latents' own sites (and their summed dimensions), summed over the data.
    """

    total: float
    moments: Mapping[str, Any]
    weights: Mapping[str, tuple[Factor, frozenset[str]]]


class LoweredMixture:
    """One latent per datum with exponential-family observations.

    Args:
        block: a mixture block for which :meth:`accepts` holds.
    """

    def __init__(self, block: Block) -> None:
        self.block = block
        self.latent = block.latents[0]
        self.data = self.latent.plates
        self.observed = [s for s in block.sites if s.role == "observed"]
        self.prior = next(s for s in block.sites if s.role == "latent")
        self.emission = Emission(self.observed, self.latent.name, self.data, block.sizes)
        scale = block.scale
        if scale is None:
            self.scale = None
        else:
            wide = scale.expand({p: block.sizes[p] for p in self.data}).align(self.data)
            self.scale = wide.reshape(-1).to(self.emission.dtype)
        per_datum = self.emission.width + 1 + 2 * block.sizes[self.latent.name]
        self.chunk = max(256, min(self.emission.num_data, CHUNK_ELEMENTS // per_datum))
        self._buffers: tuple[Tensor, ...] | None = None

    @staticmethod
    def accepts(block: Block) -> bool:
        """Whether the whole block can be lowered: a prior that is the same for all data, eligible observations."""
        if len(block.latents) != 1 or block.axis is not None or not block.latents[0].plates or block.alive:
            return False
        latent = block.latents[0]
        priors = [s for s in block.sites if s.role == "latent"]
        observed = [s for s in block.sites if s.role == "observed"]
        if len(priors) != 1 or len(priors) + len(observed) != len(block.sites) or not observed:
            return False
        prior = priors[0]
        constant = not any(a.value.dims for a in prior.arguments.values()) and prior.lowered
        return constant and all(eligible(s, latent.name, latent.plates) for s in observed)

    def run(self, parameters: Mapping[str, Tensor]) -> Lowered | None:
        """E-step and expected statistics; None where the fast form would lose digits."""
        natural = self.emission.natural(parameters)
        if natural is None:
            return None
        prior = self.prior.log_factor(parameters).align((self.latent.name,)).to(natural.dtype)
        natural[:, -1] += prior.detach()
        statistics = torch.zeros(natural.shape, dtype=torch.float64)
        likelihood = 0.0
        for start in range(0, self.emission.num_data, self.chunk):
            likelihood += self._chunk(start, natural, statistics)
        if self.emission.base is not None:
            likelihood += float(
                self.emission.base.sum() if self.scale is None else (self.emission.base * self.scale).sum()
            )
        if not math.isfinite(likelihood):
            return None
        moments = self.emission.moments(statistics)
        counts = Factor(statistics[:, -1].to(prior.dtype), (self.latent.name,))
        return Lowered(likelihood, moments, {self.prior.name: (counts, frozenset(self.data))})

    def _chunk(self, start: int, natural: Tensor, statistics: Tensor) -> float:
        size = min(self.chunk, self.emission.num_data - start)
        features, logits, top, total = (b[..., :size] for b in self._buffer(natural))
        self.emission.fill(start, features)
        torch.mm(natural, features, out=logits)
        torch.amax(logits, 0, out=top)
        logits.sub_(top).exp_()
        torch.sum(logits, 0, out=total)
        logits.div_(total)
        total.log_().add_(top)
        if self.scale is not None:
            scale = self.scale[start : start + size]
            logits.mul_(scale)
            total.mul_(scale)
        if statistics.dtype == logits.dtype:
            torch.addmm(statistics, logits, features.mT, out=statistics)
        else:
            statistics.add_(logits @ features.mT)
        return float(total.sum(dtype=torch.float64))

    def _buffer(self, natural: Tensor) -> tuple[Tensor, ...]:
        if self._buffers is None:
            k, f = natural.shape
            shapes = ((f, self.chunk), (k, self.chunk), (self.chunk,), (self.chunk,))
            self._buffers = tuple(torch.empty(s, dtype=natural.dtype) for s in shapes)
        return self._buffers
