"""Chains of several latents at each step, or of longer memory: grouped into slices whose joint state is a chain.

Reference:
    Murphy, K. P. (2002). Dynamic Bayesian networks: representation, inference and learning. Chapter 3.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ppl_em.ir import Site
from ppl_em.ir.block import Block
from ppl_em.ir.slices import Slices
from ppl_em.plan.stacking import rename_dims, stack_sites

#: Joint states of a slice at most: its transitions are a table of this size squared.
MAX_STATES = 1024
#: Joint values at most of the latents that are summed outside the chain.
MAX_OUTER = 256
#: Slices at least, for a block to be called a chain.
MIN_SLICES = 3


@dataclass(frozen=True)
class Grid:
    """Latents laid out by family and step.

    Args:
        families: latent by step, for each family.
        outer: latents of no family.
        times: step of each latent that has one.
        num_steps: steps, counted from 0.
    """

    families: Mapping[str, Mapping[int, str]]
    outer: tuple[str, ...]
    times: Mapping[str, int]
    num_steps: int


def slice_block(block: Block) -> Block | None:
    """The block as a chain of slices with like sites stacked, or None where no grouping makes it one.

    The numbers in the latents' names only propose how to group; that factors touch neighbours alone is checked.
    """
    found = [s for grid in _grids(block) if (s := _slices(block, grid)) is not None]
    if not found:
        return None
    return _stacked(block, min(found, key=lambda s: _work(block, s)))


def num_states(slices: Slices, sizes: Mapping[str, int]) -> int:
    """Joint states of a slice's linked slots."""
    return math.prod(sizes[slices.now[i]] for i in slices.linked)


def _work(block: Block, slices: Slices) -> float:
    sizes = {**block.sizes, **_role_sizes(block, slices)}
    outer = math.prod(block.sizes[z] for z in slices.outer)
    return float(outer * len(slices.table) * num_states(slices, sizes) ** 2)


def _grids(block: Block) -> list[Grid]:
    """Ways to read steps off the latents' names: by one of the numbers in them."""
    grids = []
    pieces = {z: re.split(r"(\d+)", z) for z in block.names}
    for turn in (-1, -2, 0, 1):
        families: dict[str, dict[int, str]] = {}
        alone: list[str] = []
        for z, parts in pieces.items():
            numbers = range(1, len(parts), 2)
            if not -len(numbers) <= turn < len(numbers):
                alone.append(z)
                continue
            place = numbers[turn]
            family = "".join((*parts[:place], "#", *parts[place + 1 :]))
            families.setdefault(family, {})[int(parts[place])] = z
        alone += [z for members in families.values() if len(members) == 1 for z in members.values()]
        families = {f: members for f, members in families.items() if len(members) > 1}
        steps = sorted({t for members in families.values() for t in members})
        rank = {t: i for i, t in enumerate(steps)}
        laid = {f: {rank[t]: z for t, z in members.items()} for f, members in families.items()}
        times = {z: t for members in laid.values() for t, z in members.items()}
        if laid and not any(g.times == times for g in grids):
            grids.append(Grid(laid, tuple(z for z in block.names if z in alone), times, len(steps)))
    return grids


def _slices(block: Block, grid: Grid) -> Slices | None:
    """The slices of a grid, or None if its blocks are not a chain that can be afforded."""
    latents = {z.name: z for z in block.latents}
    chained = [latents[z] for z in grid.times]
    plates = chained[0].plates
    alike = all(z.plates == plates for z in chained) and all(
        len({latents[z].cardinality for z in members.values()}) == 1 for members in grid.families.values()
    )
    if not alike or not all(set(latents[z].plates) <= set(plates) for z in grid.outer):
        return None
    if math.prod(latents[z].cardinality for z in grid.outer) > MAX_OUTER:
        return None
    reach, linked = _reach(block, grid, plates)
    if reach is None or grid.num_steps - reach + 1 < MIN_SLICES:
        return None
    return _lay_out(block, grid, reach, linked, plates)


def _reach(block: Block, grid: Grid, plates: Sequence[str]) -> tuple[int | None, set[str]]:
    """How many steps back factors reach, and the families that factors over several steps touch."""
    family = {z: f for f, members in grid.families.items() for z in members.values()}
    reach, linked = 0, set()
    for site in block.sites:
        steps = [grid.times[z] for z in site.scope if z in grid.times]
        if not steps:
            continue
        if not (set(site.plates) <= set(plates) or set(plates) <= set(site.plates)):
            return None, linked
        if max(steps) > min(steps):
            reach = max(reach, max(steps) - min(steps))
            linked.update(family[z] for z in site.scope if z in family)
    return reach or None, linked


def _lay_out(block: Block, grid: Grid, reach: int, linked: set[str], plates: tuple[str, ...]) -> Slices | None:
    cardinality = {f: block.sizes[next(iter(m.values()))] for f, m in grid.families.items()}
    # A window of several steps holds the first ones in older places, which private latents do not have.
    private = set(grid.families) - linked if reach == 1 else set()
    slots = [(f, lag) for lag in range(reach) for f in grid.families]
    if math.prod(cardinality[f] for f, _ in slots if f not in private) > MAX_STATES:
        return None
    if math.prod(cardinality[f] for f in private) > MAX_STATES:
        return None
    first = next(iter(grid.times))
    count = grid.num_steps - reach + 1
    table = tuple(tuple(grid.families[f].get(s + reach - 1 - lag) for f, lag in slots) for s in range(count))
    home = {}
    for s, row in enumerate(table):
        for slot, z in enumerate(row):
            if z is not None and (s == 0 or slots[slot][1] == 0):
                home.setdefault(z, (s, slot))
    number = {slot: i for i, slot in enumerate(slots)}
    return Slices(
        f"{first}@time",
        plates,
        tuple(f"{f}@now{lag or ''}" for f, lag in slots),
        tuple(f"{f}@before{lag or ''}" for f, lag in slots),
        table,
        tuple((number[f, lag - 1], number[f, lag]) for f, lag in slots if lag),
        frozenset(i for i, (f, _) in enumerate(slots) if f in private),
        grid.outer,
        reach,
        home,
        {f: tuple(m[t] for t in sorted(m)) for f, m in grid.families.items()},
    )


def _role_sizes(block: Block, slices: Slices) -> dict[str, int]:
    sizes = {slices.time: len(slices.table)}
    for i, (now, before) in enumerate(zip(slices.now, slices.before, strict=True)):
        member = next(row[i] for row in slices.table if row[i] is not None)
        sizes[now] = sizes[before] = block.sizes[str(member)]
    return sizes


def _stacked(block: Block, slices: Slices) -> Block:
    """The block with the dimensions of its sites under the names of their slots, like sites stacked."""
    step = {z: s + slices.history - 1 - slot // len(slices.families) for z, (s, slot) in slices.home.items()}
    entries, outside = [], []
    for site in block.sites:
        steps = [step[z] for z in site.scope if z in step]
        if not steps:
            outside.append(site)
            continue
        at, roles = _roles(site, slices, step, steps)
        entries.append((at, rename_dims(site, roles), site))
    sites, times, alive = stack_sites(block, entries, slices.time)
    alive.update({s.name: block.alive[s.name] for s in outside if s.name in block.alive})
    sizes = {**block.sizes, **_role_sizes(block, slices)}
    return replace(block, sites=(*outside, *sites), times=times, alive=alive, sizes=sizes, slices=slices)


def _roles(site: Site, slices: Slices, step: Mapping[str, int], steps: Sequence[int]) -> tuple[int, dict[str, str]]:
    """The slice at which a site acts, and the slot of each of its latents."""
    newest, width = max(steps), len(slices.families)
    at = max(0, newest - slices.history + 1)
    across = newest - min(steps) == slices.history
    roles = {}
    for z in site.scope:
        if z not in step:
            continue
        _, slot = slices.home[z]
        lag = at + slices.history - 1 - step[z]
        family = slot % width
        # Where a factor reaches back further than a slice does, all but its newest latents are of the slice before.
        if across and lag:
            roles[z] = slices.before[(lag - 1) * width + family]
        else:
            roles[z] = slices.now[lag * width + family]
    return at, roles
