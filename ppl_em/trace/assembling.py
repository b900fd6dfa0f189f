"""From the records of an enumerated run to sites, plates and latents with names."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from ppl_em.errors import PlanError, message
from ppl_em.ir import Factor, Latent, Parameter, Plate, Program, Site
from ppl_em.trace.domains import infer_domains
from ppl_em.trace.enumeration import Enumeration, site_log_factor
from ppl_em.trace.footprint import isolated
from ppl_em.trace.gradient_witness import fed_by_derivative
from ppl_em.trace.layout import Layout
from ppl_em.trace.missing import alike
from ppl_em.trace.observe import fill_masked
from ppl_em.trace.probing import link_arguments
from ppl_em.trace.record import Record
from ppl_em.trace.scoring import scored
from ppl_em.trace.sites import build_site
from ppl_em.trace.survey import Survey
from ppl_em.trace.thinning import Thinning
from ppl_em.trace.time_witness import name_axes


class Coupled(PlanError):
    """A site outside a plate depends on a latent inside it.

    Args:
        text: the message.
        latents: batch dimensions (counted from the right) to be folded, by latent.
    """

    def __init__(self, text: str, latents: Mapping[str, int]) -> None:
        super().__init__(text)
        self.latents = dict(latents)


@dataclass(frozen=True)
class Assembled:
    """A program, and what its witnesses need.

    Args:
        program: the program, its evidence not yet gathered.
        table: log-factor of each site at the initial parameters.
        thinning: which elements of large plates the table holds.
    """

    program: Program
    table: Mapping[str, Factor]
    thinning: Thinning


def assemble(
    survey: Survey, latents: Mapping[str, Latent], parameters: Mapping[str, Parameter], enumeration: Enumeration
) -> Assembled:
    """Run the enumerated program at its initial parameters and name everything.

    Args:
        survey: sites with their provenance.
        latents: all latents.
        parameters: everything that is estimated.
        enumeration: runs the program.

    Raises:
        PlanError: the set of sites changes between runs.
        Coupled: a latent's plate does not enclose a site that depends on it.
    """
    layout, scopes, summed = enumeration.layout, enumeration.scopes, enumeration.summed
    given = enumeration.points + tuple(enumeration.local)  # latents whose values are handed in, not summed
    sources = frozenset(f"param:{n}" for n in parameters) | frozenset(f"latent:{n}" for n in given)
    start = {n: p.init for n, p in parameters.items()}
    records = {n: fill_masked(r) for n, r in enumeration.run(start).items()}
    if set(records) != set(survey.records):
        changed = sorted(set(records) ^ set(survey.records))
        raise PlanError(message("the set of sites changes between runs", value=changed, hint="a fixed set of sites"))
    plates = name_plates(survey.records, layout)
    thinning = Thinning(plates, [tuple(f.name for f in r.frames if f.dim is not None) for r in records.values()])
    thinned = {n: scored(r, thinning.record(r), layout) for n, r in records.items()}
    sites = {
        n: build_site(r, survey.records[n], scopes[n], layout, plates, sources, summed, given, thinned[n].log_prob())
        for n, r in records.items()
    }
    sites = alike(sites)
    named = dict(latents)
    for name, latent in summed.items():
        extra = tuple(b for (z, _), b in layout.batches.items() if z == name)
        parents = tuple(z for z in sites[name].scope if z != name)
        named[name] = replace(
            latent, plates=latent.plates + extra, parents=parents, by_path=name in enumeration.by_path
        )
    for site in sites.values():
        _require_enclosed(site, named, plates, survey.records)
    table = {n: site_log_factor(thinned[n], thinning.site(s), layout, scopes[n]) for n, s in sites.items()}
    sites = fed_by_derivative(sites, parameters, enumeration)
    parameters, notes = infer_domains(sites, parameters, enumeration)
    sites = link_arguments(sites, parameters, enumeration, table, thinning)
    names = tuple(sites)

    def evaluate(values: Mapping[str, Tensor], wanted: tuple[str, ...] = names) -> dict[str, Factor]:
        with isolated(enumeration.source.seed), warnings.catch_warnings():
            return enumeration.log_factors(values, {n: sites[n] for n in wanted}, scopes)

    program = Program(
        sites,
        named,
        plates,
        parameters,
        evaluate,
        notes=notes,
        data_plate=_data_plate(survey.records, sites, plates),
        axes=name_axes(survey.first.axes, survey.first.records),
        runner=enumeration,
    )
    return Assembled(program, table, thinning)


def name_plates(records: Mapping[str, Record], layout: Layout) -> dict[str, Plate]:
    """All plates by name, undeclared batch dimensions among them."""
    plates: dict[str, Plate] = {}
    data = {f.name for r in records.values() if r.role in ("observed", "factor") for f in r.frames}
    for record in records.values():
        for frame in record.frames:
            if frame.dim is not None:
                full = frame.full_size
                plates[frame.name] = Plate(frame.name, frame.size, full, data=frame.name in data, dim=frame.dim)
    for (latent, position), name in layout.batches.items():
        size = records[latent].fn.batch_shape[position]
        plates[name] = Plate(name, size, size, declared=False, data=True, dim=position)
    return plates


def _require_enclosed(
    site: Site, latents: Mapping[str, Latent], plates: Mapping[str, Plate], records: Mapping[str, Record]
) -> None:
    """A site must live in all plates of the latents that it depends on: else it depends on several elements of one."""
    beyond: dict[str, int] = {}
    for z in site.scope:
        outside = [p for p in latents[z].plates if p not in site.plates and plates[p].size > 1]
        if outside:
            rank = len(records[z].fn.batch_shape)
            dims = [plates[p].dim for p in outside]
            frames = {f.name: f.dim for f in records[z].frames}
            dims = [frames.get(p) or plates[p].dim for p in outside]
            beyond[z] = min(rank, max(-d for d in dims))
    if beyond:
        z = next(iter(beyond))
        raise Coupled(
            message(
                f"the site depends on several elements of '{z}' at once",
                site=site.name,
                why=f"'{z}' lives in plates that do not enclose it ({', '.join(latents[z].plates)})",
                hint='fewer elements in this plate, so that their joint values can be enumerated, or method="svi"',
            ),
            beyond,
        )


def _data_plate(records: Mapping[str, Record], sites: Mapping[str, Site], plates: Mapping[str, Plate]) -> str | None:
    """The outermost plate that all observed sites share."""
    observed = [n for n, s in sites.items() if s.role != "latent"]
    if not observed:
        return None
    for frame in records[observed[0]].frames:  # outermost first
        if frame.dim is not None and all(frame.name in sites[n].plates for n in observed):
            return frame.name
    undeclared = sorted((p.dim, p.name) for p in plates.values() if not p.declared)
    return next((n for _, n in undeclared if all(n in sites[o].plates for o in observed)), None)


def random_sources(records: Collection[Record]) -> tuple[str, ...]:
    """Why nothing about a program can be called exact: randomness outside its sample statements."""
    found = []
    for record in records:
        marks = record.marks | record.control
        if random := sorted({m[7:] for m in marks if m.startswith("random:")}):
            found.append(
                f"site '{record.name}' depends on random numbers drawn outside sample statements ({', '.join(random)})"
            )
    return tuple(found)
