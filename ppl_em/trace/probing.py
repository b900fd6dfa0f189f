"""Probing a program at random parameter values to find which arguments are elements of which parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.distributions import transform_to

from ppl_em.ir import Argument, Factor, Link, Parameter, Site
from ppl_em.ir.design import Design
from ppl_em.ir.transform import Transform
from ppl_em.trace.affine import affine_link, make_design
from ppl_em.trace.enumeration import Enumeration
from ppl_em.trace.layout import Layout
from ppl_em.trace.links import NORMALISED, Probe, directional_derivatives, find_links
from ppl_em.trace.run import Record

Key = tuple[str, str]


def random_parameters(parameters: Mapping[str, Parameter], generator: torch.Generator) -> dict[str, Tensor]:
    """A random valid value for each parameter, in constrained space."""
    values = {}
    for name, parameter in parameters.items():
        transform = transform_to(parameter.constraint)
        try:
            free = transform.inv(parameter.init)
        except (NotImplementedError, ValueError):
            free = parameter.init
        noise = torch.randn(free.shape, generator=generator, dtype=torch.float64).to(free)
        values[name] = transform(0.7 * noise).detach()
    return values


def link_arguments(
    sites: dict[str, Site],
    parameters: Mapping[str, Parameter],
    enumeration: Enumeration,
    layout: Layout,
    scopes: Mapping[str, tuple[str, ...]],
    expected: Mapping[str, Factor],
) -> dict[str, Site]:
    """Attach links to the arguments of all sites, and mark the sites that need no run to be evaluated.

    Args:
        sites: sites with their arguments' sources.
        parameters: everything that is estimated.
        enumeration: runs the program.
        expected: each site's log-factor in a run at the initial parameters.
    """
    keys = [
        (n, a)
        for n, s in sites.items()
        for a, argument in s.arguments.items()
        if argument.sources and argument.sources <= set(parameters)
    ]
    links: dict[Key, tuple[Link, ...]] = {}
    affine: dict[Key, Transform] = {}
    if keys:
        generator = torch.Generator().manual_seed(20261)
        saved = {n: p.module_tensor.detach().clone() for n, p in parameters.items() if p.module_tensor is not None}
        try:
            first, second = (
                _probe(keys, sites, parameters, enumeration, layout, scopes, generator) for _ in range(2)
            )
        finally:
            for name, value in saved.items():
                parameters[name].module_tensor.data.copy_(value)  # type: ignore[union-attr]
        for key in keys:
            if key in first and key in second and first[key].value.shape == second[key].value.shape:
                site = sites[key[0]]
                normalised = site.family is not None and site.family.__name__ in NORMALISED
                sources = sorted(site.arguments[key[1]].sources)
                links[key] = find_links(first[key], second[key], sources, normalised)
                if not links[key] and not normalised:
                    link = affine_link(first[key], second[key], sources)
                    if link is not None:
                        affine[key] = link
    designs = _designs(affine, sites, parameters, enumeration, layout, scopes) if affine else {}
    start = {**enumeration.local, **{n: p.init for n, p in parameters.items()}}
    return {name: _finish(site, links, designs, start, expected[name]) for name, site in sites.items()}


def _probe(
    keys: list[Key],
    sites: Mapping[str, Site],
    parameters: Mapping[str, Parameter],
    enumeration: Enumeration,
    layout: Layout,
    scopes: Mapping[str, tuple[str, ...]],
    generator: torch.Generator,
) -> dict[Key, Probe]:
    values = random_parameters(parameters, generator)
    leaves = {}
    for name, parameter in parameters.items():
        if parameter.module_tensor is not None:
            parameter.module_tensor.data.copy_(values[name])
            leaves[name] = parameter.module_tensor
        else:
            leaves[name] = values[name].clone().requires_grad_(True)
    with torch.enable_grad():
        records = enumeration.run(leaves)
        named = {k: _named(records[k[0]], k[1], layout, scopes[k[0]]) for k in keys if k[0] in records}
        named = {k: f for k, f in named.items() if f is not None and f.dims == sites[k[0]].arguments[k[1]].value.dims}
        outputs = [f.tensor for f in named.values()]
        tangents: dict[str, list[list[Tensor]]] = {}
        directions: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        same = torch.Generator().manual_seed(7)  # every probe is differentiated along the same directions
        for name, leaf in leaves.items():
            r, s = (torch.randn(leaf.shape, generator=same, dtype=torch.float64).to(leaf) for _ in range(2))
            directions[name] = (torch.ones_like(leaf).detach(), r, s)
            tangents[name] = directional_derivatives(outputs, leaf, directions[name])
    probes = {}
    for i, key in enumerate(named):
        mine = {n: (t[0][i], t[1][i], t[2][i]) for n, t in tangents.items()}
        detached = {n: leaf.detach().clone() for n, leaf in leaves.items()}
        probes[key] = Probe(outputs[i].detach(), detached, mine, directions)
    return probes


def _named(record: Record, argument: str, layout: Layout, scope: tuple[str, ...]) -> Factor | None:
    peeled = record.peeled
    if peeled is None or argument not in peeled.arguments:
        return None
    return layout.name_dims(record, peeled.arguments[argument], peeled.event_dims[argument], peeled.inner, scope)


def _designs(
    affine: Mapping[Key, Transform],
    sites: Mapping[str, Site],
    parameters: Mapping[str, Parameter],
    enumeration: Enumeration,
    layout: Layout,
    scopes: Mapping[str, tuple[str, ...]],
) -> dict[Key, Design]:
    """Design matrices of the arguments that are linear predictors."""
    leaves = {}
    for name, parameter in parameters.items():
        tensor = parameter.module_tensor
        leaves[name] = tensor if tensor is not None else parameter.init.clone().requires_grad_(True)
    designs = {}
    with torch.enable_grad():
        records = enumeration.run(leaves)
        for key, transform in affine.items():
            argument = sites[key[0]].arguments[key[1]]
            named = _named(records[key[0]], key[1], layout, scopes[key[0]])
            if named is None or named.dims != argument.value.dims:
                continue
            design = make_design(named, leaves, sorted(argument.sources), transform, set(layout.register))
            if design is not None:
                designs[key] = design
    return designs


def _finish(
    site: Site,
    links: Mapping[Key, tuple[Link, ...]],
    designs: Mapping[Key, Design],
    start: Mapping[str, Tensor],
    expected: Factor,
) -> Site:
    arguments: dict[str, Argument] = {}
    for name, argument in site.arguments.items():
        found = links.get((site.name, name), ())
        arguments[name] = replace(argument, links=found, design=designs.get((site.name, name)))
    # A parameter that reaches the site other than through its arguments (mask, scale, observed value) makes it opaque.
    through = frozenset().union(*(a.sources for a in arguments.values())) | ({site.point} if site.point else set())
    lowered = (
        site.family is not None
        and bool(arguments)
        and not any(a.opaque for a in arguments.values())
        and site.parameters <= through
        and site.role in ("latent", "observed")
    )
    linked = replace(site, arguments=arguments)
    return replace(linked, lowered=lowered and _scores_as_run(linked, start, expected))


def _scores_as_run(site: Site, start: Mapping[str, Tensor], expected: Factor) -> bool:
    """The density rebuilt from links alone equals the one of the run."""
    try:
        mine = site.log_factor(start)
    except (TypeError, ValueError, RuntimeError, NotImplementedError):
        return False
    if not set(mine.dims) <= set(site.dims):
        return False
    a, b = torch.broadcast_tensors(mine.align(site.dims), expected.align(site.dims))
    tolerance = 1e-9 if a.dtype == torch.float64 else 1e-4
    return bool(((a == b) | ((a - b).abs() <= tolerance * (1 + b.abs()))).all())
