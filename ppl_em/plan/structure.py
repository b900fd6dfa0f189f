"""Structure of a program: connected blocks of summed latents, their scales, which elements are alive."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch

from ppl_em.errors import PlanError, message
from ppl_em.ir import Factor, Program, Site
from ppl_em.ir.block import Block


def find_blocks(program: Program, guided: Collection[str] = ()) -> tuple[list[Block], list[Site]]:
    """Connected blocks of discrete latents, and the sites that touch none.

    Args:
        program: the program.
        guided: discrete latents that a guide infers: they are not summed here.

    Raises:
        PlanError: the sites of one block have different scales.
    """
    summed = [z for z in program.summed if z not in guided]
    root = {z: z for z in summed}

    def find(z: str) -> str:
        while root[z] != z:
            root[z] = root[root[z]]
            z = root[z]
        return z

    scopes = {n: [z for z in s.scope if z not in guided] for n, s in program.sites.items()}
    for scope in scopes.values():
        for a, b in zip(scope, scope[1:], strict=False):
            root[find(a)] = find(b)
    members: dict[str, list[str]] = {}
    for z in summed:
        members.setdefault(find(z), []).append(z)
    touching: dict[str, list[Site]] = {}
    plain: list[Site] = []
    for site in program.sites.values():
        if scopes[site.name]:
            touching.setdefault(find(scopes[site.name][0]), []).append(site)
        else:
            plain.append(site)
    blocks = [_block(program, names, touching.get(key, [])) for key, names in members.items()]
    return blocks, plain


def _block(program: Program, names: list[str], sites: list[Site]) -> Block:
    latents = tuple(program.latents[z] for z in names)
    shared = [p for p in latents[0].plates if all(p in z.plates for z in latents)]
    every = program.sizes()
    involved = {*names, *(p for s in sites for p in s.plates), *(p for z in latents for p in z.plates)}
    sizes = {d: n for d, n in every.items() if d in involved}
    scale = _common_scale(sites, tuple(shared))
    return Block(latents, tuple(sites), tuple(shared), sizes, scale, alive=_alive(program, names, sites))


def _common_scale(sites: Iterable[Site], shared: tuple[str, ...]) -> Factor | None:
    sites = list(sites)
    one = Factor(torch.ones(()), ())
    first = sites[0].scale or one
    for site in sites:
        scale = site.scale or one
        dims = tuple(dict.fromkeys((*first.dims, *scale.dims)))
        a, b = torch.broadcast_tensors(first.align(dims).double(), scale.align(dims).double())
        if not torch.equal(a, b):
            raise PlanError(
                message(
                    f"sites '{sites[0].name}' and '{site.name}' share latents but have different scales",
                    site=site.name,
                    value=f"{float(a.reshape(-1)[0]):g} and {float(b.reshape(-1)[0]):g}",
                    why="one scale multiplies the log-evidence of a connected group of sites",
                    hint="poutine.scale around all of these sites",
                )
            )
    if not set(first.dims) <= set(shared):
        raise PlanError(
            message(
                "a scale varies along a plate that its latents do not live in",
                site=sites[0].name,
                value=first.dims,
                hint="one scale for the whole group",
            )
        )
    return None if first.tensor.numel() == 1 and float(first.tensor) == 1.0 else first


def _alive(program: Program, names: list[str], sites: list[Site]) -> dict[str, Factor]:
    """Elements of each latent with an unmasked observation among their descendants (absent: all elements)."""
    alive: dict[str, Factor | bool] = {z: False for z in names}
    for site in reversed(sites):
        reach: Factor | bool = True if site.mask is None else site.mask
        if site.role == "latent" and site.name in alive:
            reach = alive[site.name]
        for z in site.scope:
            if z not in alive or (site.role == "latent" and z == site.name):
                continue
            alive[z] = _either(alive[z], _onto(reach, program.latents[z].plates))
    masks = {z: m for z, v in alive.items() if isinstance(m := v, Factor) and not bool(m.tensor.all())}
    masks.update({z: Factor(torch.tensor(False), ()) for z, v in alive.items() if v is False})
    for z in names:  # the part of a partly observed site that is not observed does not count where it is
        partner = z.removesuffix("_unobserved") + "_observed"
        seen = program.sites.get(partner)
        if z.endswith("_unobserved") and seen is not None and seen.mask is not None:
            hidden = seen.mask.map(torch.logical_not)
            masks[z] = hidden * masks[z] if z in masks else hidden
    return masks


def _onto(mask: Factor | bool, plates: tuple[str, ...]) -> Factor | bool:
    if isinstance(mask, bool):
        return mask
    return mask.reduce([d for d in mask.dims if d not in plates], lambda t, dims: torch.amax(t, dims))


def _either(a: Factor | bool, b: Factor | bool) -> Factor | bool:
    if a is True or b is True:
        return True
    if a is False:
        return b
    if b is False:
        return a
    assert isinstance(a, Factor) and isinstance(b, Factor)
    dims = a.dims + tuple(d for d in b.dims if d not in a.dims)
    return Factor(a.align(dims) | b.align(dims), dims)
