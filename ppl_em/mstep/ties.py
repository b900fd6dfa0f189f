"""Which elements of an argument are one parameter element: pooling statistics and spreading values."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.mstep.block import Argument


class Ties:
    """The ties of one free argument.

    Attributes:
        cells: (R,) cell of each row.
        num_cells: C.
        arg_dim: number of event dimensions of the argument.
        patterned: whether some elements are fixed or tied to others.
        fixed: (C, *arg_event) bool, elements that stay as they are.
        groups: (C, *arg_event) number 0…G−1 of the free parameter element behind each element, −1 if fixed.
        num_groups: G.
    """

    def __init__(self, argument: Argument) -> None:
        cells, pattern = argument.cells, argument.pattern
        if cells is None:
            raise ValueError("a fixed argument has no ties. Try giving it cells.")
        self.cells = cells
        self.arg_dim = argument.value.dim() - 1
        self.num_cells = len(pattern) if pattern is not None else int(cells.max()) + 1
        shape = torch.Size((self.num_cells, *argument.value.shape[1:]))
        if pattern is None:
            self.groups = torch.arange(shape.numel(), device=cells.device).view(shape)
            self.fixed = torch.zeros(shape, dtype=torch.bool, device=cells.device)
            self.num_groups = self.groups.numel()
        else:
            pattern = pattern.expand(shape)
            self.fixed = pattern < 0
            numbers, dense = torch.unique(pattern[~self.fixed], return_inverse=True)
            self.groups = torch.full(shape, -1, dtype=torch.long, device=cells.device)
            self.groups[~self.fixed] = dense
            self.num_groups = len(numbers)
        self.patterned = self.num_groups < self.groups.numel()

    def pool(self, by_row: Tensor) -> Tensor:
        """(R, …) → (C, …), sums."""
        return by_row.new_zeros((self.num_cells, *by_row.shape[1:])).index_add(0, self.cells, by_row)

    def spread(self, by_cell: Tensor) -> Tensor:
        """(C, …) → (R, …)."""
        return by_cell[self.cells]

    def first(self, by_row: Tensor) -> Tensor:
        """(R, …) → (C, …), the value of one row of each cell."""
        values = by_row.new_zeros((self.num_cells, *by_row.shape[1:]))
        values[self.cells] = by_row
        return values

    def pool_elements(self, by_row: Tensor) -> Tensor:
        """(R, *arg_event) → (G,), sums over all elements that are the same parameter element."""
        return self.pool_cells(self.pool(by_row))

    def pool_cells(self, by_cell: Tensor) -> Tensor:
        """(C, *arg_event) → (G,), sums over all elements that are the same parameter element."""
        full = by_cell.expand(self.groups.shape)
        return full.new_zeros(self.num_groups).index_add(0, self.groups[~self.fixed], full[~self.fixed])

    def gather(self, by_cell: Tensor) -> Tensor:
        """(C, *arg_event) → (G,), the value of one element of each group."""
        values = by_cell.new_zeros(self.num_groups)
        values[self.groups[~self.fixed]] = by_cell[~self.fixed]
        return values

    def scatter(self, elements: Tensor, by_cell: Tensor) -> Tensor:
        """(G,) → (C, *arg_event), with fixed elements from ``by_cell``. Differentiable in ``elements``."""
        if self.num_groups == 0:
            return by_cell
        return torch.where(self.fixed, by_cell, elements[self.groups.clamp(min=0)])

    def agrees(self, by_cell: Tensor) -> bool:
        """Whether elements that are one parameter element have one value."""
        if not self.patterned:
            return True
        rebuilt = self.scatter(self.gather(by_cell), by_cell)
        return bool(torch.isclose(rebuilt, by_cell, rtol=1e-12, atol=0.0, equal_nan=True).all())
