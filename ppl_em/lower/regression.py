"""Mixtures of linear regressions: E-step and normal equations in one pass over cache-sized chunks of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.ir import Factor, Site
from ppl_em.ir.block import Block
from ppl_em.ir.design import Design
from ppl_em.lower.families import SiteMoments
from ppl_em.lower.mixture import Lowered
from ppl_em.lower.posterior import DatumLatent
from ppl_em.mstep.given import LostPrecision
from ppl_em.mstep.moments import CANCELLATION

#: Numbers per chunk of products of covariates.
CHUNK_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class RegressionMoments:
    """Expected statistics of residuals, taken at some coefficients.

    Args:
        coefficients: (K, F) where the residuals were taken, by cell.
        count: (K,) total weight.
        gram: (K, F, F) Σ w x xᵀ.
        pull: (K, F) Σ w x r.
        linear: (K, F) Σ w x.
        first: (K,) Σ w r.
        second: (K,) Σ w r².
    """

    coefficients: Tensor
    count: Tensor
    gram: Tensor
    pull: Tensor
    linear: Tensor
    first: Tensor
    second: Tensor

    def about(self, coefficients: Tensor) -> SiteMoments:
        """Moments of the residuals at other coefficients (K, F).

        Raises:
            LostPrecision: nearly everything cancels.
        """
        step = coefficients.double() - self.coefficients
        gained = 2 * (step * self.pull).sum(-1)
        curved = torch.einsum("kf,kfg,kg->k", step, self.gram, step)
        second = self.second - gained + curved
        if bool((second < CANCELLATION * (self.second + gained.abs() + curved)).any()):
            raise LostPrecision("the residuals have shrunk beyond the digits of their old sums of squares")
        first = self.first - (step * self.linear).sum(-1)
        return SiteMoments(self.count, torch.zeros((), dtype=torch.float64), first, second)


class LoweredRegression:
    """One latent per datum, one normal observation whose mean is a linear predictor in each state.

    Args:
        block: a mixture block for which :meth:`accepts` holds.
    """

    def __init__(self, block: Block) -> None:
        self.site = next(s for s in block.sites if s.role == "observed")
        self.design = design_of(self.site)
        self.x = self.design.features[0].mT.contiguous()  # (F, N)
        self.latent = DatumLatent(block, self.x.dtype)
        data, num_data = self.latent.data, self.latent.num_data
        sizes = [block.sizes[d] for d in data]
        self.y = self.site.value.align(data).expand(sizes).reshape(-1).to(self.x.dtype)
        self.width = len(self.x)
        self.pairs = torch.triu_indices(self.width, self.width)
        self.chunk = max(256, min(num_data, CHUNK_ELEMENTS // (self.pairs.shape[1] + self.width)))
        self._buffers: tuple[Tensor, ...] | None = None

    @staticmethod
    def accepts(block: Block) -> bool:
        """Whether the whole block is a mixture of linear regressions on the same covariates."""
        if not DatumLatent.of(block) or len(block.sites) != 2:
            return False
        latent = block.latents[0]
        return all(eligible(s, latent.name, latent.plates) for s in block.sites if s.role == "observed")

    def run(self, parameters: Mapping[str, Tensor]) -> Lowered | None:
        """E-step and expected statistics; None where a density is not finite."""
        dtype, name, num_states = self.x.dtype, self.latent.name, self.latent.num_states
        scale = self.site.arguments["scale"]
        sigma = Factor(scale.evaluate(parameters).detach(), scale.value.dims).align((name,))
        sigma = sigma.expand(num_states).to(dtype)
        constant = self.latent.log_prior(parameters) - sigma.log() - 0.5 * math.log(2 * math.pi)
        coefficients = by_cell(self.design, parameters).to(dtype)
        if not bool(torch.isfinite(sigma).all() & torch.isfinite(coefficients).all()):
            return None
        sums = torch.zeros(num_states, self.pairs.shape[1] + self.width + 1, dtype=torch.float64)
        pulls = torch.zeros(num_states, self.width + 2, dtype=torch.float64)
        total = 0.0
        for start in range(0, self.latent.num_data, self.chunk):
            total += self._chunk(start, coefficients, sigma, constant, sums, pulls)
        if not math.isfinite(total):
            return None
        moments = self._moments(coefficients.double(), sums, pulls)
        return Lowered(total, {self.site.name: moments}, self.latent.weights(sums[:, -1]))

    def _chunk(
        self, start: int, coefficients: Tensor, sigma: Tensor, constant: Tensor, sums: Tensor, pulls: Tensor
    ) -> float:
        stop = min(start + self.chunk, self.latent.num_data)
        products, residual, weights, top, total = (b[..., : stop - start] for b in self._buffer())
        x = self.x[:, start:stop]
        torch.mm(coefficients, x, out=residual)
        if self.design.offset is not None:
            residual.add_(self.design.offset[:, start:stop])
        torch.sub(self.y[start:stop], residual, out=residual)
        torch.mul(residual, (sigma * math.sqrt(2)).reciprocal()[:, None], out=weights)
        torch.addcmul(constant[:, None], weights, weights, value=-1, out=weights)
        likelihood = self.latent.normalise(weights, top, total, start)
        self._fill(x, products)
        sums.add_(weights @ products.mT)
        weights.mul_(residual)
        pulls[:, : self.width].add_(weights @ x.mT)
        pulls[:, -2].add_(weights.sum(1))
        pulls[:, -1].add_(weights.mul_(residual).sum(1))
        return likelihood

    def _fill(self, x: Tensor, out: Tensor) -> None:
        """Products of covariates (upper triangle), the covariates themselves, and ones."""
        at = 0
        for i in range(self.width):
            torch.mul(x[i], x[i:], out=out[at : at + self.width - i])
            at += self.width - i
        out[at:-1].copy_(x)

    def _moments(self, coefficients: Tensor, sums: Tensor, pulls: Tensor) -> RegressionMoments:
        pairs = self.pairs.shape[1]
        gram = sums.new_zeros(self.latent.num_states, self.width, self.width)
        gram[:, self.pairs[0], self.pairs[1]] = sums[:, :pairs]
        gram[:, self.pairs[1], self.pairs[0]] = sums[:, :pairs]
        linear = sums[:, pairs:-1]
        return RegressionMoments(
            coefficients, sums[:, -1], gram, pulls[:, : self.width], linear, pulls[:, -2], pulls[:, -1]
        )

    def _buffer(self) -> tuple[Tensor, ...]:
        if self._buffers is None:
            shapes = (
                (self.pairs.shape[1] + self.width + 1, self.chunk),
                (self.latent.num_states, self.chunk),
                (self.latent.num_states, self.chunk),
                (self.chunk,),
                (self.chunk,),
            )
            self._buffers = tuple(self.x.new_empty(s) for s in shapes)
            self._buffers[0][-1].fill_(1.0)
        return self._buffers


def design_of(site: Site) -> Design:
    """The linear predictor of a normal site's mean."""
    design = site.arguments["loc"].design
    assert design is not None
    return design


def by_cell(design: Design, parameters: Mapping[str, Tensor]) -> Tensor:
    """Coefficients (G, F) of each cell."""
    return design.coefficients(parameters).detach()[design.index]


def eligible(site: Site, state: str, data: tuple[str, ...]) -> bool:
    """Whether a site is a linear regression in each state, on covariates that all states share."""
    if not site.lowered or site.family is None or site.family.__name__ != "Normal" or site.mask is not None:
        return False
    if site.scope != (state,) or site.inner or site.options or set(site.value.dims) != set(data):
        return False
    design, scale = site.arguments["loc"].design, site.arguments["scale"]
    if design is None or design.transform.name != "identity" or not site.value.tensor.is_floating_point():
        return False
    shared = len(design.features) == 1 and bool((design.index >= 0).all())
    return (
        shared
        and design.cells == (state,)
        and design.data == data
        and scale.value.dims == (state,)
        and bool(scale.links)
    )
