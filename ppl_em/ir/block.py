"""A connected group of summed latents with every factor that touches it: what one engine works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from ppl_em.ir.factor import Factor
from ppl_em.ir.graph import Latent, Site
from ppl_em.ir.slices import Slices


@dataclass(frozen=True)
class Axis:
    """The time axis of a chain: like steps stacked along one dimension.

    Args:
        states: names of the states z_0 … z_{T−1} in order.
        time: name of the time dimension.
        now, before: names of the dimensions of the current and the previous state in stacked factors.
        plate: the plate that the steps run at once had in the program, where they were.
        family: name of the family of states, where they were run at once.
    """

    states: tuple[str, ...]
    time: str
    now: str
    before: str
    plate: str | None = None
    family: str | None = None


@dataclass(frozen=True)
class Block:
    """Latents that are connected by factors, and these factors.

    Args:
        latents: in program order.
        sites: every site whose scope meets the block; in a chain, stacked along its axis where they are alike.
        plates: plates that all latents share: one log Z for each of their elements.
        sizes: size of every named dimension.
        scale: multiplies log Z (all sites of the block share it), by plates; None for one.
        axis: for a chain, its time axis.
        times: for a chain, the steps at which each site acts (of its current state).
        alive: elements of each latent that have an observed descendant, by plates; absent where all have. Others
            sum to one and do not count in the M-step.
        slices: for a chain of several latents at each step, how they are grouped.
    """

    latents: tuple[Latent, ...]
    sites: tuple[Site, ...]
    plates: tuple[str, ...]
    sizes: Mapping[str, int]
    scale: Factor | None = None
    axis: Axis | None = None
    times: Mapping[str, torch.Tensor] = field(default_factory=dict)
    alive: Mapping[str, Factor] = field(default_factory=dict)
    slices: Slices | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the latents."""
        return tuple(z.name for z in self.latents)

    def latent(self, name: str) -> Latent:
        """A latent by name."""
        return next(z for z in self.latents if z.name == name)

    def site_sizes(self, site: Site) -> dict[str, int]:
        """Size of every named dimension as one site has it: a stack may act at some steps of a chain only."""
        time = self.axis.time if self.axis is not None else self.slices.time if self.slices is not None else None
        if time is None or site.name not in self.times:
            return dict(self.sizes)
        return {**self.sizes, time: len(self.times[site.name])}

    def count_weights(self, site: Site) -> Factor | None:
        """Weight of each element of a site in expected counts: 0 for latent elements without observed descendants."""
        return self.alive.get(site.name) if site.role == "latent" else None
