"""Sufficient statistics of a weighted sample that add up over parts of the data, and the sample made of them.

Reference:
    Neal, R. & Hinton, G. (1998). A view of the EM algorithm that justifies incremental, sparse, and other variants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ppl_em.mstep.block import Argument, Block
from ppl_em.mstep.given import LostPrecision
from ppl_em.mstep.moments import CANCELLATION
from ppl_em.mstep.sample import WeightedSample

#: Maps data (…, *event) to statistics (…, *statistic_event).
Statistic = Callable[[Tensor], Tensor] | None


class Missing(LostPrecision):
    """A rule asks for a statistic that was not collected.

    Args:
        request: the kind of statistic and what tells it from others of its kind.
        statistic: the function whose sum is asked for.
    """

    def __init__(self, request: tuple[Any, ...], statistic: Statistic = None) -> None:
        super().__init__(f"the statistic {request} was not collected")
        self.request, self.statistic = request, statistic


#: Kinds of statistics that need the data themselves: no sum of fixed size stands for them.
DATA = ("data",)


@dataclass(frozen=True)
class Recipe:
    """Which statistics a rule reads.

    Args:
        requests: kinds of statistics, with the functions that are summed.
    """

    requests: Mapping[tuple[Any, ...], Statistic] = field(default_factory=dict)

    def extended(self, missing: Missing) -> Recipe:
        """The recipe with one statistic more."""
        return Recipe({**self.requests, missing.request: missing.statistic})

    @property
    def needs_data(self) -> bool:
        """Whether a rule goes through the data one by one."""
        return DATA in self.requests


@dataclass(frozen=True)
class Totals:
    """Expected sufficient statistics by row; those of two parts of the data add up to those of both.

    Args:
        count: Σ w, (R,).
        centre: (R, *event) locations about which the moments are taken.
        kept: by request, (R, …): moments about the centre, sums of functions, histograms.
    """

    count: Tensor
    centre: Tensor | None
    kept: Mapping[tuple[Any, ...], Tensor]

    def __add__(self, other: Totals) -> Totals:
        """The statistics of both parts; moments are brought to this centre."""
        other = other.about(self.centre)
        return Totals(self.count + other.count, self.centre, {k: v + other.kept[k] for k, v in self.kept.items()})

    def __sub__(self, other: Totals) -> Totals:
        """The statistics with those of a part taken out."""
        return self + other.scaled(-1.0)

    def scaled(self, factor: float) -> Totals:
        """Every datum counted ``factor`` times."""
        return Totals(self.count * factor, self.centre, {k: v * factor for k, v in self.kept.items()})

    def about(self, centre: Tensor | None) -> Totals:
        """The same data with moments about other locations (R, *event)."""
        if centre is None or self.centre is None or centre is self.centre:
            return self
        shift = centre - self.centre
        n = self.count.reshape(self.count.shape + (1,) * (centre.dim() - 1))
        kept = dict(self.kept)
        first = kept.get(("residual",))
        if first is None:
            return replace(self, centre=centre)
        kept[("residual",)] = first - n * shift
        if ("deviation",) in kept:
            kept[("deviation",)] = kept[("deviation",)] - 2 * shift * first + n * shift.square()
        if ("outer",) in kept:
            cross = shift[..., :, None] * first[..., None, :]
            square = n[..., None] * shift[..., :, None] * shift[..., None, :]
            kept[("outer",)] = kept[("outer",)] - cross - cross.mT + square
        return Totals(self.count, centre, kept)

    def recentred(self) -> Totals:
        """Moments about each row's own mean: there a narrow component loses no digits."""
        first = self.kept.get(("residual",))
        if first is None or self.centre is None:
            return self
        n = self.count.reshape(self.count.shape + (1,) * (first.dim() - 1))
        return self.about(torch.where(n > 0, self.centre + first / torch.where(n > 0, n, 1.0), self.centre))

    def spread(self, rows: Tensor, num_rows: int, centre: Tensor | None) -> Totals:
        """Totals of ``num_rows`` rows about the given centre, of which these are the given ones."""

        def place(part: Tensor) -> Tensor:
            return part.new_zeros((num_rows, *part.shape[1:])).index_add(0, rows, part)

        return Totals(place(self.count), centre, {k: place(v) for k, v in self.kept.items()})


def collect(sample: WeightedSample, recipe: Recipe, centre: Tensor | None) -> Totals:
    """The statistics of a sample that a recipe names.

    Args:
        sample: the weighted sample.
        recipe: which statistics.
        centre: (R, *event) locations for the moments, where there are any.

    Raises:
        LostPrecision: the sample itself consists of other statistics.
    """
    requests = recipe.requests
    moments = [r for r in (("residual",), ("deviation",), ("outer",)) if r in requests]
    kept: dict[tuple[Any, ...], Tensor] = {}
    if moments:
        assert centre is not None
        kept[("residual",)] = sample.residual(centre)
        if ("deviation",) in moments:
            kept[("deviation",)] = sample.deviation(centre)
        if ("outer",) in moments:
            kept[("outer",)] = sample.outer(centre)
    for request, statistic in requests.items():
        if request[0] == "sum":
            kept[request] = sample.sum(request[1], statistic)
        elif request[0] == "histogram":
            kept[request] = sample.histogram(request[1])
    return Totals(sample.count(), centre if moments else None, kept)


class TotalsSample(WeightedSample):
    """A weighted sample of which only totals by row are known.

    Args:
        args: the arguments by name.
        totals: the statistics.
        event_dim: number of event dimensions of one datum.
    """

    def __init__(self, args: Mapping[str, Argument], totals: Totals, event_dim: int) -> None:
        self.totals = totals
        super().__init__(args, (), len(totals.count), event_dim)

    @property
    def blocks(self) -> tuple[Block, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The data, which are not known."""
        if not self._made:
            return ()
        raise Missing(DATA)

    @blocks.setter
    def blocks(self, value: tuple[Block, ...]) -> None:
        """There are none to keep."""

    _made = False

    def _check(self) -> None:
        """There are no blocks to check."""
        self._made = True

    def count(self) -> Tensor:
        """Σ_i w, (R,)."""
        return self.totals.count

    def sum(self, name: str = "x", fn: Statistic = None) -> Tensor:
        """Σ_i w_ri fn(x_i), (R, *statistic_event)."""
        first = self.totals.kept.get(("residual",))
        if name == "x" and fn is None and first is not None and self.totals.centre is not None:
            return first + self._wide(first) * self.totals.centre
        return self._kept(("sum", name), fn)

    def histogram(self, num_values: int) -> Tensor:
        """Total weight of each of the values, (R, num_values)."""
        return self._kept(("histogram", num_values))

    def residual(self, loc: Tensor) -> Tensor:
        """Σ_i w (x − loc), (R, *event)."""
        first = self._kept(("residual",))
        return first - self._wide(first) * (loc - self._centre)

    def deviation(self, loc: Tensor) -> Tensor:
        """Σ_i w (x − loc)²; refused where nearly everything cancels."""
        second, first = self._kept(("deviation",)), self._kept(("residual",))
        shift = loc - self._centre
        square = self._wide(first) * shift.square()
        part = second - 2 * shift * first + square
        self._require(part, second + square)
        return part

    def outer(self, loc: Tensor) -> Tensor:
        """Σ_i w (x − loc)(x − loc)ᵀ; refused where nearly everything cancels."""
        second, first = self._kept(("outer",)), self._kept(("residual",))
        shift = loc - self._centre
        cross = shift[..., :, None] * first[..., None, :]
        square = self._wide(first)[..., None] * shift[..., :, None] * shift[..., None, :]
        part = second - cross - cross.mT + square
        self._require(*(m.diagonal(dim1=-2, dim2=-1) for m in (part, second + square)))
        return part

    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """Not known."""
        raise Missing(DATA)

    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Not known."""
        raise Missing(DATA)

    def log_likelihood(self, family: Callable[..., Any], args: Mapping[str, Tensor] | None = None) -> Tensor:
        """Not known."""
        raise Missing(DATA)

    @property
    def _centre(self) -> Tensor:
        assert self.totals.centre is not None
        return self.totals.centre

    def _kept(self, request: tuple[Any, ...], statistic: Statistic = None) -> Tensor:
        if request not in self.totals.kept:
            raise Missing(request, statistic)
        return self.totals.kept[request]

    def _wide(self, like: Tensor) -> Tensor:
        """Counts, shaped to multiply moments."""
        return self.totals.count.reshape(self.totals.count.shape + (1,) * (like.dim() - 1))

    def _require(self, part: Tensor, size: Tensor) -> None:
        """Digits enough: moments about a point far from a narrow component hold too few."""
        if bool((part < CANCELLATION * size).any()):
            raise Narrow("a component is much narrower than its distance from the centre of the statistics")


class Narrow(LostPrecision):
    """Second moments about the centre cancel: they are to be collected about the components' own means."""
