"""Probing a program at random parameter values to find which arguments are elements of which parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from ppl_em.distributions.structured import is_structured
from ppl_em.ir import Argument, Factor, Link, Parameter, Site
from ppl_em.ir.design import Design
from ppl_em.ir.transform import Transform
from ppl_em.trace.affine import affine_link, make_design
from ppl_em.trace.enumeration import Enumeration
from ppl_em.trace.like_rows import LikeRows, like_rows
from ppl_em.trace.links import Probe, Tangents, TangentsOf, find_links, normalises
from ppl_em.trace.record import Record
from ppl_em.trace.thinning import Thinning

Key = tuple[str, str]

#: Arguments of up to this many elements are grouped by their values.
SMALL = 100_000


def random_parameters(parameters: Mapping[str, Parameter], generator: torch.Generator) -> dict[str, Tensor]:
    """A random valid value for each parameter, in constrained space."""
    values = {}
    for name, parameter in parameters.items():
        near = getattr(parameter.constraint, "near", None)
        if near is not None:
            noise = torch.randn(parameter.init.shape, generator=generator, dtype=torch.float64)
            values[name] = near(noise.to(parameter.init)).detach()
            continue
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
    expected: Mapping[str, Factor],
    thinning: Thinning,
) -> dict[str, Site]:
    """Attach links to the arguments of all sites, and mark the sites that need no run to be evaluated.

    Args:
        sites: sites with their arguments' sources.
        parameters: everything that is estimated.
        enumeration: runs the program.
        expected: each site's log-factor in a run at the initial parameters.
        thinning: which elements of large plates ``expected`` holds.
    """
    links, designs = find_all_links(sites, parameters, enumeration)
    start = {**enumeration.local, **{n: p.init for n, p in parameters.items()}}
    known: dict[Any, bool] = {}
    return {
        name: _finish(thinning, site, links, designs, _control(enumeration, site), start, expected[name], known)
        for name, site in sites.items()
    }


def find_all_links(
    sites: Mapping[str, Site], parameters: Mapping[str, Parameter], enumeration: Enumeration
) -> tuple[dict[Key, tuple[Link, ...]], dict[Key, Design]]:
    """Links and linear predictors of all arguments that parameters feed, by site and argument."""
    keys = [
        (n, a)
        for n, s in sites.items()
        for a, argument in s.arguments.items()
        if argument.sources and argument.sources <= set(parameters)
    ]
    if not keys:
        return {}, {}
    generator = torch.Generator().manual_seed(20261)
    saved = {n: p.module_tensor.detach().clone() for n, p in parameters.items() if p.module_tensor is not None}
    links: dict[Key, tuple[Link, ...]] = {}
    affine: dict[Key, Transform] = {}
    try:
        runs = [ProbeRun(keys, sites, parameters, enumeration, generator) for _ in range(2)]
    finally:
        for name, value in saved.items():
            parameters[name].module_tensor.data.copy_(value)  # type: ignore[union-attr]
    for group in _alike(keys, sites, runs, parameters):
        head = group[0]
        first, second = (run.probe(head) for run in runs)
        site = sites[head[0]]
        normalised = site.family is not None and normalises(site.family, head[1])
        sources = sorted(site.arguments[head[1]].sources)
        tables = site.family is not None and is_structured(site.family)
        found = find_links(first, second, sources, normalised, tables)
        link = None if found or tables else affine_link(first, second, sources, normalised)
        rows = runs[0].like.get(head)
        if rows is not None:
            found = tuple(rows.spread(k) for k in found)
        for key in group:
            links[key] = found
            if link is not None:
                affine[key] = link
    return links, _designs(affine, sites, parameters, enumeration) if affine else {}


def _too_many_values(site: Site, argument: str, values: Sequence[Tensor], parameters: Mapping[str, Parameter]) -> bool:
    """Whether a table has more different elements than its sources: then it is no gather, and needs no derivatives."""
    if site.family is None or not is_structured(site.family):
        return False
    elements = sum(parameters[n].init.numel() for n in site.arguments[argument].sources)
    moved = values[0].detach()[values[0] != values[1]]
    return moved.numel() > elements and moved.unique().numel() > elements


def _alike(
    keys: Sequence[Key], sites: Mapping[str, Site], runs: Sequence[ProbeRun], parameters: Mapping[str, Parameter]
) -> list[list[Key]]:
    """Arguments grouped by what they are at both random settings: like ones have the same links."""
    groups: dict[Any, list[Key]] = {}
    for key in keys:
        values = [run.outputs.get(key) for run in runs]
        if any(v is None for v in values) or values[0].shape != values[1].shape:  # type: ignore[union-attr]
            continue
        if _too_many_values(sites[key[0]], key[1], values, parameters):  # type: ignore[arg-type]
            continue
        site = sites[key[0]]
        kind: tuple[Any, ...] = (site.family, key[1], site.arguments[key[1]].sources, tuple(values[0].shape))  # type: ignore[union-attr]
        if values[0].numel() <= SMALL:  # type: ignore[union-attr]
            kind += tuple(v.detach().cpu().numpy().tobytes() for v in values if v is not None)
            kind += (values[0].requires_grad,)  # type: ignore[union-attr]
        else:
            kind += (key,)
            dims = site.arguments[key[1]].value.dims
            runs[0].like[key] = runs[1].like[key] = like_rows(values, dims, site.plates)  # type: ignore[arg-type]
        groups.setdefault(kind, []).append(key)
    heads = [group[0] for group in groups.values()]
    for run in runs:
        run.differentiate(heads)
    return list(groups.values())


class ProbeRun:
    """The program run at random parameter values, its distributions' arguments differentiated.

    Args:
        keys: the arguments that matter.
        sites, parameters, enumeration: the program.
        generator: of the values.

    Attributes:
        outputs: compact value of each argument, where it has the dimensions that it had before.
    """

    def __init__(
        self,
        keys: Sequence[Key],
        sites: Mapping[str, Site],
        parameters: Mapping[str, Parameter],
        enumeration: Enumeration,
        generator: torch.Generator,
    ) -> None:
        values = random_parameters(parameters, generator)
        self.leaves: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            if parameter.module_tensor is not None:
                parameter.module_tensor.data.copy_(values[name])
                self.leaves[name] = parameter.module_tensor
            else:
                self.leaves[name] = values[name].clone().requires_grad_(True)
        self.values = {n: leaf.detach().clone() for n, leaf in self.leaves.items()}
        self.outputs: dict[Key, Tensor] = {}
        self.like: dict[Key, LikeRows | None] = {}
        with torch.enable_grad():
            records = enumeration.run(self.leaves)
            for key in keys:
                named = _named(records, key, enumeration)
                if named is not None and named.dims == sites[key[0]].arguments[key[1]].value.dims:
                    self.outputs[key] = named.tensor
        same = torch.Generator().manual_seed(7)  # every run is differentiated along the same directions
        self.directions: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        for name, leaf in self.leaves.items():
            r, s = (torch.randn(leaf.shape, generator=same, dtype=torch.float64).to(leaf) for _ in range(2))
            self.directions[name] = (torch.ones_like(leaf).detach(), r, s)
        self.tangents: dict[str, Tangents] = {}
        self.place: dict[Key, int] = {}

    def differentiate(self, keys: Sequence[Key]) -> None:
        """Directional derivatives of some arguments with respect to every parameter."""
        self.place = {key: i for i, key in enumerate(keys)}
        with torch.enable_grad():
            outputs = [self._rows(key) for key in keys]
        for name, leaf in self.leaves.items():
            self.tangents[name] = Tangents(outputs, leaf, self.directions[name])

    def probe(self, key: Key) -> Probe:
        """One argument with its derivatives."""
        i = self.place[key]
        mine = {n: TangentsOf(t, i) for n, t in self.tangents.items()}
        return Probe(self._rows(key).detach(), self.values, mine, self.directions)

    def _rows(self, key: Key) -> Tensor:
        """The argument, or one of its rows of each kind where many are alike."""
        rows = self.like.get(key)
        return self.outputs[key] if rows is None else rows.take(self.outputs[key])


def _named(records: Mapping[str, Record], key: Key, enumeration: Enumeration) -> Factor | None:
    record = records.get(key[0])
    peeled = None if record is None else record.peeled
    if record is None or peeled is None or key[1] not in peeled.arguments:
        return None
    event_dim = peeled.event_dims[key[1]]
    return enumeration.layout.name_dims(
        record, peeled.arguments[key[1]], event_dim, peeled.inner, enumeration.scopes[key[0]]
    )


def _designs(
    affine: Mapping[Key, Transform],
    sites: Mapping[str, Site],
    parameters: Mapping[str, Parameter],
    enumeration: Enumeration,
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
            named = _named(records, key, enumeration)
            if named is None or named.dims != argument.value.dims:
                continue
            design = make_design(named, leaves, sorted(argument.sources), transform, set(enumeration.layout.register))
            if design is not None:
                designs[key] = design
    return designs


def _finish(
    thinning: Thinning,
    site: Site,
    links: Mapping[Key, tuple[Link, ...]],
    designs: Mapping[Key, Design],
    control: frozenset[str],
    start: Mapping[str, Tensor],
    expected: Factor,
    known: dict[Any, bool],
) -> Site:
    arguments: dict[str, Argument] = {}
    for name, argument in site.arguments.items():
        key = (site.name, name)
        arguments[name] = _explained(argument, links.get(key, ()), designs.get(key), control)
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
    if not lowered:
        return linked
    form = _form(linked)
    if form not in known:
        known[form] = _scores_as_run(thinning.site(linked), start, expected)
    return replace(linked, lowered=known[form])


def _control(enumeration: Enumeration, site: Site) -> frozenset[str]:
    """Parameters whose values had reached Python before the site."""
    record = enumeration.seen.get(site.name)
    if record is None:
        return site.parameters
    return frozenset(m.removeprefix("param:") for m in record.control if m.startswith("param:"))


def _explained(argument: Argument, links: tuple[Link, ...], design: Design | None, control: frozenset[str]) -> Argument:
    """The argument with what was found; then it depends on nothing else (``x.type_as(y)`` carries y's marks, say).

    Parameters that have reached Python stay sources: what they control shows at some values only.
    """
    known = {k.parameter for k in links} | set(design.parameters if design else ())
    sources = argument.sources & (known | control) if known else argument.sources
    return replace(argument, links=links, design=design, sources=sources)


def _form(site: Site) -> Any:
    """Everything that decides how a site's density is put together: shapes, names up to renaming, links."""
    order = {d: i for i, d in enumerate((*site.dims, *site.inner))}

    def shape(factor: Factor | None) -> Any:
        return None if factor is None else (tuple(order.get(d, d) for d in factor.dims), tuple(factor.tensor.shape))

    arguments = tuple(
        (n, shape(a.value), tuple(id(link) for link in a.links), id(a.design) if a.design else None)
        for n, a in site.arguments.items()
    )
    options = tuple(sorted((k, repr(v)) for k, v in site.options.items()))
    inside = _own_values_differ(site)
    return (
        site.family,
        site.role,
        arguments,
        shape(site.value),
        shape(site.mask),
        len(site.scope),
        options,
        site.point,
        inside,
    )


def _own_values_differ(site: Site) -> str | None:
    """Sites whose constant arguments or support may hide a special case are checked one by one."""
    return site.name if "total_count" in site.arguments else None


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
