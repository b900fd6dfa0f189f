"""A block's log-factors in the layout of the chain kernels: the joint state of each slice as one state."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.ir import Factor, Site
from ppl_em.ir.block import Block
from ppl_em.ir.shapes import broadcast_shapes
from ppl_em.ir.slices import Slices

Reduce = Callable[[Factor, Iterable[str]], Factor]


@dataclass(frozen=True)
class SliceFactors:
    """Log-factors of a chain over joint states (S of them).

    Args:
        init: (*batch, S) log-factor of the first slice's state; batch dimensions may have size 1.
        trans: (S, S) shared, or (*batch, T−1 or 1, S, S).
        obs: (*batch, T, S) everything else within a slice.
        within: log-weights of each slice's private latents given its state, by batch, time, linked and private
            slots; None where there are none.
    """

    init: Tensor
    trans: Tensor
    obs: Tensor
    within: Factor | None = None


def slices_of(block: Block) -> Slices:
    """How a block is a chain: its slices, or a first-order chain's axis as slices of one slot.

    Raises:
        ValueError: it is not stacked.
    """
    if block.slices is not None:
        return block.slices
    if block.axis is None:
        raise ValueError("the block has no time axis")
    return Slices(block.axis.time, block.plates, (block.axis.now,), (block.axis.before,))


def is_pair(slices: Slices, site: Site) -> bool:
    """Whether a site links a slice to the one before."""
    return any(d in slices.before for d in site.scope)


def in_chain(slices: Slices, site: Site) -> bool:
    """Whether a site touches the chain at all."""
    return any(d in slices.before or d in slices.now for d in site.scope)


def slice_factors(block: Block, factors: Mapping[str, Factor], reduce: Reduce = Factor.logsumexp) -> SliceFactors:
    """Gather a stacked block's log-factors by role.

    Args:
        block: with its axis or slices.
        factors: log-factor of each (stacked) site.
        reduce: sums (or maximises) over private latents.
    """
    slices = slices_of(block)
    linked = tuple(slices.now[i] for i in slices.linked)
    hidden = tuple(slices.now[i] for i in sorted(slices.private))
    whole = (*slices.batch, slices.time, *linked, *hidden)
    open_, within, first = Parts(block, whole), Parts(block, whole), []
    for site in block.sites:
        if not in_chain(slices, site) or is_pair(slices, site):
            continue
        factor, times = onto_plates(block, slices, site, factors[site.name]), block.times[site.name]
        private = any(d in hidden for d in site.scope)
        if site.role == "latent" and len(times) == 1 and int(times[0]) == 0 and not private:
            first.append(_without(factor, slices.time).align((*slices.batch, *linked)))
        else:
            (within if private else open_).add(factor, times)
    some = next(iter(factors.values())).tensor
    like = torch.empty((), dtype=torch.promote_types(some.dtype, torch.float32), device=some.device)
    for i, dim in enumerate(slices.now):
        absent = slices.absent(i)
        if len(absent):
            empty = like.new_full((1, block.sizes[dim]), -torch.inf)
            empty[:, 0] = 0.0
            wide = Factor(empty.expand(len(absent), -1), (slices.time, dim))
            (within if dim in hidden else open_).add(wide, absent)
    obs = open_.total(like)
    conditional = None
    if hidden:
        conditional = Factor(within.total(like), whole)
        obs = obs.flatten(-len(hidden)).squeeze(-1) + reduce(conditional, hidden).align(whole[: -len(hidden)])
    states = int(torch.Size([block.sizes[d] for d in linked]).numel())
    shape = [block.sizes[d] for d in linked]
    head = len(slices.batch) + 1
    obs = obs.expand(*(block.sizes[d] for d in (*slices.batch, slices.time)), *shape)
    obs = obs.reshape(*obs.shape[:head], states)
    init = like.new_zeros(states)
    for part in first:
        init = init + part.expand(*part.shape[: head - 1], *shape).reshape(*part.shape[: head - 1], states)
    return SliceFactors(init, _transitions(block, slices, factors, like), obs, conditional)


def _transitions(block: Block, slices: Slices, factors: Mapping[str, Factor], like: Tensor) -> Tensor:
    before = tuple(slices.before[i] for i in slices.linked)
    now = tuple(slices.now[i] for i in slices.linked)
    steps = block.sizes[slices.time] - 1
    parts = Parts(block, (*slices.batch, slices.time, *before, *now), steps)
    for site in block.sites:
        if is_pair(slices, site):
            factor = onto_plates(block, slices, site, factors[site.name])
            parts.add(factor, block.times[site.name] - 1)
    for i, j in slices.copies:
        same = torch.eye(block.sizes[slices.now[j]], dtype=like.dtype, device=like.device).log()
        parts.add(Factor(same, (slices.before[i], slices.now[j])), torch.arange(steps))
    total = parts.total(like)
    head = len(slices.batch) + 1
    shape = [block.sizes[d] for d in (*before, *now)]
    states = int(torch.Size(shape[: len(before)]).numel())
    total = total.expand(*total.shape[:head], *shape).reshape(*total.shape[:head], states, states)
    return total.reshape(states, states) if all(n == 1 for n in total.shape[:head]) else total


class Parts:
    """Log-factors to be added up along time, each over some or all of the steps.

    Args:
        block: gives the sizes.
        dims: dimensions of the sum, time among them.
        steps: number of steps along time (all of the block's if None).
    """

    def __init__(self, block: Block, dims: tuple[str, ...], steps: int | None = None) -> None:
        self.block, self.dims = block, dims
        self.time = slices_of(block).time
        self.position = dims.index(self.time)
        self.steps = block.sizes[self.time] if steps is None else steps
        self.every: list[Tensor] = []
        self.some: list[tuple[Tensor, Tensor]] = []

    def add(self, factor: Factor, times: Tensor) -> None:
        """Count a factor in at some steps."""
        aligned = factor.align(self.dims)
        if len(times) == self.steps:
            self.every.append(aligned)
        else:
            shape = list(aligned.shape)
            shape[self.position] = len(times)
            self.some.append((aligned.expand(shape), times))

    def total(self, like: Tensor) -> Tensor:
        """The sum; dimensions along which nothing varies have size 1."""
        total = like.new_zeros([1] * len(self.dims))
        for part in self.every:
            total = total + part
        if not self.some:
            return total
        p = self.position
        shapes = [(*t.shape[:p], *t.shape[p + 1 :]) for t, _ in self.some]
        rest = list(broadcast_shapes(*shapes, (*total.shape[:p], *total.shape[p + 1 :])))
        pieces = [t.expand(*rest[:p], t.shape[p], *rest[p:]) for t, _ in self.some]
        times = torch.cat([times for _, times in self.some]).to(like.device)
        base = total.expand(*rest[:p], self.steps, *rest[p:])
        return base.index_add(p, times, torch.cat(pieces, p).to(base.dtype))


def onto_plates(block: Block, slices: Slices, site: Site, factor: Factor) -> Factor:
    """Sum a factor over plates that the chain does not live in (each element counts)."""
    extra = [p for p in site.plates if p not in slices.plates]
    return factor.expand({p: block.sizes[p] for p in extra}).sum(extra) if extra else factor


def last_observed(block: Block) -> Factor | None:
    """Last step of each series at or after which anything is observed, by plates; None where it is the chain's last."""
    slices, ends = slices_of(block), []
    for site in block.sites:
        if site.role != "latent" or not any(d in slices.now for d in site.scope):
            continue
        times = Factor(block.times[site.name], (slices.time,))
        alive = block.alive.get(site.name, Factor(torch.tensor(True), ()))
        reached = Factor(torch.ones_like(times.tensor), times.dims) * alive.map(lambda t: t.long()) * times
        ends.append(reached.reduce([slices.time], torch.amax).align(slices.plates))
    if not ends:
        return None
    shapes = torch.broadcast_tensors(*ends)
    last = torch.stack(shapes).amax(0)
    return None if bool((last == block.sizes[slices.time] - 1).all()) else Factor(last, slices.plates)


def path_ends(block: Block) -> Factor | None:
    """Last step of each series' path, by plates: what is masked behind it is padding. None where there is none.

    Latents behind the program's last observation are not padding, nobody masked them: a series that is observed up to
    there has all steps.
    """
    last, time = last_observed(block), slices_of(block).time
    if last is None:
        return None
    seen = [int(block.times[s.name].max()) for s in block.sites if s.role != "latent" and s.name in block.times]
    if not seen:
        return None
    end = block.sizes[time] - 1
    ends = last.map(lambda t: torch.where(t >= max(seen), end, t))
    return None if bool((ends.tensor == end).all()) else ends


def at_last(states: Tensor, block: Block) -> Tensor:
    """The entries (*batch, S) of ``states`` (*batch, T, S) at the last step at which anything is observed."""
    slices, last = slices_of(block), last_observed(block)
    if last is None:
        return states[..., -1, :]
    sizes = [block.sizes[d] for d in slices.batch]
    states = states.expand(*sizes, *states.shape[-2:])
    index = last.align(slices.batch).expand(sizes)[..., None, None].expand(*sizes, 1, states.shape[-1])
    return states.gather(-2, index.to(states.device)).squeeze(-2)


def _without(factor: Factor, dim: str) -> Factor:
    return factor.reduce([dim], lambda t, dims: t.squeeze(dims))


def positions(block: Block, site: Site, chosen: Mapping[str, Factor]) -> dict[str, Factor]:
    """Positions of a (stacked) site's latents under the names of its dimensions.

    Args:
        block: the block.
        site: one of its sites.
        chosen: position in the support, by latent and plates.
    """
    if site.name not in block.times:
        return {z: chosen[z] for z in site.scope}
    steps = block.times[site.name].tolist()
    result = {}
    for dim in site.scope:
        if block.axis is not None:
            back = int(dim == block.axis.before)
            names, time, plates = [block.axis.states[t - back] for t in steps], block.axis.time, block.plates
        else:
            slices = block.slices
            assert slices is not None
            if dim in slices.outer:
                result[dim] = chosen[dim]
                continue
            names, time, plates = [slices.at(dim, s) for s in steps], slices.time, slices.plates
        rows = [chosen[z].align(plates) for z in names if z is not None]
        result[dim] = Factor(rows[0], plates) if len(rows) == 1 else Factor(torch.stack(rows, -1), (*plates, time))
    return result
