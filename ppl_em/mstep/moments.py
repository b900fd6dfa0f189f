"""Statistics of a weighted sample by row: counts, centred first and second moments, histograms."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from ppl_em.mstep.block import CHUNK, Block

CANCELLATION = 1e-6
"""A sum of squares smaller than this part of its summands is computed again, straight from the data."""


class Moments:
    """Moments of the blocks, added up by row.

    Second moments about an arbitrary location follow from moments about the block's own mean, so the data
    are read once, as a matrix product. Where nearly everything cancels (a component much narrower than the
    spread of the data) those rows are recomputed from the data.

    Args:
        blocks: the data.
        num_rows: R.
        event_dim: number of event dimensions of one datum.
    """

    def __init__(self, blocks: tuple[Block, ...], num_rows: int, event_dim: int) -> None:
        self.blocks = blocks
        self.num_rows = num_rows
        self.event_dim = event_dim

    def add_rows(self, parts: list[Tensor]) -> Tensor:
        """Add (R_b, *E, …) of each block up to (R, …)."""
        total: Tensor | None = None
        for block, part in zip(self.blocks, parts, strict=True):
            flat = part.reshape(-1, *part.shape[block.rows.dim() :])
            if total is None:
                total = flat.new_zeros((self.num_rows, *flat.shape[1:]))
            total = total.index_add(0, block.rows.reshape(-1), flat)
        if total is None:
            raise ValueError("a weighted sample without blocks has no statistics. Try giving it data.")
        return total

    @cached_property
    def _block_counts(self) -> list[Tensor]:
        """Σ_i w of each block, (R_b, *E)."""
        counts = [block.weights.sum(1, dtype=torch.float64) for block in self.blocks]
        return [block.widen(n).expand(block.rows.shape) for block, n in zip(self.blocks, counts, strict=True)]

    @cached_property
    def count(self) -> Tensor:
        """Σ_i w, (R,)."""
        return self.add_rows(self._block_counts)

    @cached_property
    def _centres(self) -> list[Tensor]:
        """A point amid the data of each block: (*E, *event), or (R_b, *E, *event) for data by row."""
        return [block.centre(self.event_dim) for block in self.blocks]

    def _centred(self, index: int) -> tuple[Block, Tensor]:
        """Block ``index`` and its centre, shaped to be subtracted from the values."""
        block, centre = self.blocks[index], self._centres[index]
        return block, centre.unsqueeze(1) if block.per_row(self.event_dim) else centre

    @cached_property
    def _powers(self) -> list[tuple[Tensor, ...]]:
        """Σ_i w (x − centre) and Σ_i w (x − centre)², each (R_b, *E, *event), in one pass over the data."""
        pairs = [self._centred(index) for index in range(len(self.blocks))]
        return [block.sum(_Powers(centre), self.event_dim, factor=2).unbind(-1) for block, centre in pairs]

    @cached_property
    def _products(self) -> list[Tensor]:
        """Σ_i w (x − centre)(x − centre)ᵀ, (R_b, *E, D, D)."""
        pairs = [self._centred(index) for index in range(len(self.blocks))]
        return [_products(block, centre, self.event_dim) for block, centre in pairs]

    def _offset(self, index: int, loc: Tensor) -> tuple[Tensor, Tensor]:
        """Location less centre, and the count, both (R_b, *E, *event)."""
        block, n = self.blocks[index], self._block_counts[index]
        return loc[block.rows] - self._centres[index], n.reshape(n.shape + (1,) * self.event_dim)

    def residual(self, loc: Tensor) -> Tensor:
        """Σ_i w (x − loc), (R, *event)."""
        parts = []
        for index, (first, _) in enumerate(self._powers):
            offset, n = self._offset(index, loc)
            parts.append(first - n * offset)
        return self.add_rows(parts)

    def deviation(self, loc: Tensor) -> Tensor:
        """Σ_i w (x − loc)², (R, *event)."""
        parts = []
        for index, (first, second) in enumerate(self._powers):
            offset, n = self._offset(index, loc)
            part = second - 2 * offset * first + n * offset.square()
            lost = part < CANCELLATION * (second + n * offset.square())
            rows = lost.reshape(len(lost), -1).any(1).nonzero()[:, 0]
            if len(rows):
                part = part.index_copy(0, rows, _direct(self.blocks[index], loc, rows, self.event_dim, False))
            parts.append(part)
        return self.add_rows(parts)

    def outer(self, loc: Tensor) -> Tensor:
        """Σ_i w (x − loc)(x − loc)ᵀ, (R, D, D)."""
        parts = []
        for index, second in enumerate(self._products):
            first = self._powers[index][0]
            offset, n = self._offset(index, loc)
            cross = offset[..., :, None] * first[..., None, :]
            shift = n[..., None] * offset[..., :, None] * offset[..., None, :]
            part = second - cross - cross.mT + shift
            diagonal, scale = (m.diagonal(dim1=-2, dim2=-1) for m in (part, second + shift))
            rows = (diagonal < CANCELLATION * scale).reshape(len(part), -1).any(1).nonzero()[:, 0]
            if len(rows):
                part = part.index_copy(0, rows, _direct(self.blocks[index], loc, rows, self.event_dim, True))
            parts.append(part)
        return self.add_rows(parts)

    def histogram(self, num_values: int) -> Tensor:
        """Total weight of the values 0…num_values−1, (R, num_values)."""
        total = torch.zeros(self.num_rows * num_values, dtype=torch.float64, device=self.blocks[0].weights.device)
        for block in self.blocks:
            rows = block.rows.unsqueeze(1)
            for weights, x in block.chunks(0, 1 if block.per_row(0) else len(block.weights)):
                wide = block.widen(weights)
                live = wide > 0
                # Dead data (padding) may hold any number.
                value = torch.where(live, x, 0.0).long()
                index = (rows * num_values + value).reshape(-1)
                total.index_add_(0, index, wide.expand(value.shape).reshape(-1))
        return total.view(self.num_rows, num_values)

    @cached_property
    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """Weights (M,), data (M, *event) and rows (M,) of all pairs with positive weight."""
        return self._pairs(self.blocks)

    @cached_property
    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Like ``flat``, with equal counts of a block merged."""
        return self._pairs(tuple(_merged(block, self.event_dim) for block in self.blocks))

    def _pairs(self, blocks: tuple[Block, ...]) -> tuple[Tensor, Tensor, Tensor]:
        weights, values, rows = [], [], []
        for block in blocks:
            shape = (block.weights.shape[0], block.weights.shape[1], *block.extra)
            event = block.values.shape[block.values.dim() - self.event_dim :]
            x = block.values if block.per_row(self.event_dim) else block.values.unsqueeze(0)
            w = block.widen(block.weights).expand(shape).reshape(-1)
            live = w > 0
            weights.append(w[live].double())
            values.append(x.expand(shape + event).reshape(-1, *event)[live].double())
            rows.append(block.rows.unsqueeze(1).expand(shape).reshape(-1)[live])
        return torch.cat(weights), torch.cat(values), torch.cat(rows)


class _Powers:
    """Maps data to their first and second powers about a centre."""

    def __init__(self, centre: Tensor) -> None:
        self.centre = centre

    def __call__(self, x: Tensor) -> Tensor:
        y = x - self.centre
        return torch.stack([y, y.square()], -1)


def _merged(block: Block, event_dim: int) -> Block:
    """The block with equal data merged, where they are counts that all rows share."""
    x = block.values
    if block.per_row(event_dim) or (x.is_floating_point() and bool((x != x.round()).any())):
        return block
    values, inverse = torch.unique(x, dim=0, return_inverse=True)
    weights = block.weights.new_zeros((len(block.weights), len(values)), dtype=torch.float64)
    return Block(weights.index_add(1, inverse, block.weights.double()), values, block.rows)


def _products(block: Block, centre: Tensor, event_dim: int) -> Tensor:
    """Centred second moments (R_b, *E, D, D): row by row for few rows of large data, else as one product."""
    size = block.values.shape[-1]
    if block.per_row(event_dim) or len(block.weights) > size or size <= 16:
        return block.sum(lambda x: (x - centre)[..., :, None] * (x - centre)[..., None, :], event_dim, factor=size)
    total = torch.zeros((*block.rows.shape, size, size), dtype=torch.float64, device=block.weights.device)
    for weights, x in block.chunks(event_dim):
        live = (weights > 0).any(0).reshape((-1,) + (1,) * (x.dim() - 1))
        y = torch.where(live, x - centre, 0.0).movedim(0, -2)
        for row, w in enumerate(weights):
            total[row] += y.mT @ (y * w[:, None])
    return total


def _direct(block: Block, loc: Tensor, chosen: Tensor, event_dim: int, products: bool) -> Tensor:
    """Second moments about ``loc`` of the chosen rows of a block, summed straight from the data."""
    at = loc[block.rows[chosen]].unsqueeze(1)
    values = block.values[chosen] if block.per_row(event_dim) else block.values
    weights = block.weights[chosen]
    size = values.shape[-1] if products else 1
    step = max(1, CHUNK // max(1, at.numel() * size))
    axis = 1 if block.per_row(event_dim) else 0
    total: Tensor | None = None
    for start in range(0, weights.shape[1], step):
        length = min(step, weights.shape[1] - start)
        w = block.widen(weights.narrow(1, start, length).double(), event_dim)
        x = torch.where(w > 0, values.narrow(axis, start, length).double() - at, 0.0)
        wx = w * x
        part = torch.einsum("ri...d,ri...e->r...de", wx, x) if products else (wx * x).sum(1)
        total = part if total is None else total + part
    assert total is not None
    return total
