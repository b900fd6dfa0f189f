"""Evidence that steps run at once are the steps of the loop: single steps are run and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ppl_em.errors import NotVectorised, message
from ppl_em.ir import Factor, Program, Site, TimeAxis
from ppl_em.ir.factor import lookup
from ppl_em.trace.enumeration import Enumeration, site_log_factor
from ppl_em.trace.observe import fill_masked
from ppl_em.trace.record import Record
from ppl_em.trace.scoring import scored
from ppl_em.trace.time_axis import Axis


def name_axes(axes: tuple[Axis, ...], records: Mapping[str, Record]) -> tuple[TimeAxis, ...]:
    """Time axes with their sites paired by name: those of the steps run at once, and those of step 0.

    Raises:
        NotVectorised: a site of the steps run at once has no partner, or does not carry the step in its name.
    """
    named = []
    for axis in axes:
        first = {}
        for name, record in records.items():
            if any(f.name == axis.plate for f in record.frames):
                partner = name.replace(axis.token, "0")
                if axis.token not in name or (partner not in records and record.role == "latent"):
                    raise NotVectorised(
                        message("a site of a time loop has no partner at its first step", site=name, hint='f"z_{t}"')
                    )
                first[name] = partner
        named.append(TimeAxis(axis.plate, axis.size, axis.history, first, axis.token))
    return tuple(named)


def compare_steps(
    program: Program, enumeration: Enumeration, axis: TimeAxis, scopes: Mapping[str, tuple[str, ...]]
) -> str:
    """Run chosen steps one by one with drawn states; each must score as the steps run at once say.

    Returns:
        What was done, for the certificate.

    Raises:
        NotVectorised: a step scores differently.
    """
    start = {n: p.init for n, p in program.parameters.items()}
    steps = _chosen(axis)
    generator = torch.Generator().manual_seed(4711)
    drawn: dict[str, Factor] = {}
    values: dict[str, Tensor] = {}
    for name in axis.first:
        latent = program.latents.get(name)
        if latent is None:
            continue
        if latent.kind != "discrete" or latent.support is None:
            raise NotVectorised(message("a continuous latent on a time axis", site=name))
        plates = tuple(p for p in latent.plates if p != axis.plate)
        for step in steps:
            index = torch.randint(latent.cardinality, [program.plates[p].size for p in plates], generator=generator)
            single = axis.at(name, step)
            drawn[single] = Factor(index, plates)
            values[single] = _positioned(
                latent.support[index], [program.plates[p].dim for p in plates], len(latent.event_shape)
            )
    _require_inside(program, axis, values)
    records = enumeration.some_steps(start, lambda name: values.get(name), steps)
    vector = {n: program.sites[n] for n in axis.first}
    table = _all_steps(enumeration, start, vector, scopes)
    for step in steps:
        if step < axis.history or any(step - lag not in steps for lag in range(1, axis.history + 1)):
            continue
        for name, site in vector.items():
            record = replace(fill_masked(records[axis.at(name, step)]), name=name)
            seen = site_log_factor(record, site, enumeration.layout, ())
            index = {}
            for z in site.scope:
                lag = 0 if z in axis.first else axis.history - _step_of(z, axis)
                family = z if z in axis.first else next(v for v, f in axis.first.items() if _same_family(axis, v, z))
                index[z] = drawn[axis.at(family, step - lag)]
            at = table[name]
            if axis.plate in at.dims:
                at = Factor(
                    at.tensor.select(at.dims.index(axis.plate), step - axis.history),
                    tuple(d for d in at.dims if d != axis.plate),
                )
            expected = lookup(at, {z: f for z, f in index.items() if z in at.dims})
            dims = tuple(dict.fromkeys((*seen.dims, *expected.dims)))
            a, b = torch.broadcast_tensors(seen.align(dims).detach(), expected.align(dims).detach())
            tolerance = 1e-8 if a.dtype == torch.float64 else 1e-3
            if not bool(((a == b) | ((a - b).abs() <= tolerance * (1 + b.abs()))).all()):
                raise NotVectorised(
                    message(f"step {step} of the time loop is not what all steps at once give", site=name)
                )
    return f"steps {', '.join(map(str, steps))} of {axis.size} run one by one score as all steps at once do"


def _all_steps(
    enumeration: Enumeration,
    start: Mapping[str, Tensor],
    sites: Mapping[str, Site],
    scopes: Mapping[str, tuple[str, ...]],
) -> dict[str, Factor]:
    """Log-factors of the steps run at once."""
    records = {n: fill_masked(r) for n, r in enumeration.run(start).items() if n in sites}
    records = {n: scored(r, r, enumeration.layout) for n, r in records.items()}
    return {n: site_log_factor(r, sites[n], enumeration.layout, scopes[n]) for n, r in records.items()}


def _require_inside(program: Program, axis: TimeAxis, values: Mapping[str, Tensor]) -> None:
    """Every discrete latent is drawn, or belongs to another axis.

    Raises:
        NotVectorised: one stands outside the time loops.
    """
    # States of other axes do not act on this one's (`require_chains`): whatever they are drawn as is as good.
    elsewhere = {z for a in program.axes if a is not axis for pair in a.first.items() for z in pair}
    outside = [
        z
        for z, v in program.latents.items()
        if v.kind == "discrete" and z not in axis.first and z not in values and z not in elsewhere
    ]
    if outside:
        raise NotVectorised(
            message("a latent outside the time loop", site=outside[0], why="its steps cannot be compared")
        )


def require_chains(program: Program) -> None:
    """Steps run at once are understood for one first-order chain of discrete states on each axis.

    Raises:
        NotVectorised: the axis holds anything else.
    """
    for axis in program.axes:
        states = [z for z in axis.first if z in program.latents]
        if axis.history != 1 or len(states) != 1 or program.latents[states[0]].kind != "discrete":
            raise NotVectorised(
                message("a time loop that is not one first-order chain of discrete states", value=states)
            )
        pair = {states[0], axis.first[states[0]]}
        for site in program.sites.values():
            if set(site.scope) & pair and not set(site.scope) <= pair:
                raise NotVectorised(message("another latent acts on the states of a time loop", site=site.name))
            if axis.plate not in site.plates and states[0] in site.scope:
                raise NotVectorised(message("a site outside the time loop depends on its states", site=site.name))


def _chosen(axis: TimeAxis) -> tuple[int, ...]:
    h, size = axis.history, axis.size
    middle = size // 2
    picked = {*range(h + 2), *range(max(0, middle - h), middle + 1), *range(max(0, size - 1 - h), size)}
    return tuple(sorted(p for p in picked if p < size))


def _step_of(name: str, axis: TimeAxis) -> int:
    return next(i for v in axis.first for i in range(axis.history) if axis.at(v, i) == name)


def _same_family(axis: TimeAxis, vector: str, single: str) -> bool:
    return any(axis.at(vector, i) == single for i in range(axis.history))


def _positioned(value: Tensor, dims: list[int], event_dim: int) -> Tensor:
    """Insert size-1 dimensions where a latent's plates leave gaps."""
    rank = max((-d for d in dims), default=0)
    shape = [1] * rank
    for d, size in zip(dims, value.shape, strict=False):
        shape[d] = size
    return value.reshape((*shape, *value.shape[value.dim() - event_dim :]))
