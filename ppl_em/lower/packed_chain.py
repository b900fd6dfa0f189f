"""A hidden Markov model over many series, from the data's statistics to the expected ones in one layout."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from ppl_em.exact.chain_packed import PackedRecursions, Packing
from ppl_em.lower.emission import Emission
from ppl_em.lower.mixture import CHUNK_ELEMENTS, Lowered
from ppl_em.lower.series import Series

#: Series per step on average below which a step costs mostly its dispatch.
FEWEST_SERIES = 48
#: Statistics of up to this many elements are kept from one iteration to the next.
KEPT_ELEMENTS = 1 << 22


class PackedChain:
    """Many series with one transition matrix, each up to its own last step.

    Args:
        series: of a stacked block.
        emission: its observed sites, over all data.
        mask: (number of data) which of the data count, or None for all.
    """

    def __init__(self, series: Series, emission: Emission, mask: Tensor | None) -> None:
        self.series = series
        self.packing = packing = Packing.of(series.lengths)
        columns = packing.order[packing.series] * series.num_steps + packing.steps
        self.emission = emission.of(columns)
        self.symbols = self.emission.symbols
        counted = None if mask is None else mask.reshape(-1)[columns]
        self.counted = None if counted is None or bool(counted.all()) else counted.to(emission.dtype)
        self.weight = None if series.weight is None else series.weight[packing.order].to(emission.dtype)
        self.moves = (series.lengths[packing.order] - 1).double()
        self.chunk = max(256, min(len(columns), CHUNK_ELEMENTS // (emission.width + 1)))
        self.recursions = PackedRecursions(packing, emission.num_states, emission.dtype)
        self._features: Tensor | None = None

    @classmethod
    def of(cls, series: Series | None, emission: Emission, mask: Tensor | None) -> PackedChain | None:
        """The fast form of many series at each step; None for others."""
        if series is None or int(series.lengths.sum()) < FEWEST_SERIES * int(series.lengths.max()):
            return None
        return cls(series, emission, mask)

    def run(self, parameters: Mapping[str, Tensor], natural: Tensor) -> Lowered | None:
        """E-step and expected statistics; None where the general kernels must do it.

        Args:
            parameters: constrained values.
            natural: (K, F + 1) natural parameters and constants of the emissions.
        """
        dtype, order = self.emission.dtype, self.packing.order
        trans = self.series.transitions(parameters, dtype)
        init = self.series.initial(parameters, dtype)[order].T
        log_scale = None if trans is None else self._densities(natural, init)
        if trans is None or log_scale is None:
            return None
        log_z, xi = self.recursions.run(trans, self.weight)
        log_z += log_scale + self.moves * trans.log_scale[0, 0]
        total = float(log_z.sum() if self.weight is None else (log_z * self.weight).sum())
        if not math.isfinite(total):
            return None
        first = torch.empty(len(order), self.emission.num_states, dtype=dtype)
        first[order] = self.recursions.gamma[:, : len(order)].T
        weights = self.series.latent_weights(first, xi)
        return Lowered(total, self.emission.moments(self._statistics()), weights)

    def _densities(self, natural: Tensor, init: Tensor) -> Tensor | None:
        """Fill the densities, each column divided by its greatest; the log (N) of what was divided out."""
        obs, first = self.recursions.obs, init.shape[1]
        if self.symbols is not None and self.counted is None:
            table = natural[:, :-1] + natural[:, -1:]
            peaks = table.amax(0)
            torch.index_select((table - peaks).exp_(), 1, self.symbols, out=obs)
            peak = peaks[self.symbols]
            scores = table[:, self.symbols[:first]] + init
            peak[:first] = scores.amax(0)
            obs[:, :first] = scores.sub_(peak[:first]).exp_()
        else:
            for start, columns in self._chunks():
                torch.mm(natural, columns, out=obs[:, start : start + columns.shape[1]])
            if self.emission.base is not None:
                obs.add_(self.emission.base)
            if self.counted is not None:
                obs.mul_(self.counted)
            obs[:, :first] += init
            peak = obs.amax(0)
            obs.sub_(peak).exp_()
        log_scale = torch.zeros(first, dtype=torch.float64).index_add_(0, self.packing.series, peak.double())
        return log_scale if bool(log_scale.isfinite().all()) else None

    def _statistics(self) -> Tensor:
        """Expected statistics (K, F + 1) of the emissions."""
        gamma = self.recursions.gamma
        if self.weight is not None:
            gamma.mul_(self.weight[self.packing.series])
        if self.counted is not None:
            gamma.mul_(self.counted)
        total = torch.zeros(len(gamma), self.emission.width + 1, dtype=torch.float64)
        if self.symbols is not None:
            for state, row in enumerate(gamma):
                total[state, :-1] = torch.bincount(self.symbols, row.double(), self.emission.width)
            total[:, -1] = total[:, :-1].sum(1)
            return total
        for start, columns in self._chunks():
            total += gamma[:, start : start + columns.shape[1]] @ columns.mT
        return total

    def _chunks(self) -> Iterator[tuple[int, Tensor]]:
        """Statistics (F + 1, n) of consecutive columns, and where they begin."""
        num_data, height = self.emission.num_data, self.emission.width + 1
        kept = height * num_data <= KEPT_ELEMENTS
        if self._features is None:
            self._features = torch.empty(height, num_data if kept else self.chunk, dtype=self.emission.dtype)
            if kept:
                self.emission.fill(0, self._features)
        for start in range(0, num_data, self.chunk):
            if kept:
                yield start, self._features[:, start : start + self.chunk]
                continue
            columns = self._features[:, : min(self.chunk, num_data - start)]
            self.emission.fill(start, columns)
            yield start, columns
