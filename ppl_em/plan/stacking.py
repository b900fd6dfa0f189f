"""Like steps of a chain stacked along a time dimension, so that a loop of T steps costs one tensor operation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_em.ir import Argument, Factor, Link, Site
from ppl_em.ir.block import Axis, Block
from ppl_em.ir.design import Design


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
    entries = []
    for site in block.sites:
        time = max(position[z] for z in site.scope)
        entries.append((time, _rename(site, position, time, axis), site))
    sites, times, alive = stack_sites(block, entries, axis.time)
    steps = len(order)
    cardinality = block.latents[0].cardinality
    sizes = {**block.sizes, axis.time: steps, axis.now: cardinality, axis.before: cardinality}
    return replace(block, sites=tuple(sites), axis=axis, times=times, alive=alive, sizes=sizes)


def stack_sites(
    block: Block, entries: Iterable[tuple[int, Site, Site]], time: str
) -> tuple[list[Site], dict[str, Tensor], dict[str, Factor]]:
    """Sites with their dimensions renamed to roles, like ones stacked along time.

    Args:
        block: tells which elements are alive.
        entries: (step, renamed site, the site as it was).
        time: name of the time dimension.

    Returns:
        Stacked sites, the steps of each, and which elements of stacked latents are alive.
    """
    entries = masked_alike(list(entries))
    groups: dict[Any, list[tuple[int, Site]]] = {}
    seen: dict[Any, int] = {}
    for step, renamed, site in entries:
        key = _signature(renamed, site) if site.lowered else ("opaque", site.name)
        turn = seen.get((key, step), 0)
        seen[key, step] = turn + 1
        groups.setdefault((key, turn), []).append((step, renamed))
    sites, times, alive = [], {}, {}
    for members in groups.values():
        members.sort(key=lambda item: item[0])
        stacked = _stack([s for _, s in members], time)
        sites.append(stacked)
        times[stacked.name] = torch.tensor([t for t, _ in members])
        if stacked.role == "latent":
            mask = _stack_alive([block.alive.get(n) for n in stacked.members], time)
            if mask is not None:
                alive[stacked.name] = mask
    return sites, times, alive


def masked_alike(entries: list[tuple[int, Site, Site]]) -> list[tuple[int, Site, Site]]:
    """Like sites get masks over the same dimensions where any of them has one (a step at which something is missing).

    Args:
        entries: as for :func:`stack_sites`.
    """
    keys = [_signature(replace(r, mask=None), s) if s.lowered and s.role == "observed" else None for _, r, s in entries]
    dims: dict[Any, dict[str, int]] = {}
    for key, (_, renamed, _) in zip(keys, entries, strict=True):
        if key is not None and renamed.mask is not None:
            dims.setdefault(key, {}).update(renamed.mask.sizes)
    result = []
    for key, (step, renamed, site) in zip(keys, entries, strict=True):
        if key in dims:
            names = tuple(d for d in (*renamed.dims, *renamed.inner) if d in dims[key])
            mask = renamed.mask or Factor(torch.tensor(True), ())
            wide = mask.align(names).expand([dims[key][d] for d in names])
            renamed = replace(renamed, mask=Factor(wide, names))
        result.append((step, renamed, site))
    return result


def _rename(site: Site, position: Mapping[str, int], time: int, axis: Axis) -> Site:
    return rename_dims(site, {z: axis.now if position[z] == time else axis.before for z in site.scope})


def rename_dims(site: Site, names: Mapping[str, str]) -> Site:
    """A site with its dimensions under other names; inner ones get names that all steps share."""
    names = dict(names)
    prefix = f"{site.name}_"
    names.update({d: f"@{d.removeprefix(prefix)}" for d in site.inner})

    def named(factor: Factor) -> Factor:
        return Factor(factor.tensor, tuple(names.get(d, d) for d in factor.dims))

    arguments = {
        n: replace(a, value=named(a.value), design=None if a.design is None else _rename_design(a.design, names))
        for n, a in site.arguments.items()
    }
    scope = tuple(names.get(z, z) for z in site.scope)
    arguments = {n: _in_order(a, scope + site.plates) for n, a in arguments.items()}
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


def _in_order(argument: Argument, order: Sequence[str]) -> Argument:
    """An argument with its dimensions in the order of the site's: steps are traced in whatever order is at hand."""

    def ordered(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(sorted(names, key=lambda d: (d not in order, order.index(d) if d in order else 0)))

    named, width = argument.value.dims, argument.value.tensor.dim()
    dims, design = ordered(named), argument.design
    if design is not None and ordered(design.cells) != design.cells:
        argument = replace(argument, design=_design_in_order(design, ordered(design.cells)))
    if dims == named:
        return argument

    def moved(tensor: Tensor | None) -> Tensor | None:
        return tensor if tensor is None or tensor.dim() < width else Factor(tensor, named).align(dims)

    links = tuple(
        replace(k, index=Factor(k.index, named).align(dims), slope=moved(k.slope), offset=moved(k.offset))
        for k in argument.links
    )
    return replace(argument, value=argument.value.to(dims), links=links)


def _design_in_order(design: Design, cells: tuple[str, ...]) -> Design:
    """A design with its cells in another order."""
    sizes = design.shape[: len(design.cells)]
    number = torch.arange(len(design.index)).reshape(*sizes, *((design.event,) if design.event else ()))
    rows = Factor(number, design.cells).align(cells).flatten()
    return replace(
        design,
        index=design.index[rows],
        features=design.features if len(design.features) == 1 else design.features[rows],
        offset=None if design.offset is None else design.offset[rows],
        cells=cells,
        shape=(*(sizes[design.cells.index(d)] for d in cells), *design.shape[len(cells) :]),
    )


def _design_signature(design: Design) -> Any:
    """Designs of the same signature differ in their covariates only."""
    index = (tuple(design.index.shape), design.index.cpu().numpy().tobytes())
    shared = len(design.features) == 1
    form = (design.cells, design.data, design.shape, design.transform.name, shared, design.offset is None)
    return (design.parameters, index, form)


def _rename_design(design: Design, names: Mapping[str, str]) -> Design:
    return replace(
        design,
        cells=tuple(names.get(d, d) for d in design.cells),
        data=tuple(names.get(d, d) for d in design.data),
    )


def _signature(site: Site, original: Site) -> Any:
    arguments = tuple(
        (
            n,
            a.value.dims,
            tuple(a.value.tensor.shape),
            tuple((k.parameter, k.transform.name, k.slope is None) for k in a.links),
            None if a.design is None else _design_signature(a.design),
        )
        for n, a in sorted(site.arguments.items())
    )
    value = (site.value.dims, tuple(site.value.tensor.shape), site.value.tensor.dtype)
    mask = None if site.mask is None else site.mask.dims
    options = tuple(sorted((k, repr(v)) for k, v in site.options.items()))
    return (
        site.role,
        site.scope,
        site.plates,
        site.inner,
        site.family,
        arguments,
        value,
        mask,
        options,
        len(original.scope),
    )


def _stack(members: list[Site], time: str) -> Site:
    first = members[0]
    names = tuple(n for s in members for n in s.members)
    if len(members) == 1:
        return replace(first, members=names, missing=None)
    arguments = {n: _stack_argument([s.arguments[n] for s in members], time) for n in first.arguments}
    value = _stack_factor([s.value for s in members], time)
    mask = None if first.mask is None else _stack_factor([s.mask for s in members if s.mask is not None], time)
    varies = any(time in f.dims for f in (value, *(a.value for a in arguments.values()), *([mask] if mask else [])))
    dims = first.scope + ((time,) if varies else ()) + first.plates
    return replace(first, arguments=arguments, value=value, mask=mask, dims=dims, members=names, missing=None)


def _stack_factor(factors: list[Factor], time: str) -> Factor:
    first = factors[0]
    if all(_same(first.tensor, f.tensor) for f in factors[1:]):
        return first
    return Factor(torch.stack([f.tensor for f in factors]), (time, *first.dims))


def _stack_argument(arguments: list[Argument], time: str) -> Argument:
    first = arguments[0]
    if first.design is not None:
        return _stack_designs(arguments, time)
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
    value = Factor(torch.stack([a.value.tensor for a in arguments]), (time, *first.value.dims))
    return replace(first, value=value, links=tuple(links))


def _stack_designs(arguments: list[Argument], time: str) -> Argument:
    """Linear predictors of the same coefficients: the covariates of all steps one after the other."""
    designs = [a.design for a in arguments if a.design is not None]
    head = designs[0]
    cells = len(head.cells)
    joined = replace(
        head,
        features=torch.cat([d.features for d in designs], 1),
        offset=None if head.offset is None else torch.cat([d.offset for d in designs if d.offset is not None], 1),
        data=(time, *head.data),
        shape=(*head.shape[:cells], len(designs), *head.shape[cells:]),
    )
    value = Factor(torch.stack([a.value.tensor for a in arguments]), (time, *arguments[0].value.dims))
    return replace(arguments[0], value=value, design=joined)


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


def _stack_alive(masks: list[Factor | None], time: str) -> Factor | None:
    if all(m is None for m in masks):
        return None
    dims = tuple(dict.fromkeys(d for m in masks if m is not None for d in m.dims))
    whole = Factor(torch.tensor(True), ())
    rows = torch.broadcast_tensors(*[(m or whole).align(dims) for m in masks])
    stacked = Factor(torch.stack(rows), (time, *dims))
    return None if bool(stacked.tensor.all()) else (stacked if len(masks) > 1 else Factor(rows[0], dims))
