"""The intermediate representation held against its own rules, after tracing and after stacking.

A pass that breaks one of these rules has a fault of its own: the message names the rule and the site, for whoever
works on that pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from ppl_em.errors import PplEmError
from ppl_em.ir.block import Block
from ppl_em.ir.factor import Factor
from ppl_em.ir.graph import Argument, Link, Parameter, Program, Site


class MalformedProgram(PplEmError, AssertionError):
    """A traced or stacked program breaks a rule of the representation."""


def verify_program(program: Program) -> Program:
    """Return a program that keeps all rules.

    Raises:
        MalformedProgram: with the rules that are broken.
    """
    sizes = program.sizes()
    faults = [*_names(program), *_latents(program)]
    for site in program.sites.values():
        faults += _site(site, sizes, program)
        faults += [f"site '{site.name}': scope names '{z}', no latent" for z in site.scope if z not in program.latents]
    _raise(faults)
    return program


def verify_block(block: Block, program: Program) -> Block:
    """Return a block, stacked or not, that keeps all rules.

    Raises:
        MalformedProgram: with the rules that are broken.
    """
    faults: list[str] = []
    stacked = block.axis is not None or block.slices is not None
    names = set(block.sizes) - set(block.plates) if stacked else set(block.names)
    for site in block.sites:
        faults += _site(site, block.site_sizes(site), program)
        faults += [f"site '{site.name}': scope leaves the block at '{z}'" for z in site.scope if z not in names]
        outside = block.slices is not None and set(site.scope) <= set(block.slices.outer)
        if stacked and not outside:
            times = block.times.get(site.name)
            # Steps that were run at once are one member.
            at_once = block.axis is not None and block.axis.family is not None
            if times is None or (len(times) not in (len(site.members), 1) and not at_once):
                faults.append(f"site '{site.name}': {len(site.members)} members but times {times}")
    for latent in block.latents:
        faults += [
            f"'{latent.name}' does not live in the shared plate '{p}'" for p in block.plates if p not in latent.plates
        ]
    if block.scale is not None and not set(block.scale.dims) <= set(block.plates):
        faults.append(f"the scale varies along {block.scale.dims}, the block's plates are {block.plates}")
    _raise(faults)
    return block


def _raise(faults: list[str]) -> None:
    if faults:
        raise MalformedProgram("; ".join(faults))


def _names(program: Program) -> Iterator[str]:
    for kind in ("sites", "latents", "plates", "parameters"):
        for name, value in getattr(program, kind).items():
            if value.name != name:
                yield f"{kind}: '{name}' is called '{value.name}'"
    for name in set(program.latents) & set(program.plates):
        yield f"'{name}' is a latent and a plate"
    if program.data_plate is not None and program.data_plate not in program.plates:
        yield f"the data plate '{program.data_plate}' does not exist"


def _latents(program: Program) -> Iterator[str]:
    order = list(program.latents)
    for i, (name, latent) in enumerate(program.latents.items()):
        if latent.kind == "discrete" and name not in program.refused:
            if latent.support is None or latent.support.shape[0] < 1:
                yield f"latent '{name}': no support"
            elif tuple(latent.support.shape[1:]) != tuple(latent.event_shape):
                yield f"latent '{name}': support {tuple(latent.support.shape)} for events {latent.event_shape}"
            if name not in program.sites:
                yield f"latent '{name}': no site of its own"
        for parent in latent.parents:
            if parent not in order[:i]:
                yield f"latent '{name}': its parent '{parent}' does not come before it"
        for plate in latent.plates:
            if plate not in program.plates:
                yield f"latent '{name}': plate '{plate}' does not exist"


def _site(site: Site, sizes: Mapping[str, int], program: Program) -> Iterator[str]:
    points = {n for n, p in program.parameters.items() if p.origin == "site"}
    points |= {n for n, z in program.latents.items() if z.kind == "continuous" or n in program.refused}
    here = f"site '{site.name}'"
    for dim in site.dims:
        if dim not in sizes:
            yield f"{here}: dimension '{dim}' has no size"
    if not set(site.scope) | set(site.plates) <= set(site.dims):
        yield f"{here}: scope {site.scope} or plates {site.plates} are missing in {site.dims}"
    factors = {"value": site.value, **{n: a.value for n, a in site.arguments.items()}}
    factors |= {"mask": site.mask} if site.mask is not None else {}
    factors |= {"scale": site.scale} if site.scale is not None else {}
    for what, factor in factors.items():
        yield from _factor(f"{here}, {what}", factor, site, sizes)
    if site.mask is not None and site.mask.tensor.dtype != torch.bool:
        yield f"{here}: the mask is {site.mask.tensor.dtype}, not bool"
    for name, argument in site.arguments.items():
        yield from _links(f"{here}, argument '{name}'", argument, program.parameters)
    if site.lowered and (site.family is None or any(a.opaque for a in site.arguments.values())):
        yield f"{here}: lowered, but not made of links alone"
    for name in site.parameters - set(program.parameters) - points:
        yield f"{here}: parameter '{name}' does not exist"
    if site.point is not None and site.point not in points:
        yield f"{here}: scores the value of '{site.point}', which is neither a point estimate nor given by a guide"


def _factor(where: str, factor: Factor, site: Site, sizes: Mapping[str, int]) -> Iterator[str]:
    for dim, size in factor.sizes.items():
        if dim in sizes:
            if size not in (1, sizes[dim]):
                yield f"{where}: '{dim}' has size {size}, not {sizes[dim]}"
            if dim not in site.dims:
                yield f"{where}: '{dim}' is none of the site's dimensions {site.dims}"
        elif dim not in site.inner:
            yield f"{where}: '{dim}' is neither a named dimension nor inside the event"


def _image_size(link: Link, parameter: Parameter) -> int:
    """Number of elements of the argument that a link's transform makes of a parameter."""
    return max(1, math.prod(link.transform.image_shape(parameter.init.shape)))


def _links(where: str, argument: Argument, parameters: Mapping[str, Parameter]) -> Iterator[str]:
    for link in argument.links:
        if link.parameter not in parameters:
            yield f"{where}: links to '{link.parameter}', which does not exist"
            continue
        if link.index.shape != argument.value.tensor.shape:
            yield f"{where}: index {tuple(link.index.shape)}, value {tuple(argument.value.tensor.shape)}"
        elif link.index.numel() and int(link.index.max()) >= _image_size(link, parameters[link.parameter]):
            yield f"{where}: index beyond the elements of '{link.parameter}'"
        for part in (link.slope, link.offset):
            if part is not None and part.shape != link.index.shape:
                yield f"{where}: slope or offset {tuple(part.shape)}, index {tuple(link.index.shape)}"
        if (link.slope is None) != (link.offset is None):
            yield f"{where}: slope without offset"
