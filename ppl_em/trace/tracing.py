"""From a Pyro program to a frozen :class:`~ppl_em.ir.Program`, in a fixed small number of runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ppl_em.errors import ModelError, PplEmError, message
from ppl_em.ir import Latent, Parameter, Program
from ppl_em.trace.assembling import assemble, random_sources
from ppl_em.trace.classify import classify
from ppl_em.trace.enumeration import Enumeration
from ppl_em.trace.footprint import isolated
from ppl_em.trace.layout import Disagreement
from ppl_em.trace.observe import check_observations
from ppl_em.trace.partly_labelled import PartlyLabelled, explained, holed_arguments, to_be_split, without_unseen
from ppl_em.trace.refusals import Refusals, refuse_costly, refuse_large, refuse_wide
from ppl_em.trace.run import Record, Run
from ppl_em.trace.stray_nan import refuse_stray_nan
from ppl_em.trace.support import can_list
from ppl_em.trace.survey import Survey
from ppl_em.trace.time_axis import USED
from ppl_em.trace.time_witness import compare_steps, require_chains
from ppl_em.trace.treatment import Treatment, first_that_works
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
    time: str | None = "vector"


def trace_program(
    source: Source,
    *,
    values: Mapping[str, Tensor] | None = None,
    freeze: tuple[str, ...] = (),
    max_elements: float = 2e8,
    witness: bool = True,
    variational: frozenset[str] = frozenset(),
    coupled: Mapping[str, tuple[str, ...]] | None = None,
    strict: bool = True,
    max_flops: float = math.inf,
    declined: Mapping[str, str] | None = None,
    guided: Collection[str] = (),
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
        strict: a discrete latent that cannot be summed is an error; else it is left to another method, with the reason.
        max_flops: operations that summing one connected group of latents may cost.
        declined: discrete latents that are left to another method, with the reason.
        guided: latents that a user's guide draws; only these may have infinitely many values.

    Raises:
        ModelError: the program cannot be read.
        DataError: what is observed cannot be scored.
        PlanError: a latent cannot be summed, or enumeration would exceed the budget.
    """
    used = USED[0]
    request = Request(
        dict(values or {}),
        freeze,
        max_elements,
        witness,
        variational,
        dict(coupled or {}),
        strict,
        max_flops,
        dict(declined or {}),
        frozenset(guided),
    )
    try:
        return _trace(source, request)
    except Exception:
        # What cannot be run for all steps of a time loop at once is run step by step.
        if source.time is None or USED[0] == used:
            raise
    return _trace(replace(source, time=None), request)


@dataclass(frozen=True)
class Request:
    """The options of :func:`trace_program`."""

    values: dict[str, Tensor]
    freeze: tuple[str, ...]
    max_elements: float
    witness: bool
    variational: frozenset[str]
    coupled: dict[str, tuple[str, ...]]
    strict: bool
    max_flops: float
    declined: dict[str, str]
    guided: frozenset[str]


def _trace(source: Source, request: Request) -> Program:
    """One way of running time loops; discrete latents are treated in as many ways as it takes."""
    with isolated(source.seed), torch.enable_grad():
        survey = _survey(source, request)
        _require_observations(survey.first)
        check_observations(survey.first.records)
        warn_unregistered(survey.first, source.model)
        return first_that_works(lambda way: _trace_one_way(survey, request, way), survey)


def _survey(source: Source, request: Request) -> Survey:
    """The program's sites; discrete values with holes on which others depend are latent where they are missing."""
    try:
        survey = Survey(source, request.values or None)
    except (IndexError, RuntimeError, ValueError) as error:
        if isinstance(error, PplEmError) or not holed_arguments((source.args, source.kwargs)):
            raise
        raise explained(error) from error
    refuse_stray_nan(survey.first.records)
    names = to_be_split(survey.first.records)
    if not names:
        return survey
    return Survey(replace(source, model=PartlyLabelled(source.model, names)), request.values or None)


def _trace_one_way(survey: Survey, request: Request, way: Treatment) -> Program:
    latents, impossible = classify(survey.records, way.bounds, way.folded, survey.optional)
    refusals = Refusals(request.strict)
    refusals.reasons.update({z: why for z, why in request.declined.items() if z in latents})
    for name, error in impossible.items():
        if name not in request.guided and not can_list(survey.records[name]):
            raise error
        refusals.add([name], error)
    by_path = survey.steering({z: v for z, v in latents.items() if z not in impossible}) | way.by_path
    while by_path and survey.explore(by_path, _summed(latents, refusals)):
        latents, _ = classify(survey.records, way.bounds, way.folded, survey.optional)
        by_path = survey.steering(_summed(latents, refusals)) | way.by_path
    continuous = [z for z, v in latents.items() if v.kind == "continuous"]
    points = tuple(z for z in continuous if not latents[z].local and z not in request.variational)
    parameters = _parameters(survey, points, request.values, request.freeze)
    scopes = survey.scopes(_summed(latents, refusals), by_path, request.coupled)
    refuse_large(survey.records, scopes, _summed(latents, refusals), request.max_elements, refusals)
    summed = _summed(latents, refusals)
    scopes = {n: tuple(z for z in s if z in summed) for n, s in scopes.items()}
    refuse_costly(scopes, summed, request.max_flops, refusals)
    summed = _summed(latents, refusals)
    scopes = {n: tuple(z for z in s if z in summed) for n, s in scopes.items()}
    layout = refuse_wide(survey.records, scopes, summed, way.folded, refusals)
    summed = _summed(latents, refusals)
    scopes = {n: tuple(z for z in s if z in summed) for n, s in scopes.items()}
    local = {z: survey.records[z].full_value.detach() for z in latents if z not in summed and z not in points}
    enumeration = Enumeration(
        survey.source, layout, summed, points, local, scopes, by_path & set(summed), survey.records
    )
    latents = {z: replace(v, support=None) if z in refusals.reasons else v for z, v in latents.items()}
    made = assemble(survey, latents, parameters, enumeration)
    program = without_unseen(replace(made.program, refused=refusals.reasons), survey.records)
    witnesses = {"provenance": "scopes followed through every torch operation"}
    if enumeration.paths is not None:
        names = ", ".join(sorted(enumeration.by_path)[:4]) + (" …" if len(enumeration.by_path) > 4 else "")
        witnesses["paths"] = f"{enumeration.paths.count} execution paths enumerated over {names}"
    for axis in program.axes:
        require_chains(program)
        if request.witness:
            witnesses["time"] = compare_steps(program, enumeration, axis, scopes)
    unproven = random_sources(survey.records.values()) + survey.other_randomness
    if request.witness and summed:
        try:
            witnesses["replay"] = replay(program, enumeration, made.table, made.thinning)
        except Disagreement as error:
            if not unproven:
                raise
            unproven += (str(error),)
    return replace(program, unproven=unproven, witnesses=witnesses)


def _summed(latents: Mapping[str, Latent], refusals: Refusals) -> dict[str, Latent]:
    return {z: v for z, v in latents.items() if v.kind == "discrete" and z not in refusals.reasons}


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
    survey: Survey, points: tuple[str, ...], values: Mapping[str, Tensor], freeze: tuple[str, ...]
) -> dict[str, Parameter]:
    found: dict[str, Parameter] = {}
    for name, seen in survey.parameters.items():
        module = seen.value if seen.module else None
        if module is not None and name in values:  # modules hold their values themselves
            with torch.no_grad():
                module.copy_(values[name])
        start = seen.value.detach().clone()
        frozen = name in freeze or (module is not None and not module.requires_grad)
        found[name] = Parameter(name, start, seen.constraint, "module" if seen.module else "param", frozen, module)
    for name in points:
        record = survey.records[name]
        start = values.get(name, record.value).detach().clone()
        found[name] = Parameter(name, start, _support(record), "site", name in freeze)
    unknown = set(freeze) - set(found)
    if unknown:
        raise ModelError(
            message(
                "freeze names something that is not in the program",
                value=sorted(unknown),
                hint=f"one of {sorted(found)}",
            )
        )
    return found


def _support(record: Record) -> Any:
    try:
        return record.fn.support
    except NotImplementedError as error:
        raise ModelError(
            message("the prior's support is not known", site=record.name, value=type(record.fn).__name__)
        ) from error
