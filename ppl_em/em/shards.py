"""Parts of the data: batches of a loader, or elements of the outermost data plate of a program in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_em.errors import PlanError, message
from ppl_em.ir import Argument, Factor, Link, Plate, Program, Site
from ppl_em.ir.design import Design
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update


@dataclass(frozen=True)
class Shard:
    """A part of the data with the plan of its E-step.

    Args:
        plan: blocks and sites of these data alone.
        size: number of data.
    """

    plan: Plan
    size: int


def inside(plan: Plan, plate: str) -> Plan:
    """What adds up over parts of a plate: blocks and sites that live in it.

    Raises:
        PlanError: a latent outside the plate ties its elements together; named.
    """
    for entry in plan.blocks:
        block = entry.block
        if plate not in block.plates and any(plate in s.plates for s in block.sites):
            loose = next(z.name for z in block.latents if plate not in z.plates)
            why = f"it lies outside plate '{plate}': the data are not independent given the parameters"
            hint = "one tensor with all data, or a latent inside the plate"
            raise PlanError(message("the data cannot be taken in parts", site=loose, why=why, hint=hint))
    blocks = tuple(e for e in plan.blocks if plate in e.block.plates)
    return replace(plan, blocks=blocks, plain=tuple(s for s in plan.plain if plate in s.plates))


def outside(plan: Plan, plate: str) -> Plan:
    """What is counted once, however many parts there are: priors, and whatever else lies outside the plate."""
    blocks = tuple(e for e in plan.blocks if plate not in e.block.plates)
    return replace(plan, blocks=blocks, plain=tuple(s for s in plan.plain if plate not in s.plates))


def with_updates(plan: Plan, updates: Sequence[Update], messages: Sequence[Update] = ()) -> Plan:
    """The plan of a part with the M-step of the whole: each update by those of its sites that the part has.

    Args:
        plan: of the part.
        updates: of the whole.
        messages: those that pass on one site's statistics each, to be combined with a prior elsewhere.
    """
    fed: dict[str, list[str]] = {n: [] for n in plan.program.parameters}
    for site in plan.sites():
        for n in site.parameters & set(fed):
            fed[n].append(site.name)
    mine = []
    for update in updates:
        touched = dict.fromkeys(s for n in update.parameters for s in fed[n])
        if touched and update.rule != "frozen":
            mine.append(replace(update, sites=tuple(touched)))
    there = {s.name for s in plan.sites()}
    mine += [m for m in messages if set(m.sites) <= there]
    return replace(plan, updates=tuple(mine))


def take(program: Program, plate: str, rows: Tensor) -> Program:
    """The program on some elements of a plate, without running it.

    Args:
        program: the traced program; its sites in the plate are lowered.
        plate: an outermost data plate.
        rows: positions of the elements.
    """
    size = program.plates[plate].size
    cut = _Cut(plate, size, rows)
    sites = {n: cut.site(s) if plate in s.plates else s for n, s in program.sites.items()}
    old = program.plates[plate]
    plates: dict[str, Plate] = {**program.plates, plate: replace(old, size=len(rows), full_size=len(rows))}
    return replace(program, sites=sites, plates=plates)


def obstacle(program: Program, plate: str) -> str | None:
    """The site for which :func:`take` needs a run of the program, None if there is none."""
    return next((n for n, s in program.sites.items() if plate in s.plates and not s.lowered), None)


@dataclass(frozen=True)
class _Cut:
    """Takes rows out of everything that varies along one plate."""

    plate: str
    size: int
    rows: Tensor

    def factor(self, factor: Factor) -> Factor:
        """A factor's rows."""
        return Factor(self.tensor(factor.tensor, factor.dims), factor.dims)

    def tensor(self, tensor: Tensor, dims: tuple[str, ...]) -> Tensor:
        """Rows of a tensor whose leading dimensions are named."""
        if self.plate not in dims:
            return tensor
        axis = dims.index(self.plate)
        return tensor if tensor.shape[axis] != self.size else tensor.index_select(axis, self.rows.to(tensor.device))

    def site(self, site: Site) -> Site:
        """A site's rows."""
        return replace(
            site,
            value=self.factor(site.value),
            mask=None if site.mask is None else self.factor(site.mask),
            missing=None if site.missing is None else self.factor(site.missing),
            scale=None if site.scale is None else self.factor(site.scale),
            arguments={n: self.argument(a) for n, a in site.arguments.items()},
        )

    def argument(self, argument: Argument) -> Argument:
        """An argument's rows."""
        dims = argument.value.dims
        return replace(
            argument,
            value=self.factor(argument.value),
            links=tuple(self.link(k, dims) for k in argument.links),
            design=None if argument.design is None else self.design(argument.design),
        )

    def link(self, link: Link, dims: tuple[str, ...]) -> Link:
        """A link's rows."""
        slope = None if link.slope is None else self.tensor(link.slope, dims)
        offset = None if link.offset is None else self.tensor(link.offset, dims)
        return replace(link, index=self.tensor(link.index, dims), slope=slope, offset=offset)

    def design(self, design: Design) -> Design:
        """A design's rows: N flattens the data dimensions."""
        if self.plate not in design.data:
            return design
        shape = design.shape[len(design.cells) :]
        chosen = self.tensor(torch.arange(_product(shape)).reshape(shape), design.data)
        flat = chosen.reshape(-1).to(design.features.device)
        return replace(
            design,
            features=design.features.index_select(1, flat),
            offset=None if design.offset is None else design.offset.index_select(1, flat),
            shape=(*design.shape[: len(design.cells)], *chosen.shape),
        )


def _product(sizes: tuple[int, ...]) -> int:
    total = 1
    for n in sizes:
        total *= n
    return total


def unscaled(program: Program, plate: str) -> Program:
    """The program of a batch without the factor by which its plate stands for more data than it holds.

    Args:
        program: traced on one batch.
        plate: ``pyro.plate(name, size, subsample_size)``: its sites are scaled by ``size / subsample_size``.
    """
    seen = program.plates[plate]
    if seen.full_size == seen.size:
        return program
    share = seen.size / seen.full_size

    def undone(site: Site) -> Site:
        if plate not in site.plates or site.scale is None:
            return site
        scale = site.scale.map(lambda t: t * share)
        return replace(site, scale=None if bool(((scale.tensor - 1).abs() < 1e-6).all()) else scale)

    plates = {**program.plates, plate: replace(seen, full_size=seen.size)}
    return replace(program, sites={n: undone(s) for n, s in program.sites.items()}, plates=plates)


def signature(site: Site) -> Mapping[str, Any]:
    """What the rows of a site's arguments are made of: equal signatures have the same statistics by row."""
    return {
        n: (a.value.dims, tuple((k.parameter, k.index, k.slope, k.offset) for k in a.links), _constant(a))
        for n, a in site.arguments.items()
    }


def _constant(argument: Argument) -> Tensor | None:
    """The part of an argument that no parameter feeds."""
    if argument.links:
        known = torch.stack([k.index >= 0 for k in argument.links]).any(0)
        return torch.where(known, 0.0, argument.value.tensor.detach().double())
    return None if argument.sources else argument.value.tensor.detach()


def same(a: Any, b: Any) -> bool:
    """Whether two signatures are equal, tensors by value."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.equal(a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) if not isinstance(a, Tensor) and not isinstance(b, Tensor) else False
