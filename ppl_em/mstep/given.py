"""A weighted sample of which only the sufficient statistics are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ppl_em.mstep.block import Argument, Block
from ppl_em.mstep.moments import CANCELLATION, Moments
from ppl_em.mstep.sample import WeightedSample


class LostPrecision(ArithmeticError):
    """The statistics do not hold enough digits, or not the one asked for; the data themselves are needed."""


class Statistics(Protocol):
    """Expected statistics of one site, (R_b, *E, …)."""

    @property
    def count(self) -> Tensor:
        """Total weight."""
        ...

    @property
    def centre(self) -> Tensor:
        """What the data were centred at."""
        ...

    @property
    def first(self) -> Tensor | None:
        """Σ w (x − centre)."""
        ...

    @property
    def second(self) -> Tensor | None:
        """Σ w (x − centre)²."""
        ...

    @property
    def products(self) -> Tensor | None:
        """Σ w (x − centre)(x − centre)ᵀ."""
        ...

    @property
    def histogram(self) -> Tensor | None:
        """Weight of each value."""
        ...


class GivenMoments(Moments):
    """Moments that were computed elsewhere.

    Args:
        blocks: stand-ins without data, for their rows.
        num_rows: R.
        event_dim: number of event dimensions of one datum.
        given: the statistics, one for each block.
    """

    def __init__(self, blocks: tuple[Block, ...], num_rows: int, event_dim: int, given: Sequence[Statistics]) -> None:
        super().__init__(blocks, num_rows, event_dim)
        self.given = given
        self._counts = [g.count.double().expand(b.rows.shape) for g, b in zip(given, blocks, strict=True)]

    @cached_property
    def count(self) -> Tensor:
        """Σ w, (R,)."""
        return self.add_rows(self._counts)

    def _about(self, index: int, loc: Tensor) -> tuple[Tensor, Tensor]:
        """Location less centre, and the count, both (R_b, *E, *event)."""
        n = self._counts[index]
        offset = loc[self.blocks[index].rows] - self.given[index].centre
        return offset, n.reshape(n.shape + (1,) * self.event_dim)

    def residual(self, loc: Tensor) -> Tensor:
        """Σ w (x − loc)."""
        parts = []
        for index, g in enumerate(self.given):
            if g.first is None:
                raise LostPrecision("first moments were not computed")
            offset, n = self._about(index, loc)
            parts.append(g.first.double() - n * offset)
        return self.add_rows(parts)

    def deviation(self, loc: Tensor) -> Tensor:
        """Σ w (x − loc)²; refused where nearly everything cancels."""
        parts = []
        for index, g in enumerate(self.given):
            if g.second is None or g.first is None:
                raise LostPrecision("second moments were not computed")
            offset, n = self._about(index, loc)
            second, first = g.second.double(), g.first.double()
            part = second - 2 * offset * first + n * offset.square()
            if bool((part < CANCELLATION * (second + n * offset.square())).any()):
                raise LostPrecision("a component is much narrower than the data")
            parts.append(part)
        return self.add_rows(parts)

    def outer(self, loc: Tensor) -> Tensor:
        """Σ w (x − loc)(x − loc)ᵀ; refused where nearly everything cancels."""
        parts = []
        for index, g in enumerate(self.given):
            if g.products is None or g.first is None:
                raise LostPrecision("second moments were not computed")
            offset, n = self._about(index, loc)
            first, second = g.first.double(), g.products.double()
            cross = offset[..., :, None] * first[..., None, :]
            shift = n[..., None] * offset[..., :, None] * offset[..., None, :]
            part = second - cross - cross.mT + shift
            diagonal, scale = (m.diagonal(dim1=-2, dim2=-1) for m in (part, second + shift))
            if bool((diagonal < CANCELLATION * scale).any()):
                raise LostPrecision("a component is much narrower than the data")
            parts.append(part)
        return self.add_rows(parts)

    def histogram(self, num_values: int) -> Tensor:
        """Total weight of each value."""
        parts = []
        for g in self.given:
            if g.histogram is None or g.histogram.shape[-1] != num_values:
                raise LostPrecision("a histogram was not computed")
            parts.append(g.histogram.double())
        return self.add_rows(parts)


class GivenSample(WeightedSample):
    """A weighted sample from statistics alone.

    Args:
        args: the arguments by name.
        rows: row numbers of each block, (R_b, *E).
        given: statistics of each block.
        num_rows: R.
        event_dim: number of event dimensions of one datum.
    """

    def __init__(
        self,
        args: Mapping[str, Argument],
        rows: Sequence[Tensor],
        given: Sequence[Statistics],
        num_rows: int,
        event_dim: int,
    ) -> None:
        stand_ins = []
        for r, g in zip(rows, given, strict=True):
            event = tuple(g.first.shape[r.dim() :]) if g.first is not None else ()
            values = torch.zeros((0, *r.shape[1:], *event), dtype=torch.float64)
            stand_ins.append(Block(torch.zeros((len(r), 0), dtype=torch.float64), values, r))
        super().__init__(args, tuple(stand_ins), num_rows, event_dim)
        self._moments = GivenMoments(tuple(stand_ins), num_rows, event_dim, given)

    def sum(self, name: str = "x", fn: object = None) -> Tensor:
        """Σ w x; other statistics were not kept."""
        if name == "x" and fn is None:
            parts = []
            for index, g in enumerate(self._moments.given):  # type: ignore[attr-defined]
                if g.first is None:
                    raise LostPrecision("first moments were not computed")
                n = self._moments._counts[index]  # type: ignore[attr-defined]
                wide = n.reshape(n.shape + (1,) * self.event_dim)
                parts.append(g.first.double() + wide * g.centre)
            return self._moments.add_rows(parts)
        raise LostPrecision(f"the statistic '{name}' was not computed")
