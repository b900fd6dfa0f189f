"""Plated variable elimination: any block of discrete latents, in time and memory exponential in its width only.

Reference:
    Obermeyer, F. et al. (2019). Tensor variable elimination for plated factor graphs. ICML.
    Darwiche, A. (2003). A differential approach to inference in Bayesian networks. J. ACM 50(3).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ppl_em.exact.bucket_posterior import BucketPosterior
from ppl_em.exact.contraction import Contraction, Crossing, plan_contraction
from ppl_em.exact.engine import Cost, Expected, Weights, count_weights
from ppl_em.exact.slicing import Slicing, choose_slicing
from ppl_em.ir import Factor, Site
from ppl_em.ir.block import Block

#: A block's contraction follows from its shapes alone: it is worked out once and lives as long as the block.
_KEPT = "_contraction"


@dataclass(frozen=True)
class Elimination:
    """General plated elimination, the engine for blocks of any shape.

    Args:
        slicing: what is taken one by one to stay within a memory budget.
    """

    slicing: Slicing = Slicing()
    name = "elimination"

    def reject(self, block: Block) -> str | None:
        """Crossed plates whose elements are too many to be taken one by one are refused; all else is accepted."""
        try:
            contraction_of(block)
        except Crossing as crossing:
            return (
                f"a factor crosses the plates {', '.join(sorted(crossing.plates))}, which have latents of their own: "
                "its cost grows exponentially with the smaller plate"
            )
        return None

    def cost(self, block: Block) -> Cost:
        """From sizes alone: buckets are kept for the backward pass."""
        contraction = contraction_of(block, self.slicing)
        runs, chunks = self.slicing.runs(block), self.slicing.chunks
        inputs = sum(math.prod(block.sizes[d] for d in s.scope + s.plates) for s in block.sites)
        passes = 3.0 if runs > 1 else 2.0
        held = contraction.stored + contraction.largest
        return Cost(passes * runs * contraction.flops / 2, 8.0 * (2.0 * inputs + held / chunks))

    def within(self, block: Block, max_bytes: float, max_flops: float) -> Elimination:
        """The engine with as much slicing as a budget asks for (it may still be too little)."""
        if self.cost(block).bytes <= max_bytes:
            return self
        return replace(self, slicing=choose_slicing(block, self, max_bytes, max_flops))

    def log_z(self, block: Block, factors: Mapping[str, Factor]) -> Factor:
        """Log-partition by the block's plates, differentiable."""
        full = full_factors(block, factors)
        contraction = contraction_of(block, self.slicing)
        if self.slicing.trivial:
            return contraction.run(list(full.values()), Factor.logsumexp)[0]
        names, dims = list(full), [f.dims for f in full.values()]

        def one(*tensors: Tensor) -> Tensor:
            parts = [Factor(t, d) for t, d in zip(tensors, dims, strict=True)]
            return contraction.run(parts, Factor.logsumexp)[0].align(block.plates)

        def piece(tensors: Mapping[str, Factor]) -> Tensor:
            inputs = [tensors[n].tensor for n in names]
            if any(t.requires_grad for t in inputs):
                return checkpoint(one, *inputs, use_reentrant=False)
            return one(*inputs)

        parts = [
            torch.logsumexp(torch.stack([piece(values) for _, values in self.slicing.values(block, chunk)]), 0)
            for chunk in self.slicing.pieces(block, full)
        ]
        return Factor(torch.cat(parts) if len(parts) > 1 else parts[0], block.plates)

    def expected(self, block: Block, factors: Mapping[str, Factor]) -> Expected:
        """Expected weights as the gradient of log Z with respect to each log-factor."""
        log_z, grads = self.gradients(block, full_factors(block, factors))
        weights = {s.name: Weights(count_weights(block, s, grads[s.name])) for s in block.sites}
        return Expected(log_z, weights)

    def gradients(self, block: Block, full: Mapping[str, Factor]) -> tuple[Factor, dict[str, Factor]]:
        """Log Z and its derivative with respect to each log-factor (which has all its dimensions)."""
        full = {n: Factor(f.tensor.detach(), f.dims) for n, f in full.items()}
        contraction = contraction_of(block, self.slicing)
        if self.slicing.trivial:
            return _gradients(contraction, full)
        log_z, grads = [], []
        for chunk in self.slicing.pieces(block, full):
            log_total = self._total(block, contraction, chunk)
            sums = {n: Factor(torch.zeros_like(f.tensor), f.dims) for n, f in chunk.items()}
            for region, values in self.slicing.values(block, chunk):
                part, derivative = _gradients(contraction, values)
                share = Factor((part.align(block.plates) - log_total).exp(), block.plates)
                for n, g in derivative.items():
                    region(sums[n]).tensor.add_((g * share).align(g.dims))
            log_z.append(log_total)
            grads.append(sums)
        joined = {n: self.slicing.join(block, [g[n] for g in grads]) for n in full}
        return Factor(torch.cat(log_z) if len(log_z) > 1 else log_z[0], block.plates), joined

    def _total(self, block: Block, contraction: Contraction, chunk: Mapping[str, Factor]) -> Tensor:
        with torch.no_grad():
            parts = [
                contraction.run(list(values.values()), Factor.logsumexp)[0].align(block.plates)
                for _, values in self.slicing.values(block, chunk)
            ]
        return torch.logsumexp(torch.stack(parts), 0)

    def posterior(self, block: Block, factors: Mapping[str, Factor]) -> BucketPosterior:
        """Queries from the elimination's buckets."""
        full = {n: Factor(f.tensor.detach(), f.dims) for n, f in full_factors(block, factors).items()}
        return BucketPosterior(block, full, self)


def full_factors(block: Block, factors: Mapping[str, Factor]) -> dict[str, Factor]:
    """Log-factors of all sites with all their latents and plates present (views)."""
    return {s.name: _full(block, s, factors[s.name]) for s in block.sites}


def _full(block: Block, site: Site, factor: Factor) -> Factor:
    order = tuple(dict.fromkeys((*site.plates, *site.scope)))
    wide = factor.expand({d: block.sizes[d] for d in order})
    return wide if wide.dims == order else wide.to(order)


def scopes_of(block: Block) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Latents and plates of each site."""
    return [(s.scope, s.plates) for s in block.sites]


def contraction_of(block: Block, slicing: Slicing | None = None) -> Contraction:
    """The contraction of a block; that without slicing is worked out once.

    Raises:
        Crossing: the plates that it crosses have too many elements.
    """
    if slicing is not None and slicing.latents:
        sizes = {**block.sizes, **dict.fromkeys(slicing.latents, 1)}
        return plan_contraction(block, scopes_of(block), sizes)
    if _KEPT not in block.__dict__:
        block.__dict__[_KEPT] = plan_contraction(block, scopes_of(block))
    return block.__dict__[_KEPT]


def _gradients(contraction: Contraction, full: Mapping[str, Factor]) -> tuple[Factor, dict[str, Factor]]:
    leaves = {n: Factor(f.tensor.detach().requires_grad_(True), f.dims) for n, f in full.items()}
    with torch.enable_grad():
        log_z, _ = contraction.run(list(leaves.values()), Factor.logsumexp)
        tensors: Sequence[Tensor] = [f.tensor for f in leaves.values()]
        grads = torch.autograd.grad(log_z.tensor.sum(), tensors, allow_unused=True)
    found = {
        n: Factor(torch.zeros_like(f.tensor) if g is None else g, f.dims)
        for (n, f), g in zip(leaves.items(), grads, strict=True)
    }
    return Factor(log_z.align(contraction.block.plates).detach(), contraction.block.plates), found
