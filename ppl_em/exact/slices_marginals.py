"""Marginals of a chain of slices, mapped back from joint states to the latents."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_em.exact import chain_queries
from ppl_em.exact.bucket_posterior import BucketPosterior
from ppl_em.exact.chain_outer import Outer
from ppl_em.exact.chain_slices import SliceFactors, slice_factors
from ppl_em.exact.forward_backward import chain_log_z, expected_counts
from ppl_em.ir import Factor
from ppl_em.ir.block import Block
from ppl_em.ir.slices import Slices


class SlicesMarginals:
    """Posterior over the latents of one chain of slices (or of many, in plates).

    Args:
        block: with its slices.
        factors: log-factors by site, detached.
    """

    def __init__(self, block: Block, factors: Mapping[str, Factor]) -> None:
        assert block.slices is not None
        self.block, self.slices = block, block.slices
        self._factors = factors
        self._chain = slice_factors(block, factors)
        self._gamma: Factor | None = None
        slices = self.slices
        self.linked = tuple(slices.now[i] for i in slices.linked)
        self.hidden = tuple(slices.now[i] for i in sorted(slices.private))
        self._each = self._expanded(chain_log_z(*self._args()))
        self._outer: BucketPosterior | None = None
        self._share = torch.ones(())
        if slices.outer:
            outer = Outer(block, slices)
            self._outer = outer.posterior(factors, self._each)
            self._share = outer.expected(factors, self._each)[1]
            self.log_z = self._outer.log_z
        else:
            self.log_z = Factor(self._each, slices.plates)

    def _args(self) -> tuple[Tensor, Tensor, Tensor]:
        return self._chain.init, self._chain.trans, self._chain.obs

    def _expanded(self, tensor: Tensor) -> Tensor:
        sizes = [self.block.sizes[d] for d in self.slices.batch]
        return tensor.expand((*sizes, *tensor.shape[len(sizes) :]))

    @property
    def within(self) -> Factor | None:
        """Probability of private latents given the state of their slice."""
        return private_given(self._chain, self.slices)

    @property
    def gamma(self) -> Factor:
        """Probability by batch, time and linked slots, times that of the outer latents' values."""
        if self._gamma is None:
            gamma = expected_counts(*self._args()).gamma * self._share[..., None, None]
            self._gamma = self._states(gamma, self.slices.time)
        return self._gamma

    def _states(self, tensor: Tensor, *dims: str) -> Factor:
        """A tensor (*batch, …dims, S) with its states by linked slots."""
        shape = [self.block.sizes[d] for d in self.linked]
        return Factor(tensor.reshape(*tensor.shape[:-1], *shape), (*self.slices.batch, *dims, *self.linked))

    def _slice(self, t: int) -> Factor:
        """Joint probability of all latents of a slice, by batch, linked and private slots."""
        found = select(self.gamma, self.slices.time, t)
        within = self.within
        return found if within is None else found * select(within, self.slices.time, t)

    def marginal(self, name: str) -> Factor:
        """Posterior probabilities of one latent, plates first, its own dimension last."""
        if self._outer is not None and name in self.slices.outer:
            return self._outer.marginal(name)
        t, slot = self.slices.home[name]
        return self._named(self._slice(t), {self.slices.now[slot]: name}, (name,))

    def _named(self, factor: Factor, names: Mapping[str, str], order: tuple[str, ...]) -> Factor:
        """A factor with roles under the latents' names, everything but these and the plates summed."""
        renamed = Factor(factor.tensor, tuple(names.get(d, d) for d in factor.dims))
        kept = renamed.sum([d for d in renamed.dims if d not in order and d not in self.slices.plates])
        plates = tuple(p for p in self.slices.plates if p in kept.dims)
        return kept.to((*plates, *order))

    def pairwise(self, a: str, b: str) -> Factor:
        """Joint posterior probabilities of two latents, however far apart."""
        outer, now = self.slices.outer, self.slices.now
        if a in outer and b in outer:
            assert self._outer is not None
            return self._outer.pairwise(a, b)
        if a in outer or b in outer:
            t, slot = self.slices.home[b if a in outer else a]
            return self._named(self._slice(t), {now[slot]: b if a in outer else a}, (a, b))
        (s, i), (t, j) = self.slices.home[a], self.slices.home[b]
        if s == t:
            return self._named(self._slice(t), {now[i]: a, now[j]: b}, (a, b))
        if s > t:
            return self.pairwise(b, a).to((*(p for p in self.slices.plates), a, b))
        joint = chain_queries.pairwise_between(*self._args(), s, t) * self._share[..., None, None]
        shape = [self.block.sizes[d] for d in self.linked]
        earlier = tuple(f"@earlier {d}" for d in self.linked)
        joint = joint.reshape(*joint.shape[:-2], *shape, *shape)
        factor = Factor(joint, (*self.slices.batch, *earlier, *self.linked))
        names = {f"@earlier {now[i]}": a, now[j]: b}
        within = self.within
        if within is not None:
            at_s = select(within, self.slices.time, s)
            hidden = {d: f"@earlier {d}" for d in (*self.linked, *self.hidden)}
            if i in self.slices.private:
                factor = factor * Factor(at_s.tensor, tuple(hidden.get(d, d) for d in at_s.dims))
            if j in self.slices.private:
                factor = factor * select(within, self.slices.time, t)
        return self._named(factor, names, (a, b))


def private_given(chain: SliceFactors, slices: Slices) -> Factor | None:
    """Probability of each slice's private latents given its state, by the dimensions of ``chain.within``."""
    if chain.within is None:
        return None
    hidden = [slices.now[i] for i in sorted(slices.private)]
    flat = chain.within.tensor.flatten(-len(hidden))
    # A state that leaves its private latents no possible value is itself impossible.
    probs = torch.nan_to_num(torch.softmax(flat, -1))
    return Factor(probs.reshape(chain.within.tensor.shape), chain.within.dims)


def select(factor: Factor, dim: str, position: int) -> Factor:
    """A factor at one position along a dimension (that may be missing or of size 1: constant)."""
    if dim not in factor.dims:
        return factor
    axis = factor.dims.index(dim)
    at = position if factor.tensor.shape[axis] > 1 else 0
    return Factor(factor.tensor.select(axis, at), tuple(d for d in factor.dims if d != dim))
