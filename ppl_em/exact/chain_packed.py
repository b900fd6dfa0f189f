"""Forward–backward over series of unequal length without their padding: each step over those that are still there.

The series stand beside each other, longest first, so that the ones that last until a step are the first columns. A step
is one matrix product over these; nothing is copied between layouts, and densities, messages and posterior marginals
share two arrays.

Reference:
    Rabiner, L. R. (1989). A tutorial on hidden Markov models. Proceedings of the IEEE 77(2), section V.A.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.exact.chain_scaled import ScaledTransitions


@dataclass(frozen=True)
class Packing:
    """The steps of many series as columns, step by step, in each step the longest series first.

    Attributes:
        order: ``(N)`` series, longest first.
        sizes: how many series have each step, non-increasing.
        series: ``(M)`` position in ``order`` of each column's series.
        steps: ``(M)`` step of each column.
    """

    order: Tensor
    sizes: tuple[int, ...]
    series: Tensor
    steps: Tensor

    @classmethod
    def of(cls, lengths: Tensor) -> Packing:
        """Pack series of the given lengths ``(N)``, each at least one."""
        order = lengths.argsort(descending=True, stable=True)
        sizes = (lengths.unsqueeze(0) > torch.arange(int(lengths.max())).unsqueeze(1)).sum(1)
        series = torch.cat([torch.arange(n) for n in sizes.tolist()])
        steps = torch.arange(len(sizes)).repeat_interleave(sizes)
        return cls(order, tuple(sizes.tolist()), series, steps)

    @property
    def num_columns(self) -> int:
        """Steps of all series together, M."""
        return len(self.series)

    @property
    def last(self) -> Tensor:
        """``(N)`` column of each series' last step, longest first."""
        starts = torch.tensor([0, *self.sizes]).cumsum(0)
        lengths = torch.zeros(self.sizes[0], dtype=torch.int64)
        for n in self.sizes:
            lengths[:n] += 1
        return starts[lengths - 1] + torch.arange(self.sizes[0])


class PackedRecursions:
    """The recursions over packed series, in buffers that are allocated once.

    Args:
        packing: how the series lie.
        num_states: K.
        dtype: of the messages.

    Attributes:
        obs: ``(K, M)`` to be filled with densities, those of first steps times the initial factor; overwritten.
        gamma: ``(K, M)`` posterior marginals after `run`.
    """

    def __init__(self, packing: Packing, num_states: int, dtype: torch.dtype) -> None:
        self.packing = packing
        columns, series = packing.num_columns, packing.sizes[0]
        self.obs, self.gamma = (torch.empty(num_states, columns, dtype=dtype) for _ in range(2))
        self._beta = torch.empty(num_states, series, dtype=dtype)
        self._onward = torch.empty(num_states, series, dtype=dtype)
        starts = [0]
        for n in packing.sizes:
            starts.append(starts[-1] + n)
        spans = list(zip(starts[:-1], starts[1:], strict=True))
        self._obs = [self.obs[:, a:b] for a, b in spans]
        self._alpha = [self.gamma[:, a:b] for a, b in spans]
        self._before = [self.gamma[:, a : a + n] for (a, _), n in zip(spans, packing.sizes[1:], strict=False)]
        self._betas = [self._beta[:, :n] for n in packing.sizes]
        self._onwards = [self._onward[:, :n] for n in packing.sizes]
        self._norm = torch.empty(series, dtype=dtype)
        self._norms = [self._norm[:n] for n in packing.sizes]
        self._last = packing.last

    def run(self, trans: ScaledTransitions, weight: Tensor | None) -> tuple[Tensor, Tensor]:
        """Forward and backward; `gamma` holds the marginals thereafter.

        Args:
            trans: transitions that all series and steps share, ``sure`` ones.
            weight: ``(N)`` how often each series counts, longest first, or None for once.

        Returns:
            ``(N)`` log of the summed weight of all paths under the scaled densities, and ``(K, K)`` expected
            transitions, rows the previous state; both float64, series longest first.
        """
        log_z = self._forward(trans.into[0, 0].contiguous(), trans.period)
        total = self.gamma.index_select(1, self._last).sum(0)
        log_z += total.double().log()
        xi = self._backward(trans.into[0, 0].mT.contiguous(), total, weight)
        return log_z, xi.mul_(trans.into[0, 0].mT.double())

    def _forward(self, into: Tensor, period: int) -> Tensor:
        log_norm = torch.zeros(len(self._norm), dtype=torch.float64)
        alpha = self._alpha
        for t, obs in enumerate(self._obs):
            if t:
                torch.mm(into, self._before[t - 1], out=alpha[t])
                alpha[t].mul_(obs)
            else:
                alpha[0].copy_(obs)
            if t % period == 0:
                norm = self._norms[t]
                torch.sum(alpha[t], 0, out=norm)
                alpha[t].div_(norm)
                obs.div_(norm)
                log_norm[: len(norm)] += norm.double().log()
        return log_norm

    def _backward(self, outof: Tensor, total: Tensor, weight: Tensor | None) -> Tensor:
        """Marginals into `gamma`; the sums of products of messages, to be multiplied by the transitions."""
        torch.div(torch.ones((), dtype=total.dtype), total.expand_as(self._beta), out=self._beta)
        num_states = len(outof)
        xi = torch.zeros(num_states, num_states, dtype=torch.float64)
        for t in range(len(self._obs) - 1, 0, -1):
            beta, onward = self._betas[t], self._onwards[t]
            torch.mul(self._obs[t], beta, out=onward)
            self._alpha[t].mul_(beta)
            counted = onward if weight is None else torch.mul(onward, weight[: beta.shape[1]], out=self._obs[t])
            if xi.dtype == onward.dtype:
                torch.addmm(xi, self._before[t - 1], counted.mT, out=xi)
            else:
                xi += self._before[t - 1] @ counted.mT
            torch.mm(outof, onward, out=beta)
        self._alpha[0].mul_(self._beta)
        return xi
