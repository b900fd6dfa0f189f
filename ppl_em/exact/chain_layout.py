"""How the steps of many chains lie in memory as the columns of matrices, whole or cut into blocks of time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.exact.chain_buffers import ChainBuffers

# A step over fewer columns than this costs mostly its dispatch; shorter or fewer blocks than these spend more
# on their boundaries than they save.
_COLUMNS = 1024
_SHORTEST_BLOCK = 48
_FEWEST_BLOCKS = 8


@dataclass(frozen=True)
class Layout:
    """``G`` groups of ``N`` chains of ``T`` steps, each cut into blocks that are worked on side by side.

    Blocks stand beside each other as columns where a group's transition is the same at every step, else as
    groups. Work arrays have the shape ``(L, G', K, N')``.

    Attributes:
        num_groups: ``G``.
        num_chains: ``N``.
        num_steps: ``T``.
        num_blocks: How many blocks a chain is cut into.
        length: ``L``, steps of a block; the last block is padded.
        as_groups: Whether blocks multiply ``G`` rather than ``N``.
    """

    num_groups: int
    num_chains: int
    num_steps: int
    num_blocks: int
    length: int
    as_groups: bool

    @property
    def tail(self) -> int:
        """Position in the last block of a chain's last step."""
        return (self.num_steps - 1) % self.length

    @property
    def axis(self) -> int:
        """Dimension of ``(G', K, N')`` along which blocks lie."""
        return 0 if self.as_groups else -1

    def block(self, index: int) -> tuple:
        """Index into ``(G', K, N')``, or ``(K, N')``, of one block of every chain (-1 the last)."""
        every = slice(index % self.num_blocks, None, self.num_blocks)
        return (every,) if self.as_groups else (..., every)

    def stack(self, rows: Tensor, buffers: ChainBuffers, name: str, like: Tensor) -> Tensor:
        """``(G, N, T, K)`` to ``(L, G', K, N')`` in a buffer, as ``like``; zeros behind the last step."""
        full, rest = self.num_blocks - 1, self.num_steps - (self.num_blocks - 1) * self.length
        num_groups, num_chains = self.array_shape
        stacked = buffers.take(name, (self.length, num_groups, rows.shape[-1], num_chains), like)
        blocks = self._blocks(stacked)
        if full:
            head = rows[:, :, : full * self.length].unflatten(2, (full, self.length))
            blocks[..., :full].copy_(head.permute(3, 0, 4, 1, 2))
        blocks[:rest, ..., full].copy_(rows[:, :, full * self.length :].permute(2, 0, 3, 1))
        blocks[rest:, ..., full] = 0.0
        return stacked

    def unstack(self, stacked: Tensor, out: Tensor, rows: slice | Tensor) -> None:
        """``(L, G', K, N')`` back into the ``rows`` of ``out`` ``(G, N or more, T or more, K)``."""
        full, rest = self.num_blocks - 1, self.num_steps - (self.num_blocks - 1) * self.length
        blocks = self._blocks(stacked)
        if full:
            head = out[:, :, : full * self.length].unflatten(2, (full, self.length))
            put_rows(head, rows, blocks[..., :full].permute(1, 3, 4, 0, 2))
        last = out[:, :, full * self.length : self.num_steps]
        put_rows(last, rows, blocks[:rest, ..., full].permute(1, 3, 0, 2))

    @property
    def array_shape(self) -> tuple[int, int]:
        """``G'`` and ``N'``."""
        if self.as_groups:
            return self.num_groups * self.num_blocks, self.num_chains
        return self.num_groups, self.num_chains * self.num_blocks

    def _blocks(self, stacked: Tensor) -> Tensor:
        """A work array ``(L, G', K, N')`` seen as ``(L, G, K, N, blocks)``."""
        if self.as_groups:
            return stacked.unflatten(1, (self.num_groups, self.num_blocks)).movedim(2, -1)
        return stacked.unflatten(-1, (self.num_chains, self.num_blocks))

    def stack_transitions(self, trans: Tensor) -> Tensor:
        """``(T, G, K, K)``, entry ``t`` into step ``t``, to ``(L, G', K, K)``; one for all steps stays."""
        if not self.as_groups:
            return trans
        padded = trans.new_ones(self.num_blocks * self.length, *trans.shape[1:])
        padded[: self.num_steps] = trans
        return padded.unflatten(0, (self.num_blocks, self.length)).permute(1, 2, 0, 3, 4).flatten(1, 2)

    def unstack_transitions(self, counts: Tensor) -> Tensor:
        """``(L, G', K, K)`` back to ``(T, G, K, K)``."""
        blocks = counts.unflatten(1, (self.num_groups, self.num_blocks))
        return blocks.permute(2, 0, 1, 3, 4).flatten(0, 1)[: self.num_steps]

    def split_blocks(self, array: Tensor) -> tuple[Tensor, ...]:
        """``(G', ..., N')`` as one ``(G, ..., N)`` for each block."""
        if self.as_groups:
            return array.unflatten(0, (self.num_groups, self.num_blocks)).unbind(1)
        return array.unflatten(-1, (self.num_chains, self.num_blocks)).unbind(-1)

    def join_blocks(self, blocks: list[Tensor]) -> Tensor:
        """The inverse of `split_blocks`."""
        if self.as_groups:
            return torch.stack(blocks, 1).flatten(0, 1)
        return torch.stack(blocks, -1).flatten(-2)

    def per_block(self, value: Tensor) -> Tensor:
        """``(G, N)`` for each block of a chain: ``(G', N')``."""
        return value.repeat_interleave(self.num_blocks, 0 if self.as_groups else 1)

    def per_chain(self, total: Tensor) -> Tensor:
        """Sum ``(G', N')`` over each chain's blocks: ``(G, N)``."""
        if self.as_groups:
            return total.unflatten(0, (self.num_groups, self.num_blocks)).sum(1)
        return total.unflatten(1, (self.num_chains, self.num_blocks)).sum(2)


def put_rows(out: Tensor, rows: slice | Tensor, source: Tensor) -> None:
    """Write ``source`` ``(G, N, ...)`` into the ``rows`` of the second dimension of ``out``."""
    if isinstance(rows, slice):
        out[:, rows].copy_(source)
    else:
        out.index_copy_(1, rows, source.to(out.dtype))


def choose_layout(num_groups: int, num_chains: int, num_steps: int, steps_differ: bool) -> Layout:
    """A layout with enough columns to keep a step busy; whole chains where they are many or short.

    Args:
        num_groups: ``G``.
        num_chains: ``N``.
        num_steps: ``T``.
        steps_differ: Whether transitions differ between steps.
    """
    wanted = max(1, _COLUMNS // max(1, num_groups * num_chains))
    length = max(_SHORTEST_BLOCK, -(-num_steps // wanted))
    num_blocks = -(-num_steps // length)
    if num_blocks < _FEWEST_BLOCKS:
        num_blocks, length = 1, num_steps
    return Layout(num_groups, num_chains, num_steps, num_blocks, length, steps_differ and num_blocks > 1)
