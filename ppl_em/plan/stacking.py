"""Like steps of a chain stacked along a time dimension, so that a loop of T steps costs one tensor operation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_em.ir import Argument, Factor, Link, Site
from ppl_em.ir.block import Axis, Block


def chain_order(block: Block) -> list[str] | None:
    """States of a block in time order if it is a first-order chain, else None.

    A chain: every factor touches one state or two neighbours, states have the same plates and number of values, and
    the graph of neighbours is one path.
    """
    neighbours: dict[str, list[str]] = {z: [] for z in block.names}
    for site in block.sites:
        if len(site.scope) > 2:
            return None
        if len(site.scope) == 2:
            a, b = site.scope
            if b not in neighbours[a]:
                neighbours[a].append(b)
                neighbours[b].append(a)
    first = block.latents[0]
    alike = all(z.plates == first.plates and z.cardinality == first.cardinality for z in block.latents)
    ends = [z for z, near in neighbours.items() if len(near) == 1]
    if len(block.latents) < 2 or not alike or len(ends) != 2 or any(len(n) > 2 for n in neighbours.values()):
        return None
    inside = all(set(s.plates) <= set(first.plates) or set(first.plates) <= set(s.plates) for s in block.sites)
    if not inside:
        return None
    order = [min(ends, key=block.names.index)]
    while len(order) < len(neighbours):
        step = [z for z in neighbours[order[-1]] if z not in order[-2:]]
        if len(step) != 1:
            return None
        order.append(step[0])
    return order


def stack_chain(block: Block, order: Sequence[str]) -> Block:
    """The block with its sites renamed to roles (now, before) and like sites stacked over time."""
    position = {z: t for t, z in enumerate(order)}
    axis = Axis(tuple(order), f"{order[0]}@time", f"{order[0]}@now", f"{order[0]}@before")
    groups: dict[Any, list[tuple[int, Site]]] = {}
    seen: dict[Any, int] = {}
    for site in block.sites:
        time = max(position[z] for z in site.scope)
        renamed = _rename(site, position, time, axis)
        key = _signature(renamed, site) if site.lowered else ("opaque", site.name)
        turn = seen.get((key, time), 0)
        seen[key, time] = turn + 1
        groups.setdefault((key, turn), []).append((time, renamed))
    sites, times, alive = [], {}, {}
    for members in groups.values():
        members.sort(key=lambda item: item[0])
        stacked = _stack([s for _, s in members], axis)
        sites.append(stacked)
        times[stacked.name] = torch.tensor([t for t, _ in members])
        if stacked.role == "latent":
            mask = _stack_alive([block.alive.get(n) for n in stacked.members], axis)
            if mask is not None:
                alive[stacked.name] = mask
    steps = len(order)
    cardinality = block.latents[0].cardinality
    sizes = {**block.sizes, axis.time: steps, axis.now: cardinality, axis.before: cardinality}
    return replace(block, sites=tuple(sites), axis=axis, times=times, alive=alive, sizes=sizes)


def _rename(site: Site, position: Mapping[str, int], time: int, axis: Axis) -> Site:
    names = {z: axis.now if position[z] == time else axis.before for z in site.scope}
    prefix = f"{site.name}_"
    names.update({d: f"@{d.removeprefix(prefix)}" for d in site.inner})

    def named(factor: Factor) -> Factor:
        return Factor(factor.tensor, tuple(names.get(d, d) for d in factor.dims))

    arguments = {n: replace(a, value=named(a.value)) for n, a in site.arguments.items()}
    scope = tuple(names[z] for z in site.scope)
    return replace(
        site,
        scope=scope,
        dims=scope + site.plates,
        inner=tuple(names[d] for d in site.inner),
        arguments=arguments,
        value=named(site.value),
        mask=None if site.mask is None else named(site.mask),
        scale=None if site.scale is None else named(site.scale),
    )


def _signature(site: Site, original: Site) -> Any:
    arguments = tuple(
        (n, a.value.dims, tuple(a.value.tensor.shape), tuple((k.parameter, k.transform.name, k.slope is None) for k in a.links))
        for n, a in sorted(site.arguments.items())
    )
    value = (site.value.dims, tuple(site.value.tensor.shape), site.value.tensor.dtype)
    mask = None if site.mask is None else site.mask.dims
    options = tuple(sorted((k, repr(v)) for k, v in site.options.items()))
    return (site.role, site.scope, site.plates, site.inner, site.family, arguments, value, mask, options, len(original.scope))


def _stack(members: list[Site], axis: Axis) -> Site:
    first = members[0]
    names = tuple(n for s in members for n in s.members)
    if len(members) == 1:
        return replace(first, members=names)
    arguments = {n: _stack_argument([s.arguments[n] for s in members], axis) for n in first.arguments}
    value = _stack_factor([s.value for s in members], axis)
    mask = None if first.mask is None else _stack_factor([s.mask for s in members if s.mask is not None], axis)
    varies = any(axis.time in f.dims for f in (value, *(a.value for a in arguments.values()), *([mask] if mask else [])))
    dims = first.scope + ((axis.time,) if varies else ()) + first.plates
    return replace(first, arguments=arguments, value=value, mask=mask, dims=dims, members=names)


def _stack_factor(factors: list[Factor], axis: Axis) -> Factor:
    first = factors[0]
    if all(_same(first.tensor, f.tensor) for f in factors[1:]):
        return first
    return Factor(torch.stack([f.tensor for f in factors]), (axis.time, *first.dims))


def _stack_argument(arguments: list[Argument], axis: Axis) -> Argument:
    first = arguments[0]
    fields = ("index", "slope", "offset")
    same_value = first.links or all(_same(first.value.tensor, a.value.tensor) for a in arguments[1:])
    same_links = all(
        _same(getattr(k, f), getattr(other, f))
        for a in arguments[1:]
        for k, other in zip(first.links, a.links, strict=True)
        for f in fields
    )
    if same_value and same_links:
        return first
    links = []
    for i, link in enumerate(first.links):
        parts: dict[str, Any] = {f: _stack_optional([getattr(a.links[i], f) for a in arguments]) for f in fields}
        links.append(Link(link.parameter, parts["index"], link.transform, parts["slope"], parts["offset"]))
    value = Factor(torch.stack([a.value.tensor for a in arguments]), (axis.time, *first.value.dims))
    return replace(first, value=value, links=tuple(links))


def _stack_optional(tensors: list[Tensor | None]) -> Tensor | None:
    return None if tensors[0] is None else torch.stack([t for t in tensors if t is not None])


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is b:
        return True
    if a is None or b is None or a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
        return True
    return torch.equal(a, b)


def _stack_alive(masks: list[Factor | None], axis: Axis) -> Factor | None:
    if all(m is None for m in masks):
        return None
    dims = tuple(dict.fromkeys(d for m in masks if m is not None for d in m.dims))
    whole = Factor(torch.tensor(True), ())
    rows = torch.broadcast_tensors(*[(m or whole).align(dims) for m in masks])
    stacked = Factor(torch.stack(rows), (axis.time, *dims))
    return None if bool(stacked.tensor.all()) else (stacked if len(masks) > 1 else Factor(rows[0], dims))
