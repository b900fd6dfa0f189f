"""What a weighted sample is made of: arguments (what may change) and blocks (the data)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK = 1 << 18
"""Largest number of elements of a temporary: 2 MiB, which stay in the processor's cache."""
CENTRED_ON = 1024
"""About so many data suffice to place a centre."""


@dataclass(frozen=True)
class Argument:
    """One argument of the family over all rows, with its ties.

    Args:
        value: current value by row, (R, *arg_event).
        cells: (R,) number of the tied group of rows that each row belongs to, dense 0…C−1; rows of one cell
            share their value. ``None``: the argument is fixed.
        pattern: (C, *arg_event) number of the parameter element behind each element of the argument. Equal
            numbers are one and the same parameter element, within a cell or across cells; −1 is an element
            that stays as it is (a structural zero). ``None``: every element of every cell is free by itself.

    Example:
        A diagonal covariance of one component in two dimensions:

        >>> eye = torch.eye(2)[None]
        >>> diagonal = Argument(eye, torch.tensor([0]), torch.tensor([[[0, -1], [-1, 1]]]))
    """

    value: Tensor
    cells: Tensor | None = None
    pattern: Tensor | None = None


@dataclass(frozen=True)
class Block:
    """The data of one site with their expected weights.

    Args:
        weights: (R_b, I) expected posterior weight of datum i under the block's row r, non-negative.
        values: (I, *E, *event) data shared by all rows, or (R_b, I, *E, *event) where each row has its own.
        rows: (R_b, *E) row numbers. E are dimensions that share their weights but not their rows, such as the
            features of a diagonal Gaussian (``.to_event(1)``); usually there are none.
    """

    weights: Tensor
    values: Tensor
    rows: Tensor

    @property
    def extra(self) -> torch.Size:
        """The shape E."""
        return self.rows.shape[1:]

    def per_row(self, event_dim: int) -> bool:
        """Whether each row has its own data."""
        return self.values.dim() == 2 + len(self.extra) + event_dim

    def widen(self, per_row: Tensor, event_dim: int = 0) -> Tensor:
        """View (R_b, I) weights so that they broadcast against (R_b, I, *E, *event)."""
        return per_row.reshape(per_row.shape + (1,) * (len(self.extra) + event_dim))

    def chunks(self, event_dim: int, factor: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """Weights (R_b, i) and values (…, i, …) in float64, in runs of i data of bounded size.

        Args:
            event_dim: number of event dimensions of a datum.
            factor: how many numbers the caller makes out of each number in ``values``.
        """
        axis = 1 if self.per_row(event_dim) else 0
        size = self.weights.shape[1]
        per_datum = max(1, self.values.numel() // max(1, size)) * factor
        step = max(1, CHUNK // max(per_datum, self.weights.shape[0]))
        for start in range(0, size, step):
            length = min(step, size - start)
            weights = self.weights.narrow(1, start, length).double()
            yield weights, self.values.narrow(axis, start, length).double()

    def sum(self, statistic: Callable[[Tensor], Tensor], event_dim: int, factor: int = 1) -> Tensor:
        """Σ_i w_ri statistic(x_i) as a matrix product, (R_b, *E, *statistic_event).

        Data that have no weight in any row (padding, masked entries) may hold anything, NaN included.
        """
        total: Tensor | None = None
        per_row = self.per_row(event_dim)
        for weights, x in self.chunks(event_dim, factor):
            f = statistic(x).double()
            part = _product(weights, f, per_row)
            if not bool(part.isfinite().all()):
                live = weights > 0 if per_row else (weights > 0).any(0)
                live = live.reshape(live.shape + (1,) * (f.dim() - live.dim()))
                part = _product(weights, torch.where(live, f, 0.0), per_row)
            total = part if total is None else total + part
        if total is None:
            raise ValueError("a block of a weighted sample has no data (I = 0). Try leaving the block out.")
        return total

    def centre(self, event_dim: int) -> Tensor:
        """A point amid the data with weight: (*E, *event), or (R_b, *E, *event) where each row has its own.

        The mean of some of the data: a centre only has to be near, so as to keep sums of squares accurate.
        """
        axis = 1 if self.per_row(event_dim) else 0
        stride = max(1, self.weights.shape[1] // CENTRED_ON)
        weights, values = self.weights[:, ::stride], self.values
        values = values[:, ::stride] if axis else values[::stride]
        if stride > 1 and not bool((weights > 0).any(1).all()):
            weights, values = self.weights, self.values
        live = weights > 0 if axis else (weights > 0).any(0)
        wide = live.reshape(live.shape + (1,) * (values.dim() - live.dim()))
        total = torch.where(wide, values, 0).sum(axis, dtype=torch.float64)
        return total / wide.sum(axis).clamp(min=1)


def _product(weights: Tensor, f: Tensor, per_row: bool) -> Tensor:
    """Σ_i w_ri f_i, (R_b, …), for f (I, …) or (R_b, I, …)."""
    if per_row:
        flat = f.reshape(f.shape[0], f.shape[1], -1)
        return torch.bmm(weights[:, None, :], flat)[:, 0].reshape(f.shape[:1] + f.shape[2:])
    return (weights @ f.reshape(f.shape[0], -1)).reshape(weights.shape[:1] + f.shape[1:])
