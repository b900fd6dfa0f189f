"""A chain's emissions as one matrix product, its expected statistics as another, forward–backward in between."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ppl_em.exact.chain import Chain
from ppl_em.exact.chain_buffers import ChainBuffers
from ppl_em.ir import Factor
from ppl_em.ir.block import Block
from ppl_em.lower.compiled_chain import CompiledChain
from ppl_em.lower.emission import Emission, eligible
from ppl_em.lower.mixture import CHUNK_ELEMENTS, Lowered
from ppl_em.lower.packed_chain import PackedChain
from ppl_em.lower.series import Series


class LoweredChain:
    """A hidden Markov model with exponential-family emissions at every step.

    Args:
        block: a stacked block for which :meth:`accepts` holds.
    """

    def __init__(self, block: Block) -> None:
        axis = block.axis
        assert axis is not None
        self.block, self.axis = block, axis
        self.data = (*block.plates, axis.time)
        self.observed = [s for s in block.sites if s.role == "observed"]
        unmasked = [replace(s, mask=None) for s in self.observed]
        self.emission = Emission(unmasked, axis.now, self.data, block.sizes)
        self.latents = tuple(s for s in block.sites if s.role == "latent")
        self.inner = replace(block, sites=(*self.latents, self.observed[0]))
        mask = self.observed[0].mask
        self.counted: Tensor | None = None
        if mask is not None:
            wide = mask.expand({d: block.sizes[d] for d in self.data}).align(self.data)
            self.counted = wide.reshape(-1, 1).to(self.emission.dtype)
        self.chunk = max(256, min(self.emission.num_data, CHUNK_ELEMENTS // (self.emission.width + 1)))
        self._buffers: tuple[Tensor, Tensor] | None = None
        self.engine = Chain(ChainBuffers())
        self.fast = self._fast(None if mask is None else wide)

    def _fast(self, mask: Tensor | None) -> PackedChain | CompiledChain | None:
        """The form in which series that share one transition are computed; None for the general kernels."""
        series = Series.of(self.block, mask)
        return PackedChain.of(series, self.emission, mask) or CompiledChain.of(series, self.emission, mask)

    @staticmethod
    def accepts(block: Block) -> bool:
        """Whether all emissions can be lowered: one for each step, eligible, under one mask."""
        axis = block.axis
        if axis is None:
            return False
        data = (*block.plates, axis.time)
        observed = [s for s in block.sites if s.role == "observed"]
        latents = [s for s in block.sites if s.role == "latent"]
        if not observed or len(observed) + len(latents) != len(block.sites) or not all(s.lowered for s in latents):
            return False
        masks = [s.mask for s in observed]
        if any((m is None) != (masks[0] is None) for m in masks):
            return False
        if masks[0] is not None and any(
            not set(m.dims) <= set(data) or m.dims != masks[0].dims or not torch.equal(m.tensor, masks[0].tensor)
            for m in masks
            if m is not None
        ):
            return False
        steps = block.sizes[axis.time]
        return all(
            eligible(replace(s, mask=None), axis.now, data) and len(block.times[s.name]) == steps for s in observed
        )

    def run(self, parameters: Mapping[str, Tensor]) -> Lowered | None:
        """E-step and expected statistics; None where the fast form would lose digits."""
        natural = self.emission.natural(parameters)
        if natural is None:
            return None
        fast = None if self.fast is None else self.fast.run(parameters, natural)
        if fast is not None:
            return fast
        features, scores = self._buffer(natural)
        for start in range(0, self.emission.num_data, self.chunk):
            columns = features[:, : min(self.chunk, self.emission.num_data - start)]
            self.emission.fill(start, columns)
            torch.mm(columns.mT, natural.mT, out=scores[start : start + columns.shape[1]])
        if self.emission.base is not None:
            scores.add_(self.emission.base[:, None])
        if self.counted is not None:
            scores.mul_(self.counted)
        shape = [self.block.sizes[d] for d in self.data]
        dims = (*self.data, self.axis.now)
        factors = {s.name: s.log_factor(parameters).map(Tensor.detach) for s in self.latents}
        factors[self.observed[0].name] = Factor(scores.reshape(*shape, -1), dims)
        expected = self.engine.expected(self.inner, factors)
        log_z = expected.log_z
        if self.block.scale is not None:
            log_z = log_z * self.block.scale.map(lambda t: t.to(log_z.tensor.dtype))
        total = float(log_z.tensor.double().sum())
        if not math.isfinite(total):
            return None
        gamma = expected.weights[self.observed[0].name].factor.align(dims).reshape(self.emission.num_data, -1)
        if self.counted is not None:
            gamma = gamma * self.counted
        moments = self.emission.moments(self._statistics(gamma, features))
        weights = {s.name: (expected.weights[s.name].factor, expected.weights[s.name].summed) for s in self.latents}
        return Lowered(total, moments, weights)

    def _statistics(self, gamma: Tensor, features: Tensor) -> Tensor:
        total = torch.zeros(gamma.shape[1], features.shape[0], dtype=torch.float64)
        single = self.emission.num_data <= self.chunk
        for start in range(0, self.emission.num_data, self.chunk):
            columns = features[:, : min(self.chunk, self.emission.num_data - start)]
            if not single:  # a single chunk's statistics are still in the buffer
                self.emission.fill(start, columns)
            total += gamma[start : start + columns.shape[1]].mT @ columns.mT
        return total

    def _buffer(self, natural: Tensor) -> tuple[Tensor, Tensor]:
        if self._buffers is None:
            k, f = natural.shape
            self._buffers = (
                torch.empty(f, self.chunk, dtype=natural.dtype),
                torch.empty(self.emission.num_data, k, dtype=natural.dtype),
            )
        return self._buffers
