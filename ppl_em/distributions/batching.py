"""From Pyro's batch shapes to the axes of the chart: G grammars × M sentences.

A grammar that is shared by the batch must not be copied for each sentence: batch dims along which an argument
varies become the grammar axis, all others the sentence axis. Sentences are sorted by falling length, so that
the chart's wider diagonals hold only those that are long enough.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn.functional import embedding

__all__ = ["Layout"]


@dataclass(frozen=True)
class Layout:
    """How a batch is arranged.

    Attributes:
        batch_shape: Broadcast batch shape of distribution and value.
        grammar_dims: Batch dims (from the left) along which an argument varies.
        tokens: (G, M, N) int64, sorted.
        lengths: (G, M) int64, falling along M.
        order: (G, M) int64, the position before sorting.
    """

    batch_shape: torch.Size
    grammar_dims: tuple[int, ...]
    tokens: Tensor
    lengths: Tensor
    order: Tensor

    @staticmethod
    def of(value: Tensor, lengths: Tensor, batch_shape: torch.Size, shapes: Sequence[torch.Size]) -> Layout:
        """Arranges `value` (…, N) with `lengths` (…) for arguments whose batch shapes are `shapes`."""
        rank = len(batch_shape)
        padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
        varying = tuple(d for d in range(rank) if any(shape[d] > 1 for shape in padded))
        dims = (*varying, *(d for d in range(rank) if d not in varying))
        g = prod(batch_shape[d] for d in varying)
        m = prod(batch_shape[d] for d in dims[len(varying) :])
        lengths = lengths.expand(batch_shape).permute(dims).reshape(g, m)
        width = max(int(lengths.amax()) if lengths.numel() else 0, 1)
        tokens = value.expand(*batch_shape, -1)[..., :width].permute([*dims, rank]).reshape(g, m, -1)
        lengths, order = lengths.sort(dim=-1, descending=True, stable=True)
        tokens = tokens.gather(1, order.unsqueeze(-1).expand(g, m, tokens.shape[-1]))
        return Layout(batch_shape, varying, tokens, lengths, order)

    def grammar(self, argument: Tensor, event_dim: int) -> Tensor:
        """Returns an argument with its batch dims flattened to the grammar axis, (G, *event)."""
        event = argument.shape[argument.dim() - event_dim :]
        sizes = [size if d in self.grammar_dims else 1 for d, size in enumerate(self.batch_shape)]
        return argument.expand(*sizes, *event).reshape(-1, *event)

    def terminals(self, emissions: Tensor) -> Tensor:
        """Returns the probability of each word under each preterminal, (G, M, N, PT), zero for padding.

        Args:
            emissions: (G, PT, V).
        """
        g, _, v = emissions.shape
        position = torch.arange(self.tokens.shape[-1], device=self.tokens.device)
        word = (position < self.lengths.unsqueeze(-1)) & (self.tokens >= 0) & (self.tokens < v)
        offset = v * torch.arange(g, device=self.tokens.device)[:, None, None]
        table = emissions.mT.reshape(g * v, -1)
        found = embedding(self.tokens.clamp(0, v - 1) + offset, table)
        return found.where(word.unsqueeze(-1), 0)

    def restore(self, result: Tensor) -> Tensor:
        """Returns a result per sentence (G, M, *rest) in the shape (*batch, *rest)."""
        rest = result.shape[2:]
        place = self.order.argsort(-1)
        place = place.reshape(*place.shape, *(1,) * len(rest)).expand_as(result)
        rank = len(self.batch_shape)
        dims = [*self.grammar_dims, *(d for d in range(rank) if d not in self.grammar_dims)]
        shaped = result.gather(1, place).reshape([*(self.batch_shape[d] for d in dims), *rest])
        back = [dims.index(d) for d in range(rank)]
        return shaped.permute([*back, *range(rank, rank + len(rest))])
