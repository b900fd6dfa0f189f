"""Chains of discrete states: hidden Markov models and their relatives, by forward–backward.

A chain's state may be the joint state of several latents (factorial, coupled, hierarchical chains, longer memory); a
latent that lives through the whole chain (the class of a sequence) is summed outside, over one chain for each value.

Reference:
    Rabiner, L. R. (1989). A tutorial on hidden Markov models. Proceedings of the IEEE 77(2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.exact.chain_buffers import ChainBuffers
from ppl_em.exact.chain_outer import Outer
from ppl_em.exact.chain_posterior import ChainPosterior
from ppl_em.exact.chain_slices import SliceFactors, in_chain, is_pair, slice_factors, slices_of
from ppl_em.exact.engine import BlockPosterior, Cost, Expected, Weights, count_weights
from ppl_em.exact.forward_backward import chain_log_z, expected_counts
from ppl_em.exact.slices_marginals import private_given
from ppl_em.exact.slices_posterior import SlicesPosterior
from ppl_em.ir import Factor, Site
from ppl_em.ir.block import Block
from ppl_em.ir.slices import Slices


class Chain:
    """Chains whose state at each step has one neighbour before and one after.

    Args:
        buffers: memory for a loop of E-steps over the same block; expected weights may lie in it and are then
            overwritten by the next E-step. None to allocate at each.
    """

    name = "chain"

    def __init__(self, buffers: ChainBuffers | None = None) -> None:
        self.buffers = buffers

    def reject(self, block: Block) -> str | None:
        """Only blocks that the planner could stack along a time axis."""
        if block.axis is not None or block.slices is not None:
            return None
        return "the latents do not form one chain of equal states"

    def cost(self, block: Block) -> Cost:
        """Forward and backward: 2·T·K² multiply-adds each, for every sequence."""
        slices = slices_of(block)
        steps = block.sizes[slices.time]
        states = math.prod(block.sizes[slices.now[i]] for i in slices.linked)
        private = math.prod(block.sizes[slices.now[i]] for i in slices.private)
        batch = math.prod(block.sizes[d] for d in slices.batch)
        elements = batch * steps * states * (4 + 3 * (private if slices.private else 0))
        pairs = [s for s in block.sites if is_pair(slices, s)]
        shared = all(slices.time not in s.dims and len(block.times[s.name]) == steps - 1 for s in pairs)
        along = {d for s in pairs for d in s.dims if d in slices.batch and (d in slices.outer or not shared)}
        tables = states**2 * math.prod(block.sizes[d] for d in along) * (1 if shared else steps - 1)
        flops = 8.0 * batch * steps * states**2
        return Cost(flops, 8.0 * (elements + (0 if shared and not along else 3 * tables)))

    def log_z(self, block: Block, factors: Mapping[str, Factor]) -> Factor:
        """Log-partition by sequence, differentiable."""
        slices, chain = slices_of(block), slice_factors(block, factors)
        log_z = chain_log_z(chain.init, chain.trans, chain.obs).expand([block.sizes[d] for d in slices.batch])
        return Outer(block, slices).log_z(factors, log_z) if slices.outer else Factor(log_z, slices.plates)

    def expected(self, block: Block, factors: Mapping[str, Factor]) -> Expected:
        """Expected weights of every site from one forward–backward."""
        detached = {n: Factor(f.tensor.detach(), f.dims) for n, f in factors.items()}
        return Counting(block, detached, self.buffers).expected()

    def posterior(self, block: Block, factors: Mapping[str, Factor]) -> BlockPosterior:
        """Queries from the forward–backward kernels."""
        detached = {n: Factor(f.tensor.detach(), f.dims) for n, f in factors.items()}
        if block.slices is not None:
            return SlicesPosterior(block, detached)
        chain = slice_factors(block, detached)
        return ChainPosterior(block, chain.init, chain.trans, chain.obs)


@dataclass(frozen=True)
class Occupancy:
    """Posterior of the states.

    Args:
        gamma: probability by batch, time and linked slots, times that of the outer latents' values.
        within: probability of private latents given the state, or None.
    """

    gamma: Factor
    within: Factor | None


class Counting:
    """One E-step of a stacked block.

    Args:
        block: the block.
        factors: log-factors by site, detached.
        buffers: memory to work in, or None.
    """

    def __init__(self, block: Block, factors: Mapping[str, Factor], buffers: ChainBuffers | None = None) -> None:
        self.block, self.factors, self.buffers = block, factors, buffers
        self.slices: Slices = slices_of(block)
        self.chain: SliceFactors = slice_factors(block, factors)
        self.shape = [block.sizes[d] for d in self.slices.batch]
        self.share: Tensor | None = None  # probability of the outer latents' values, (*outer, *plates)

    def expected(self) -> Expected:
        """Log-partition and expected weights of every site."""
        block, slices, weights = self.block, self.slices, {}
        if slices.outer:
            outer = Outer(block, slices)
            each = chain_log_z(self.chain.init, self.chain.trans, self.chain.obs).expand(self.shape)
            found, self.share = outer.expected(self.factors, each)
            for site in outer.sites:
                weights[site.name] = Weights(count_weights(block, site, found.weights[site.name].factor))
        groups = self._pair_groups()
        chain, buffers = self.chain, self.buffers if len(groups) == 1 else None
        counts = [expected_counts(chain.init, chain.trans, chain.obs, weight, buffers) for weight, _ in groups]
        log_z = Factor(counts[0].log_z, slices.plates) if not slices.outer else found.log_z
        for (_, members), count in zip(groups, counts, strict=True):
            weights.update({s.name: self._pair_weights(s, count.xi) for s in members})
        occupancy = self._occupancy(counts[0].gamma)
        for site in block.sites:
            if in_chain(slices, site) and not is_pair(slices, site):
                weights[site.name] = self._state_weights(site, occupancy)
        return Expected(log_z, {s.name: weights[s.name] for s in block.sites})

    def _pair_groups(self) -> list[tuple[Tensor | None, list[Site]]]:
        """Sites that link slices, by how often the transition into each step counts for them."""
        groups: list[tuple[Tensor | None, list[Site]]] = []
        for site in self.block.sites:
            if not is_pair(self.slices, site):
                continue
            weight = self._step_weights(site)
            for known, members in groups:
                if _same(known, weight):
                    members.append(site)
                    break
            else:
                groups.append((weight, [site]))
        return groups

    def _step_weights(self, site: Site) -> Tensor | None:
        """Weight (*batch, T) of the transitions into each step, None for one."""
        block, slices = self.block, self.slices
        alive = block.count_weights(site)
        if alive is None and block.scale is None and self.share is None:
            return None
        obs = self.chain.obs
        ones = Factor(torch.ones((), dtype=obs.dtype, device=obs.device), ())
        weights = count_weights(block, site, ones)
        if self.share is not None:
            weights = weights * Factor(self.share.to(obs.dtype), slices.batch)
        times = block.times[site.name].to(obs.device)
        sizes = {d: block.sizes[d] for d in slices.batch}
        weights = weights.expand({**sizes, slices.time: len(times)})
        some = weights.align((*slices.batch, slices.time))
        return torch.ones(*self.shape, block.sizes[slices.time], dtype=obs.dtype, device=obs.device).index_copy(
            len(self.shape), times, some.to(obs.dtype)
        )

    def _pair_weights(self, site: Site, xi: Tensor) -> Weights:
        slices = self.slices
        before = tuple(slices.before[i] for i in slices.linked)
        now = tuple(slices.now[i] for i in slices.linked)
        shape = [self.block.sizes[d] for d in now]
        outside = (*slices.batch, slices.time)
        leading = (1,) * (len(outside) + 2 - xi.dim()) + tuple(xi.shape[:-2])
        factor = Factor(xi.reshape(*leading, *shape, *shape), (*outside, *before, *now))
        summed = {d for d, n in zip(outside, leading, strict=True) if n == 1}
        if slices.time not in summed:
            times = self.block.times[site.name].to(xi.device) - 1
            if len(times) < leading[-1]:
                factor = Factor(factor.tensor.index_select(len(slices.batch), times), factor.dims)
            if slices.time not in site.dims:
                factor, summed = factor.sum([slices.time]), summed | {slices.time}
        gone = [d for d in (*slices.outer, *before, *now) if d not in site.scope]
        factor = factor.sum(gone).reduce(summed, lambda t, dims: t.squeeze(dims))
        return Weights(factor, frozenset(summed - set(slices.outer)))

    def _occupancy(self, gamma: Tensor) -> Occupancy:
        slices = self.slices
        linked = tuple(slices.now[i] for i in slices.linked)
        if self.share is not None:
            gamma = gamma * self.share.to(gamma.dtype)[..., None, None]
        shape = [self.block.sizes[d] for d in linked]
        dims = (*slices.batch, slices.time, *linked)
        return Occupancy(Factor(gamma.reshape(*gamma.shape[:-1], *shape), dims), private_given(self.chain, slices))

    def _state_weights(self, site: Site, occupancy: Occupancy) -> Weights:
        block, slices = self.block, self.slices
        factor = occupancy.gamma
        if occupancy.within is not None and any(d in occupancy.within.dims for d in site.scope if d not in factor.dims):
            factor = factor * occupancy.within
        gone = [d for d in (*slices.outer, *slices.now) if d not in site.scope]
        times = block.times[site.name].to(factor.tensor.device)
        if len(times) < block.sizes[slices.time]:
            position = factor.dims.index(slices.time)
            factor = Factor(factor.tensor.index_select(position, times), factor.dims)
        factor = factor.sum(gone)
        if len(times) == 1:
            factor = factor.reduce([slices.time], lambda t, dims: t.squeeze(dims))
        weights = count_weights(block, site, factor)
        if slices.time in weights.dims and slices.time not in site.dims:
            return Weights(weights.sum([slices.time]), frozenset([slices.time]))
        return Weights(weights)


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.equal(a, b)
