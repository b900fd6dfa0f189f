"""Latents grouped into slices of time, so that factors touch neighbours only: a chain over their joint state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True)
class Slices:
    """A chain whose state at each slice is the joint state of several latents.

    A slice holds the latents of ``history`` consecutive steps, as many as factors reach back, so that slices overlap:
    what two neighbours share must agree. Latents that factors of all steps touch are summed outside the chain.

    Args:
        time: name of the dimension along which slices lie.
        plates: plates in which every latent of the chain lives.
        now: names of the dimensions of the current slice's slots in stacked factors.
        before: the same for the slice before.
        table: for each slice, the latent in each slot (None where there is none).
        copies: (slot before, slot now) that hold the same latent.
        private: slots that no factor links to another slice: summed within their own.
        outer: latents alive through the whole chain, summed outside it.
        history: steps in a slice.
        home: (slice, slot) of each latent, where it is the newest of its family.
        families: latents of each family in time order, by its name.
    """

    time: str
    plates: tuple[str, ...]
    now: tuple[str, ...]
    before: tuple[str, ...]
    table: tuple[tuple[str | None, ...], ...] = ()
    copies: tuple[tuple[int, int], ...] = ()
    private: frozenset[int] = frozenset()
    outer: tuple[str, ...] = ()
    history: int = 1
    home: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    families: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def linked(self) -> tuple[int, ...]:
        """Slots whose joint state is the chain's."""
        return tuple(i for i in range(len(self.now)) if i not in self.private)

    @property
    def batch(self) -> tuple[str, ...]:
        """Dimensions along which there is one chain for each element."""
        return (*self.outer, *self.plates)

    def absent(self, slot: int) -> torch.Tensor:
        """Slices (n,) at which a slot is empty."""
        return torch.tensor([s for s, row in enumerate(self.table) if row[slot] is None], dtype=torch.int64)

    def at(self, dim: str, slice_: int) -> str | None:
        """The latent behind a dimension of a factor that acts on one slice (None where there is none)."""
        if dim in self.now:
            return self.table[slice_][self.now.index(dim)]
        return self.table[slice_ - 1][self.before.index(dim)]
