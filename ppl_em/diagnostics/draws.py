"""Weighted draws of the parameters: what importance sampling makes of proposals, and whether it can be trusted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

#: Proposals for each draw that is kept: weights are then evened out without many repetitions.
OVERSAMPLING = 2


@dataclass(frozen=True, eq=False)
class Draws(Mapping[str, Tensor]):
    """Draws of the parameters by name, constrained, (n, *shape of the parameter).

    Args:
        coordinates: (n, P) the draws in free coordinates.
        named: the draws by parameter.
        objective: (n,) at each draw, nats.
        k_hat: tail shape of the importance weights; at or above ``threshold`` the draws cannot be trusted.
        threshold: for the number of proposals that were made.
        corrected: resampled with the smoothed weights; False if k-hat forbids it (they are plain Laplace draws).
        effective: effective number of the proposals, of ``num_proposals``.
        num_proposals: how many there were.
    """

    coordinates: Tensor
    named: dict[str, Tensor]
    objective: Tensor
    k_hat: float
    threshold: float
    corrected: bool
    effective: float
    num_proposals: int

    @property
    def reliable(self) -> bool:
        """Whether k-hat is below its threshold."""
        return self.k_hat < self.threshold

    def __getitem__(self, name: str) -> Tensor:
        return self.named[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.named)

    def __len__(self) -> int:
        return len(self.named)


def systematic(weights: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """Indices of draws with expected multiplicities num·w, in random order.

    Args:
        weights: (n,) non-negative.
        num: number of indices.
        generator: of the randomness.
    """
    start = torch.rand((), generator=generator, dtype=torch.float64)
    positions = (torch.arange(num, dtype=torch.float64) + start) / num
    chosen = torch.searchsorted(weights.cumsum(0) / weights.sum(), positions).clamp_max(len(weights) - 1)
    return chosen[torch.randperm(num, generator=generator)]
