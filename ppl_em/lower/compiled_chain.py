"""A hidden Markov model over few long series, compiled to machine code where numba is installed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from ppl_em.lower.emission import Emission
from ppl_em.lower.mixture import Lowered
from ppl_em.lower.series import Series

#: Operations of an E-step (steps · states²) above which loading the compiled kernel pays within some tens of them.
FEWEST_OPERATIONS = 4_000_000
#: Elements of statistics that may be kept, as (steps) × (statistics).
KEPT_ELEMENTS = 1 << 24


@cache
def kernel() -> Callable[..., None] | None:
    """The compiled recursions; None where numba is missing or cannot keep what it compiles."""
    try:
        from ppl_em.exact.chain_compiled import expected_counts
    except (ImportError, RuntimeError):
        return None
    return expected_counts


class CompiledChain:
    """Series with one transition matrix, one after the other.

    Args:
        series: of a stacked block.
        emission: its observed sites, over all data.
        mask: (number of data) which of the data count, or None for all.
    """

    def __init__(self, series: Series, emission: Emission, mask: Tensor | None) -> None:
        self.series, lengths = series, series.lengths
        rows = torch.cat([torch.arange(n) + i * series.num_steps for i, n in enumerate(lengths.tolist())])
        self.emission = emission.of(rows)
        self.starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
        self.owner = torch.arange(len(lengths)).repeat_interleave(lengths)
        counted = None if mask is None else mask.reshape(-1)[rows]
        size = emission.num_states
        symbols = self.emission.symbols
        self.base = self.emission.base
        if symbols is None:
            columns = _memory(emission.width + 1, len(rows))
            self.emission.fill(0, columns)
            if counted is not None:
                columns.mul_(counted)
                self.base = None if self.base is None else self.base * counted
            self.features = columns.T.contiguous()
            self.rows, self.density = torch.arange(len(rows)), _memory(len(rows), size)
        else:
            self.features = _memory(len(rows), 0)
            gap = torch.tensor(emission.width)
            self.rows = symbols if counted is None else torch.where(counted, symbols, gap)
            self.density = _memory(emission.width + 1, size).fill_(1.0)
        self.alpha = _memory(int(lengths.max()), size)
        one = _memory(len(lengths)).fill_(1.0)
        self.weight = one if series.weight is None else series.weight.double().contiguous()

    @classmethod
    def of(cls, series: Series | None, emission: Emission, mask: Tensor | None) -> CompiledChain | None:
        """The compiled form; None where numba is missing, the chain is short, or not in double precision."""
        if series is None or emission.dtype != torch.float64:
            return None
        steps = int(series.lengths.sum())
        kept = 0 if emission.symbols is not None else steps * (emission.width + 1)
        if steps * series.num_states**2 < FEWEST_OPERATIONS or kept > KEPT_ELEMENTS or find_spec("numba") is None:
            return None
        return cls(series, emission, mask)

    def run(self, parameters: Mapping[str, Tensor], natural: Tensor) -> Lowered | None:
        """E-step and expected statistics; None where the general kernels must do it.

        Args:
            parameters: constrained values.
            natural: (K, F + 1) natural parameters and constants of the emissions.
        """
        expected_counts = kernel()
        if expected_counts is None:
            return None
        series, size, count = self.series, self.emission.num_states, len(self.weight)
        trans = series.transitions(parameters, torch.float64)
        log_scale = self._densities(natural)
        if trans is None or log_scale is None:
            return None
        init = series.initial(parameters, torch.float64)
        top = init.amax(1)
        log_z, first = _memory(count), _memory(count, size)
        xi, statistics = _memory(size, size).zero_(), _memory(self._num_statistics, size).zero_()
        outof = trans.into[0, 0]
        arrays: list[Any] = [
            self.starts,
            self.rows,
            self.density,
            (init - top[:, None]).exp(),
            outof.mT.contiguous(),
            outof.contiguous(),
            trans.period,
            self.weight,
            self.features,
            self.alpha,
            log_z,
            first,
            xi,
            statistics,
        ]
        expected_counts(*(a.numpy() if isinstance(a, Tensor) else a for a in arrays))
        log_z += log_scale + top + (series.lengths - 1) * trans.log_scale[0, 0]
        total = float((log_z * self.weight).sum())
        if not math.isfinite(total):
            return None
        weights = series.latent_weights(first, xi.mul_(outof.mT))
        return Lowered(total, self.emission.moments(self._totals(statistics)), weights)

    @property
    def _num_statistics(self) -> int:
        return self.features.shape[1] or len(self.density)

    def _totals(self, statistics: Tensor) -> Tensor:
        """Expected statistics and counts, (K, F + 1)."""
        if self.features.shape[1]:
            return statistics.T
        counts = statistics[:-1].T  # the last row is that of gaps
        return torch.cat([counts, counts.sum(1, keepdim=True)], 1)

    def _densities(self, natural: Tensor) -> Tensor | None:
        """Fill the densities, each row divided by its greatest; the log (N) of what was divided out."""
        if self.features.shape[1]:
            torch.mm(self.features, natural.mT, out=self.density)
            if self.base is not None:
                self.density.add_(self.base[:, None])
            peak = self.density.amax(1)
            self.density.sub_(peak[:, None]).exp_()
        else:
            table = (natural[:, :-1] + natural[:, -1:]).T
            top = table.amax(1)
            self.density[:-1] = (table - top[:, None]).exp_()
            peak = torch.cat([top, top.new_zeros(1)])[self.rows]
        log_scale = torch.zeros_like(self.weight).index_add_(0, self.owner, peak)
        return log_scale if bool(log_scale.isfinite().all()) else None


def _memory(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.float64)
