"""First-order chains of discrete states: hidden Markov models and their relatives, by forward–backward.

Reference:
    Rabiner, L. R. (1989). A tutorial on hidden Markov models. Proceedings of the IEEE 77(2).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.exact.chain_posterior import ChainPosterior
from ppl_em.exact.engine import Cost, Expected, Weights, count_weights
from ppl_em.exact.forward_backward import chain_log_z, expected_counts
from ppl_em.ir import Factor, Site
from ppl_em.ir.block import Axis, Block


@dataclass(frozen=True)
class ChainTensors:
    """A block's log-factors in the layout of the forward–backward kernels.

    Args:
        init: (*plates, K) log-factor of the first state.
        trans: (K, K) shared, or (*plates, T−1, K, K).
        obs: (*plates, T, K) everything else that is unary.
        shared: name of the one pair site whose factor is ``trans``, or None.
    """

    init: Tensor
    trans: Tensor
    obs: Tensor
    shared: str | None


def chain_tensors(block: Block, factors: Mapping[str, Factor]) -> ChainTensors:
    """Gather a stacked block's log-factors by role.

    Args:
        block: with its time axis.
        factors: log-factor of each (stacked) site.
    """
    axis = _axis(block)
    plates = block.plates
    steps, states = block.sizes[axis.time], block.sizes[axis.now]
    shape = [block.sizes[p] for p in plates]
    some = next(iter(factors.values())).tensor
    dtype = torch.promote_types(some.dtype, torch.float32)
    pairs = [s for s in block.sites if axis.before in s.scope]
    obs: Tensor | None = None
    init = torch.zeros(states, dtype=dtype, device=some.device)
    for site in block.sites:
        if axis.before in site.scope:
            continue
        factor = _onto_plates(block, site, factors[site.name])
        times = block.times[site.name].to(some.device)
        if site.role == "latent" and len(times) == 1 and int(times[0]) == 0:
            init = init + factor.align((*plates, axis.now))
            continue
        part = factor.align((*plates, axis.time, axis.now))
        if len(times) == steps:
            obs = part.expand(*shape, steps, states) if obs is None else obs + part
        else:
            wide = part.expand(*shape, len(times), states)
            zeros = torch.zeros(*shape, steps, states, dtype=dtype, device=some.device)
            obs = (zeros if obs is None else obs).index_add(len(shape), times, wide.to(dtype))
    if obs is None:
        obs = torch.zeros(*shape, steps, states, dtype=dtype, device=some.device)
    shared = _shared_site(block, pairs, factors, axis, steps)
    if shared is not None:
        trans = factors[shared.name].align((axis.before, axis.now)).expand(states, states)
        return ChainTensors(init, trans, obs, shared.name)
    trans = torch.zeros(*([1] * len(shape)), steps - 1, states, states, dtype=dtype, device=some.device)
    for site in pairs:
        factor = _onto_plates(block, site, factors[site.name])
        part = factor.align((*plates, axis.time, axis.before, axis.now))
        times = block.times[site.name].to(some.device) - 1
        wide = part.expand(*part.shape[: len(shape)], len(times), states, states)
        base = trans.expand(
            *torch.broadcast_shapes(trans.shape[: len(shape)], wide.shape[: len(shape)]), *trans.shape[-3:]
        )
        wide = wide.expand(*base.shape[: len(shape)], *wide.shape[-3:])
        trans = base.index_add(len(shape), times, wide.to(dtype))
    return ChainTensors(init, trans, obs, None)


def _axis(block: Block) -> Axis:
    if block.axis is None:
        raise ValueError("the block has no time axis")
    return block.axis


def _onto_plates(block: Block, site: Site, factor: Factor) -> Factor:
    """Sum a factor over plates that the states do not live in (each element counts)."""
    extra = [p for p in site.plates if p not in block.plates]
    return factor.expand({p: block.sizes[p] for p in extra}).sum(extra) if extra else factor


def _shared_site(
    block: Block, pairs: list[Site], factors: Mapping[str, Factor], axis: Axis, steps: int
) -> Site | None:
    if len(pairs) != 1 or len(block.times[pairs[0].name]) != steps - 1:
        return None
    constant = set(factors[pairs[0].name].dims) <= {axis.before, axis.now}
    return pairs[0] if constant and set(pairs[0].plates) <= set(block.plates) else None


class Chain:
    """Chains whose states have one neighbour before and one after."""

    name = "chain"

    def reject(self, block: Block) -> str | None:
        """Only blocks that the planner could stack along a time axis."""
        return None if block.axis is not None else "the latents do not form one chain of equal states"

    def cost(self, block: Block) -> Cost:
        """Forward and backward: 2·T·K² multiply-adds each, for every sequence."""
        axis = _axis(block)
        steps, states = block.sizes[axis.time], block.sizes[axis.now]
        batch = math.prod(block.sizes[p] for p in block.plates)
        return Cost(8.0 * batch * steps * states**2, 8.0 * batch * steps * states * 4)

    def log_z(self, block: Block, factors: Mapping[str, Factor]) -> Factor:
        """Log-partition by sequence, differentiable."""
        chain = chain_tensors(block, factors)
        shape = [block.sizes[p] for p in block.plates]
        return Factor(chain_log_z(chain.init, chain.trans, chain.obs).expand(shape), block.plates)

    def expected(self, block: Block, factors: Mapping[str, Factor]) -> Expected:
        """Expected states and transitions from one forward–backward."""
        detached = {n: Factor(f.tensor.detach(), f.dims) for n, f in factors.items()}
        chain = chain_tensors(block, detached)
        weight = self._step_weights(block, chain)
        counts = expected_counts(chain.init, chain.trans, chain.obs, weight)
        weights = {s.name: self._weights(block, s, chain, counts.gamma, counts.xi) for s in block.sites}
        return Expected(Factor(counts.log_z, block.plates), weights)

    def _step_weights(self, block: Block, chain: ChainTensors) -> Tensor | None:
        """Weight (*plates, T) of the transitions into each step, where one transition factor is shared by all."""
        if chain.shared is None:
            return None
        axis = _axis(block)
        site = next(s for s in block.sites if s.name == chain.shared)
        alive = block.count_weights(site)
        if alive is None and block.scale is None:
            return None
        sizes = {**{p: block.sizes[p] for p in block.plates}, axis.time: block.sizes[axis.time] - 1}
        ones = Factor(torch.ones((), dtype=chain.obs.dtype, device=chain.obs.device), ())
        weights = count_weights(block, site, ones).expand(sizes).align((*block.plates, axis.time))
        return torch.cat([torch.ones_like(weights[..., :1]), weights], -1)

    def _weights(self, block: Block, site: Site, chain: ChainTensors, gamma: Tensor, xi: Tensor) -> Weights:
        axis = _axis(block)
        plates = block.plates
        times = block.times[site.name].to(gamma.device)
        if site.name == chain.shared:
            return Weights(Factor(xi, (axis.before, axis.now)), frozenset((*plates, axis.time)))
        if axis.before in site.scope:
            factor = Factor(
                xi.index_select(len(plates), times - 1), (*plates, axis.time, axis.before, axis.now)
            )
        else:
            factor = Factor(gamma.index_select(len(plates), times), (*plates, axis.time, axis.now))
        if len(times) == 1:
            factor = factor.reduce([axis.time], lambda t, dims: t.squeeze(dims))
        weights = count_weights(block, site, factor)
        if axis.time in weights.dims and axis.time not in site.dims:
            return Weights(weights.sum([axis.time]), frozenset([axis.time]))
        return Weights(weights)

    def posterior(self, block: Block, factors: Mapping[str, Factor]) -> ChainPosterior:
        """Queries from the forward–backward kernels."""
        detached = {n: Factor(f.tensor.detach(), f.dims) for n, f in factors.items()}
        chain = chain_tensors(block, detached)
        return ChainPosterior(block, chain.init, chain.trans, chain.obs)
