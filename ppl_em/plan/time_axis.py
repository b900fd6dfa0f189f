"""A chain whose steps were run at once, as a block stacked along its time axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ppl_em.ir import Argument, Factor, Link, Program, Site, TimeAxis
from ppl_em.ir.block import Axis, Block
from ppl_em.ir.shapes import broadcast_shapes


def axis_of(program: Program, block: Block) -> TimeAxis | None:
    """The time axis along which a block's states were run at once, or None."""
    return next((a for a in program.axes if any(z in a.first for z in block.names)), None)


def stack_axis(block: Block, axis: TimeAxis) -> Block | None:
    """The block in the roles of a chain (now, before, time), or None if it is not one first-order chain.

    Args:
        block: the block as traced: the state of step 0 and the states of all other steps.
        axis: its time axis.
    """
    states = [z for z in block.names if z in axis.first]
    if len(states) != 1 or len(block.latents) != 2 or axis.history != 1 or axis.first[states[0]] not in block.names:
        return None
    vector, first = states[0], axis.first[states[0]]
    names = tuple(axis.at(vector, t) for t in range(axis.size))
    roles = Axis(names, f"{first}@time", f"{first}@now", f"{first}@before", axis.plate, axis.family(vector))
    sites: list[Site] = []
    times, alive = {}, {}
    singles = {s.name: _rename(s, {first: roles.now}) for s in block.sites if axis.plate not in s.plates}
    if any(s.scope != (roles.now,) for s in singles.values()):
        return None
    for site in block.sites:
        if axis.plate not in site.plates:
            continue
        renamed = _rename(site, {vector: roles.now, first: roles.before, axis.plate: roles.time})
        renamed = replace(renamed, plates=tuple(p for p in renamed.plates if p != roles.time))
        partner = singles.get(axis.first[site.name])
        joined = _join(partner, renamed, roles.time, axis.size) if partner is not None else None
        if joined is not None:
            del singles[axis.first[site.name]]
            sites.append(joined)
            times[joined.name] = torch.arange(axis.size)
        else:
            sites.append(renamed)
            times[renamed.name] = torch.arange(1, axis.size)
        mask = block.alive.get(site.name) if site.role == "latent" else None
        if mask is not None:
            mask = Factor(mask.tensor, tuple(roles.time if d == axis.plate else d for d in mask.dims))
            alive[sites[-1].name] = _until_the_last(mask, roles.time)
    for single in singles.values():
        sites.insert(0, single)
        times[single.name] = torch.tensor([0])
        if single.role == "latent" and single.name in block.alive:
            alive[single.name] = block.alive[single.name]
    latents = (block.latent(first),)
    states_size = latents[0].cardinality
    sizes = {d: n for d, n in block.sizes.items() if d not in (vector, axis.plate)}
    sizes.update({roles.time: axis.size, roles.now: states_size, roles.before: states_size})
    plates = tuple(p for p in block.latent(first).plates)
    return replace(
        block,
        latents=block.latents,
        sites=tuple(sites),
        plates=plates,
        sizes=sizes,
        axis=roles,
        times=times,
        alive=alive,
    )


def _until_the_last(mask: Factor, time: str) -> Factor:
    """A state is alive while anything at its own or a later step is observed."""
    if time not in mask.dims:
        return mask
    position = mask.dims.index(time)
    reached = mask.tensor.flip(position).long().cummax(position).values.flip(position).bool()
    return Factor(reached, mask.dims)


def _rename(site: Site, names: dict[str, str]) -> Site:
    """A site with its dimensions under other names; inner ones get names that all steps share."""
    prefix = f"{site.name}_"
    names = {**names, **{d: f"@{d.removeprefix(prefix)}" for d in site.inner}}

    def named(factor: Factor) -> Factor:
        return Factor(factor.tensor, tuple(names.get(d, d) for d in factor.dims))

    def moved(dims: Sequence[str]) -> tuple[str, ...]:
        return tuple(names.get(d, d) for d in dims)

    arguments = {n: replace(a, value=named(a.value)) for n, a in site.arguments.items()}
    return replace(
        site,
        scope=moved(site.scope),
        plates=moved(site.plates),
        dims=moved(site.dims),
        inner=moved(site.inner),
        arguments=arguments,
        value=named(site.value),
        mask=None if site.mask is None else named(site.mask),
        scale=None if site.scale is None else named(site.scale),
    )


def _join(first: Site, rest: Site, time: str, size: int) -> Site | None:
    """Step 0 and all other steps as one site, or None if they are not alike."""
    alike = (
        first.lowered
        and rest.lowered
        and first.role == rest.role
        and first.family is rest.family
        and first.scope == rest.scope
        and first.inner == rest.inner
        and first.plates == rest.plates
        and set(first.arguments) == set(rest.arguments)
        and first.options == rest.options
    )
    if not alike:
        return None
    arguments = {}
    for name in rest.arguments:
        joined = _join_argument(first.arguments[name], rest.arguments[name], time, size)
        if joined is None:
            return None
        arguments[name] = joined
    value = _join_factor(first.value, rest.value, time, size)
    mask = None
    if first.mask is not None or rest.mask is not None:  # something is missing at one of them only
        whole = Factor(torch.tensor(True), ())
        mask = _join_factor(first.mask or whole, rest.mask or whole, time, size)
    members = (*first.members, *rest.members)
    return replace(rest, arguments=arguments, value=value, mask=mask, members=members, missing=None)


def _join_argument(first: Argument, rest: Argument, time: str, size: int) -> Argument | None:
    if first.design is not None or rest.design is not None or len(first.links) != len(rest.links):
        return None
    if not first.links:
        return replace(rest, value=_join_factor(first.value, rest.value, time, size))
    links = []
    for a, b in zip(first.links, rest.links, strict=True):
        if a.parameter != b.parameter or a.transform is not b.transform or (a.slope is None) != (b.slope is None):
            return None
        index = _join_factor(Factor(a.index, first.value.dims), Factor(b.index, rest.value.dims), time, size)
        parts = [
            None
            if x is None or y is None
            else _join_factor(Factor(x, first.value.dims), Factor(y, rest.value.dims), time, size).tensor
            for x, y in ((a.slope, b.slope), (a.offset, b.offset))
        ]
        links.append(Link(b.parameter, index.tensor, b.transform, parts[0], parts[1]))
    value = _join_factor(first.value, rest.value, time, size)
    # The links and the value must vary along the same dimensions.
    if links and links[0].index.shape != value.tensor.shape:
        shape = broadcast_shapes(links[0].index.shape, value.tensor.shape)
        if links[0].index.shape != shape:
            return None
        value = Factor(value.tensor.expand(shape), value.dims)
    return replace(rest, value=value, links=tuple(links))


def _join_factor(first: Factor, rest: Factor, time: str, size: int) -> Factor:
    """Values of step 0 and of the other steps along one time dimension; without it where all are the same."""
    if time not in rest.dims and first.dims == rest.dims and _same(first.tensor, rest.tensor):
        return rest
    dims = (time, *dict.fromkeys(d for f in (first, rest) for d in f.dims if d != time))
    a, b = first.align(dims), rest.align(dims)
    shape = list(broadcast_shapes(a.shape[1:], b.shape[1:]))
    pieces = [a.expand(1, *shape), b.expand(size - 1, *shape)]
    return Factor(torch.cat(pieces), dims)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)
