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
from ppl_em.lower.posterior import DatumLatent

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
        observed = [s for s in block.sites if s.role == "observed"]
        latent = block.latents[0]
        self.emission = Emission(observed, latent.name, latent.plates, block.sizes)
        self.latent = DatumLatent(block, self.emission.dtype)
        per_datum = self.emission.width + 1 + 2 * self.latent.num_states
        self.chunk = max(256, min(self.emission.num_data, CHUNK_ELEMENTS // per_datum))
        self._buffers: tuple[Tensor, ...] | None = None

    @staticmethod
    def accepts(block: Block) -> bool:
        """Whether the whole block can be lowered: a prior that is the same for all data, eligible observations."""
        if not DatumLatent.of(block):
            return False
        latent = block.latents[0]
        return all(eligible(s, latent.name, latent.plates) for s in block.sites if s.role == "observed")

    def run(self, parameters: Mapping[str, Tensor]) -> Lowered | None:
        """E-step and expected statistics; None where the fast form would lose digits."""
        natural = self.emission.natural(parameters)
        if natural is None:
            return None
        natural[:, -1] += self.latent.log_prior(parameters)
        statistics = torch.zeros(natural.shape, dtype=torch.float64, device=natural.device)
        likelihood = 0.0
        for start in range(0, self.emission.num_data, self.chunk):
            likelihood += self._chunk(start, natural, statistics)
        base, scale = self.emission.base, self.latent.scale
        if base is not None:
            likelihood += float(base.sum() if scale is None else (base * scale).sum())
        if not math.isfinite(likelihood):
            return None
        return Lowered(likelihood, self.emission.moments(statistics), self.latent.weights(statistics[:, -1]))

    def _chunk(self, start: int, natural: Tensor, statistics: Tensor) -> float:
        size = min(self.chunk, self.emission.num_data - start)
        features, logits, top, total = (b[..., :size] for b in self._buffer(natural))
        self.emission.fill(start, features)
        torch.mm(natural, features, out=logits)
        likelihood = self.latent.normalise(logits, top, total, start)
        if statistics.dtype == logits.dtype:
            torch.addmm(statistics, logits, features.mT, out=statistics)
        else:
            statistics.add_(logits @ features.mT)
        return likelihood

    def _buffer(self, natural: Tensor) -> tuple[Tensor, ...]:
        if self._buffers is None:
            k, f = natural.shape
            shapes = ((f, self.chunk), (k, self.chunk), (self.chunk,), (self.chunk,))
            self._buffers = tuple(natural.new_empty(s) for s in shapes)
        return self._buffers
