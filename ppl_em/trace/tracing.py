"""From a Pyro program to a frozen :class:`~ppl_em.ir.Program`, in a fixed small number of runs."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_em.errors import ModelError, PlanError, message
from ppl_em.ir import Factor, Latent, Parameter, Plate, Program, Site
from ppl_em.trace.classify import classify
from ppl_em.trace.enumeration import Enumeration, site_log_factor
from ppl_em.trace.footprint import isolated
from ppl_em.trace.layout import Layout, allocate
from ppl_em.trace.observe import check_observations, fill_masked
from ppl_em.trace.probing import link_arguments
from ppl_em.trace.run import Record, Run, run_program
from ppl_em.trace.sites import build_site
from ppl_em.trace.unregistered import warn_unregistered
from ppl_em.trace.witness import replay


@dataclass(frozen=True)
class Source:
    """A program and what it is called with.

    Args:
        model, args, kwargs: the callable and its arguments.
        seed: random state of every run.
        batch: the arguments are one batch of a loader; subsample sizes that plates declare are kept.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    seed: int = 0
    batch: bool = False


def trace_program(
    source: Source,
    *,
    values: Mapping[str, Tensor] | None = None,
    freeze: tuple[str, ...] = (),
    max_elements: float = 2e8,
    witness: bool = True,
    variational: frozenset[str] = frozenset(),
    coupled: Mapping[str, tuple[str, ...]] | None = None,
) -> Program:
    """Trace a program.

    Args:
        source: the program.
        values: constrained values of parameters that replace the program's initial ones.
        freeze: names of parameters and globals that are held fixed.
        max_elements: largest enumerated log-factor that may be allocated, in elements.
        witness: replay the program with given latents and compare (evidence for exactness).
        variational: global continuous latents that get a distribution in place of a point estimate.
        coupled: discrete latents on which a guide's draw of a continuous latent depends, by continuous latent.

    Raises:
        ModelError: the program cannot be read.
        DataError: what is observed cannot be scored.
        PlanError: a latent cannot be summed, or enumeration would exceed the budget.
    """
    with isolated(source.seed):
        first = run_program(
            source.model, source.args, source.kwargs, parameters=values, follow=True, keep_subsamples=source.batch
        )
        _require_observations(first)
        check_observations(first.records)
        latents = classify(first.records)
        warn_unregistered(first, source.model)
        continuous = [z for z, v in latents.items() if v.kind == "continuous"]
        points = tuple(z for z in continuous if not latents[z].local and z not in variational)
        parameters = _parameters(first, points, values or {}, freeze)
        summed = {z: v for z, v in latents.items() if v.kind == "discrete"}
        escapes = _escapes(first, summed)
        scopes = _scopes(first.records, summed, coupled or {})
        _check_budget(first.records, scopes, summed, max_elements)
        layout = allocate(first.records, scopes, {z: v.cardinality for z, v in summed.items()})
        enumeration = Enumeration(source, layout, summed, points, _local_values(first, latents, points), scopes)
        program = _assemble(first, latents, summed, parameters, scopes, layout, enumeration, points)
        unproven = list(escapes)
        for name, record in first.records.items():
            if random := sorted(m[7:] for m in record.marks if m.startswith("random:")):
                unproven.append(f"site '{name}' depends on random numbers drawn outside sample statements ({', '.join(random)})")
        witnesses = dict(program.witnesses)
        if witness and summed:
            witnesses["replay"] = replay(program, enumeration, first)
        return replace(program, unproven=tuple(unproven), witnesses=witnesses)


def _require_observations(run: Run) -> None:
    if not any(r.role in ("observed", "factor") for r in run.records.values()):
        raise ModelError(
            message(
                "the model observes nothing",
                value=", ".join(run.records) or "no sample sites",
                hint="pyro.sample(name, distribution, obs=data) for what is known",
            )
        )


def _parameters(
    run: Run, points: tuple[str, ...], values: Mapping[str, Tensor], freeze: tuple[str, ...]
) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for name, seen in run.parameters.items():
        module = seen.value if seen.module else None
        start = seen.value.detach().clone()
        frozen = name in freeze or (module is not None and not module.requires_grad)
        found[name] = Parameter(name, start, seen.constraint, "module" if seen.module else "param", frozen, module)
    for name in points:
        record = run.records[name]
        start = values.get(name, record.value).detach().clone()
        found[name] = Parameter(name, start, _support(record), "site", name in freeze)
    unknown = set(freeze) - set(found)
    if unknown:
        raise ModelError(
            message("freeze names something that is not in the program", value=sorted(unknown), hint=f"one of {sorted(found)}")
        )
    return found


def _support(record: Record) -> Any:
    try:
        return record.fn.support
    except NotImplementedError as error:
        raise ModelError(message("the prior's support is not known", site=record.name, value=type(record.fn).__name__)) from error


def _escapes(run: Run, summed: Mapping[str, Latent]) -> list[str]:
    assert run.provenance is not None
    for mark, call in run.provenance.escaped.items():
        if mark.startswith("latent:") and mark[7:] in summed:
            raise PlanError(
                message(
                    f"Python reads the value of a latent that is to be summed (through {call})",
                    site=mark[7:],
                    why="all its values are needed at once",
                    hint="torch.where or indexing in place of if / float() / .item()",
                )
            )
    return []


def _scopes(
    records: Mapping[str, Record], summed: Mapping[str, Latent], coupled: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[str, ...]]:
    scopes = {}
    for name, record in records.items():
        found = {m[7:] for m in record.marks if m.startswith("latent:")} | ({name} if record.role == "latent" else set())
        found.update(z for u in tuple(found) for z in coupled.get(u, ()))
        scopes[name] = tuple(z for z in summed if z in found)
    return scopes


def _check_budget(
    records: Mapping[str, Record], scopes: Mapping[str, tuple[str, ...]], summed: Mapping[str, Latent], limit: float
) -> None:
    for name, scope in scopes.items():
        states = math.prod(summed[z].cardinality for z in scope)
        batch = math.prod(getattr(records[name].fn, "batch_shape", ()))
        if states * batch > limit:
            sizes = "×".join(str(summed[z].cardinality) for z in scope)
            raise PlanError(
                message(
                    f"the log-factor would have {states * batch:.2e} elements ({sizes} states × {batch})",
                    site=name,
                    why=f"the budget is {limit:.0e}",
                    hint='method="svi", fewer states, or a larger Auto(memory_bytes=...)',
                )
            )


def _local_values(run: Run, latents: Mapping[str, Latent], points: tuple[str, ...]) -> dict[str, Tensor]:
    return {
        z: run.records[z].value.detach() for z, v in latents.items() if v.kind == "continuous" and z not in points
    }


def _plates(records: Mapping[str, Record], layout: Layout) -> dict[str, Plate]:
    plates: dict[str, Plate] = {}
    data = {f.name for r in records.values() if r.role in ("observed", "factor") for f in r.frames}
    for record in records.values():
        for frame in record.frames:
            if frame.dim is None:
                continue
            before = plates.get(frame.name)
            if before is not None and before.size != frame.size:
                raise PlanError(
                    message(
                        f"plate '{frame.name}' has two sizes, {before.size} and {frame.size}",
                        site=record.name,
                        hint="one plate of the largest size with poutine.mask, or a name for each size",
                    )
                )
            plates[frame.name] = Plate(frame.name, frame.size, frame.full_size, data=frame.name in data, dim=frame.dim)
    for (latent, position), name in layout.batches.items():
        size = records[latent].fn.batch_shape[position]
        plates[name] = Plate(name, size, size, declared=False, data=True, dim=position)
    return plates


def _assemble(
    first: Run,
    latents: dict[str, Latent],
    summed: dict[str, Latent],
    parameters: dict[str, Parameter],
    scopes: dict[str, tuple[str, ...]],
    layout: Layout,
    enumeration: Enumeration,
    points: tuple[str, ...],
) -> Program:
    given = points + tuple(enumeration.local)  # latents whose values are handed in, not summed
    sources = frozenset(f"param:{n}" for n in parameters) | frozenset(f"latent:{n}" for n in given)
    start = {n: p.init for n, p in parameters.items()}
    records = {n: fill_masked(r) for n, r in enumeration.run(start).items()}
    if set(records) != set(first.records):
        changed = sorted(set(records) ^ set(first.records))
        raise PlanError(message("the set of sites changes between runs", value=changed, hint="a fixed set of sites"))
    plates = _plates(first.records, layout)
    sites: dict[str, Site] = {}
    for name, record in records.items():
        marks = first.records[name]
        sites[name] = build_site(record, marks, scopes[name], layout, plates, sources, summed, given)
    expected = {n: site_log_factor(records[n], s, layout, scopes[n]) for n, s in sites.items()}
    sites = link_arguments(sites, parameters, enumeration, layout, scopes, expected)
    for name, latent in summed.items():
        extra = tuple(b for (z, _), b in layout.batches.items() if z == name)
        parents = tuple(z for z in sites[name].scope if z != name)
        latents[name] = replace(latent, plates=latent.plates + extra, parents=parents)
    names = tuple(sites)

    def evaluate(values: Mapping[str, Tensor], wanted: tuple[str, ...] = names) -> dict[str, Factor]:
        with isolated(enumeration.source.seed), warnings.catch_warnings():
            return enumeration.log_factors(values, {n: sites[n] for n in wanted}, scopes)

    witnesses = {"provenance": "scopes followed through every torch operation"}
    outermost = _data_plate(first.records, sites, plates)
    return Program(
        sites, latents, plates, parameters, evaluate, witnesses=witnesses, data_plate=outermost, runner=enumeration
    )


def _data_plate(records: Mapping[str, Record], sites: Mapping[str, Site], plates: Mapping[str, Plate]) -> str | None:
    """The outermost plate that all observed sites share."""
    observed = [n for n, s in sites.items() if s.role != "latent"]
    for frame in records[observed[0]].frames:  # outermost first
        if frame.dim is not None and all(frame.name in sites[n].plates for n in observed):
            return frame.name
    undeclared = sorted((p.dim, p.name) for p in plates.values() if not p.declared)
    return next((n for _, n in undeclared if all(n in sites[o].plates for o in observed)), None)
