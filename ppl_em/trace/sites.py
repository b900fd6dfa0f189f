"""One recorded sample statement as a frozen site with named dimensions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_em.errors import PlanError, message
from ppl_em.ir import Argument, Factor, Latent, Plate, Site
from ppl_em.trace.enumeration import mask_factor
from ppl_em.trace.layout import Layout
from ppl_em.trace.record import Record


def build_site(
    record: Record,
    marks: Record,
    scope: tuple[str, ...],
    layout: Layout,
    plates: Mapping[str, Plate],
    sources: frozenset[str],
    summed: Mapping[str, Latent],
    points: tuple[str, ...],
    elementwise: Tensor,
) -> Site:
    """Turn a record of an enumerated run into a site (links are found later).

    Args:
        record: from the enumerated run at the initial parameters.
        marks: from the run in which provenance was followed.
        scope: summed latents on which the site may depend.
        sources: marks of everything that is estimated.
        summed: discrete latents that are summed.
        points: latents whose values are given.
        elementwise: log-density, at some elements of large plates only; constant dimensions may have size 1.
    """
    peeled, inner = record.peeled, record.inner
    reached = marks.control & sources  # control flow may depend on these
    mask, scale = mask_factor(record, layout, scope), _scale(record, layout, scope)
    arguments, value = {}, Factor(torch.zeros(()), ())
    if peeled is not None:
        for name, tensor in peeled.arguments.items():
            named = layout.name_dims(record, tensor.detach(), peeled.event_dims[name], inner, scope)
            fed = frozenset(_source_name(m) for m in (marks.argument_marks.get(name, frozenset()) & sources) | reached)
            arguments[name] = Argument(named, (), fed)
        value = named_value(record, layout, scope)
    density = layout.name_dims(record, elementwise.detach(), 0, inner, scope)
    pieces = [density, value, *(a.value for a in arguments.values()), *([mask] if mask else [])]
    seen = dict.fromkeys(d for piece in pieces for d in piece.dims)
    # A latent of a single value leaves no trace in a shape.
    kept_scope = tuple(z for z in scope if z in seen or summed[z].cardinality == 1)
    folded = layout.folded.get(record.name, 0)
    own = tuple(f.name for f in reversed(record.frames) if f.dim is not None and f.dim < -folded)
    own += tuple(d for d in seen if d in plates and d not in own)
    inner_names = tuple(d for d in seen if d not in summed and d not in plates)
    own = tuple(sorted(own, key=lambda d: _position(record, layout, d)))
    fed = frozenset(_source_name(m) for m in (marks.marks & sources) | reached)
    if record.name in points:
        fed |= {record.name}
    if scale is not None and (steering := [d for d in scale.dims if d in summed]):
        raise PlanError(message("the scale of a site depends on a latent", site=record.name, value=steering[0]))
    return Site(
        name=record.name,
        role=record.role,  # type: ignore[arg-type]
        scope=kept_scope,
        plates=own,
        dims=kept_scope + own,
        inner=inner_names,
        family=None if peeled is None else peeled.family,
        arguments=arguments,
        value=value,
        mask=None if record.name in summed else mask,
        scale=scale,
        parameters=fed,
        members=(record.name,),
        options={} if peeled is None else dict(peeled.options),
        point=record.name if record.name in points else None,
        missing=_missing(record, layout, scope),
    )


def _missing(record: Record, layout: Layout, scope: tuple[str, ...]) -> Factor | None:
    if record.hidden is None or record.peeled is None:
        return None
    return layout.name_dims(record, record.hidden, len(record.peeled.base.event_shape), record.inner, scope)


def named_value(record: Record, layout: Layout, scope: tuple[str, ...]) -> Factor:
    """What a site's density is evaluated at, by name."""
    assert record.peeled is not None
    base = record.peeled.base
    value = record.value.detach()
    event_dim = len(base.event_shape)
    shape = tuple(base.batch_shape)
    batch = value.dim() - event_dim
    if batch < len(shape):
        value = value.reshape((1,) * (len(shape) - batch) + tuple(value.shape))
        batch = len(shape)
    # Where neither the value nor an argument varies along a dimension that no plate declares, the multiplicity still
    # counts (plates are expanded by the engines).
    target = list(value.shape)
    declared = {f.dim for f in record.frames} | {p for (_, p) in layout.batches}
    for axis in range(len(shape)):
        position = batch - len(shape) + axis
        if axis - len(shape) + record.peeled.inner in declared and axis - len(shape) < -record.peeled.inner:
            continue
        constant = all(
            _size(t, record.peeled.event_dims[n], axis - len(shape)) == 1 for n, t in record.peeled.arguments.items()
        )
        if target[position] == 1 and shape[axis] > 1 and constant:
            target[position] = shape[axis]
    return layout.name_dims(record, value.expand(target), event_dim, record.peeled.inner, scope)


def _size(tensor: Tensor, event_dim: int, position: int) -> int:
    position -= event_dim
    return tensor.shape[position] if -position <= tensor.dim() else 1


def _scale(record: Record, layout: Layout, scope: tuple[str, ...]) -> Factor | None:
    if isinstance(record.scale, Tensor):
        if record.scale.numel() == 1 and float(record.scale) == 1.0:
            return None
        return layout.name_dims(record, record.scale.detach(), 0, 0, scope)
    return None if record.scale == 1.0 else Factor(torch.tensor(record.scale), ())


def _position(record: Record, layout: Layout, plate: str) -> int:
    for frame in record.frames:
        if frame.name == plate and frame.dim is not None:
            return frame.dim
    return next((p for (_, p), name in layout.batches.items() if name == plate), 0)


def _source_name(mark: str) -> str:
    return mark.split(":", 1)[1]
