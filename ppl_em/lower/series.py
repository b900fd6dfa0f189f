"""The series of a block: which of their steps count, their factors, and what is expected of their states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.exact.chain_scaled import ScaledTransitions, scaled_transitions
from ppl_em.exact.engine import count_weights
from ppl_em.ir import Factor, Site
from ppl_em.ir.block import Axis, Block


@dataclass(frozen=True)
class Series:
    """The series of a stacked block, all with one transition; each counts from its first step to its own last.

    Attributes:
        block: with its time axis.
        init, pair: sites of the first state, and of each next one.
        lengths: (N) steps of each series up to the last that counts, at least one.
        weight: (N) how often each series counts, or None for once.
    """

    block: Block
    init: Site
    pair: Site
    lengths: Tensor
    weight: Tensor | None

    @classmethod
    def of(cls, block: Block, mask: Tensor | None) -> Series | None:
        """The series; None where a step does not count that lies before others that do.

        Args:
            block: with a time axis.
            mask: (number of data, ...) which of the data count, time last; None for all.
        """
        axis, latents = block.axis, [s for s in block.sites if s.role == "latent"]
        if axis is None or len(latents) != 2:
            return None
        steps = block.sizes[axis.time]
        pairs = [s for s in latents if axis.before in s.scope]
        inits = [s for s in latents if axis.before not in s.scope]
        if (
            len(pairs) != 1
            or block.times[inits[0].name].tolist() != [0]
            or len(block.times[pairs[0].name]) != steps - 1
        ):
            return None
        shape = [block.sizes[p] for p in block.plates]
        counts = torch.ones(*shape, steps, dtype=torch.bool)
        alive = block.count_weights(pairs[0])
        if alive is not None:
            wide = alive.expand({p: block.sizes[p] for p in block.plates} | {axis.time: steps - 1})
            counts[..., 1:] = wide.align((*block.plates, axis.time))
        counts = counts.reshape(-1, steps)
        matters = counts if mask is None else counts | mask.reshape(-1, steps)
        lengths = (matters * torch.arange(1, steps + 1)).amax(1).clamp_(min=1)
        if not bool((counts.cumprod(1).sum(1) >= lengths).all()):
            return None
        return cls(block, inits[0], pairs[0], lengths, _per_series(block.scale, block))

    @property
    def axis(self) -> Axis:
        """The time axis."""
        assert self.block.axis is not None
        return self.block.axis

    @property
    def num_states(self) -> int:
        """K."""
        return self.block.sizes[self.axis.now]

    @property
    def num_steps(self) -> int:
        """Steps of the time axis, padding included."""
        return self.block.sizes[self.axis.time]

    def initial(self, parameters: Mapping[str, Tensor], dtype: torch.dtype) -> Tensor:
        """Log-factor (N, K) of the first states."""
        factor, plates = self.init.log_factor(parameters).map(Tensor.detach), self.block.plates
        if self.axis.time in factor.dims:
            factor = factor.reduce([self.axis.time], lambda t, dims: t.squeeze(dims))
        wide = factor.align((*plates, self.axis.now)).to(dtype)
        return wide.expand(*(self.block.sizes[p] for p in plates), self.num_states).reshape(-1, self.num_states)

    def transitions(self, parameters: Mapping[str, Tensor], dtype: torch.dtype) -> ScaledTransitions | None:
        """What all steps of all series share, out of log space; None where it cannot be trusted."""
        factor = self.pair.log_factor(parameters).map(Tensor.detach)
        if not set(factor.dims) <= {self.axis.before, self.axis.now}:
            return None
        matrix = factor.align((self.axis.before, self.axis.now)).expand(self.num_states, self.num_states).to(dtype)
        trans = scaled_transitions(matrix[None, None])
        return trans if trans.sure and trans.into.dtype == dtype else None

    def latent_weights(self, first: Tensor, xi: Tensor) -> dict[str, tuple[Factor, frozenset[str]]]:
        """Expected weights of the sites of the states, and the dimensions summed over.

        Args:
            first: (N, K) marginals of the first states.
            xi: (K, K) expected transitions, weighted.
        """
        plates = self.block.plates
        shape = [self.block.sizes[p] for p in plates]
        starts = Factor(first.reshape(*shape, -1), (*plates, self.axis.now))
        moves = Factor(xi.to(first.dtype), (self.axis.before, self.axis.now))
        return {
            self.init.name: (count_weights(self.block, self.init, starts), frozenset()),
            self.pair.name: (moves, frozenset((*plates, self.axis.time))),
        }


def _per_series(scale: Factor | None, block: Block) -> Tensor | None:
    if scale is None:
        return None
    return scale.expand({p: block.sizes[p] for p in block.plates}).align(block.plates).reshape(-1)
