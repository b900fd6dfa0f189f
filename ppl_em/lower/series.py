"""Which steps of the series of a block count: those from the first to each one's own last."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.ir import Factor, Site
from ppl_em.ir.block import Block


@dataclass(frozen=True)
class Series:
    """The series of a stacked block, all with one transition.

    Attributes:
        init, pair: sites of the first state, and of each next one.
        lengths: (N) steps of each series up to the last that counts, at least one.
        weight: (N) how often each series counts, or None for once.
    """

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
        return cls(inits[0], pairs[0], lengths, _per_series(block.scale, block))


def _per_series(scale: Factor | None, block: Block) -> Tensor | None:
    if scale is None:
        return None
    return scale.expand({p: block.sizes[p] for p in block.plates}).align(block.plates).reshape(-1)
