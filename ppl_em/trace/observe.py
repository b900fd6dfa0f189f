"""Checks of what was observed, before anything is computed from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_em.distributions.partly_observed import without_gaps
from ppl_em.errors import DataError, message
from ppl_em.trace.missing import reach
from ppl_em.trace.record import Record, version_of


def check_observations(records: Mapping[str, Record]) -> None:
    """Refuse data that no density can score.

    Raises:
        DataError: infinite, outside the support, or empty; the site, the number of bad elements and the first.
    """
    for record in records.values():
        if record.role != "observed" or record.peeled is None:
            continue
        value, name = record.value, record.name
        if value.numel() == 0:
            raise DataError(message("nothing is observed (an empty tensor)", site=name, value=tuple(value.shape)))
        counted = _counted(record)
        # A finite sum has finite terms: the common case needs no memory of the size of the data.
        if value.is_floating_point() and not bool(value.sum().isfinite()):
            _refuse(name, value, torch.isinf(value) & counted, "infinite values in observed data", "removing them")
        inside = None if _varies(record) else _inside_support(record)
        if inside is not None:
            keep = counted if inside.dim() == counted.dim() else counted.reshape(inside.shape)
            _refuse(
                name,
                value if inside.shape == value.shape else None,
                ~inside & keep,
                f"observed values outside the support of {record.peeled.family.__name__}",
                "a distribution whose support holds the data",
            )


def _varies(record: Record) -> bool:
    """Whether the support depends on a latent: then what one value excludes another may allow."""
    assert record.peeled is not None
    from_latents = any(m.startswith("latent:") for m in record.marks | record.control)
    support = getattr(type(record.peeled.base), "support", None)
    fixed = isinstance(record.peeled.base, (torch.distributions.Categorical, torch.distributions.Multinomial))
    return from_latents and constraints.is_dependent(support) and not fixed


def fill_masked(record: Record) -> Record:
    """Give masked NaN elements a harmless value: their gradient would be NaN although they do not count."""
    value = record.value
    unmasked = record.mask is None and (record.peeled is None or record.peeled.mask is None)
    if unmasked or not value.is_floating_point() or not bool(torch.isnan(value).any()):
        return record
    usable = value[torch.isfinite(value)]
    gone = torch.isnan(value)
    if record.hidden is not None:  # these are gaps, which the family knows
        gone &= ~record.hidden if record.hidden.shape == value.shape else ~torch.ones_like(gone)
    filled = torch.where(gone, usable[0] if usable.numel() else torch.zeros((), dtype=value.dtype), value)
    return replace(record, value=filled, version=version_of(filled, record.peeled))


def _counted(record: Record) -> Tensor:
    """Elements of the value that the mask lets count, in the shape of the value."""
    value, event_dim = record.value, getattr(record.fn, "event_dim", 0)
    counted = torch.ones(value.shape, dtype=torch.bool, device=value.device)
    if record.mask is not None:
        mask = torch.as_tensor(record.mask, device=value.device)
        counted = reach(mask, value, event_dim)
    if record.peeled is not None and record.peeled.mask is not None:
        mask = torch.as_tensor(record.peeled.mask, device=value.device)
        counted = counted & reach(mask, value, event_dim - record.peeled.inner)
    return counted


def _inside_support(record: Record) -> Tensor | None:
    assert record.peeled is not None
    value = record.value
    if value.is_floating_point():  # gaps are inside any support
        value = without_gaps(value, record.peeled.base)
    try:
        inside = record.peeled.base.support.check(value)
    except (NotImplementedError, AttributeError, RuntimeError):
        return None
    extra = record.value.dim() - inside.dim()
    return inside if extra <= 0 else inside.reshape(tuple(inside.shape) + (1,) * extra).expand(record.value.shape)


def _refuse(name: str, value: Tensor | None, bad: Tensor, what: str, hint: str) -> None:
    count = int(bad.sum())
    if count:
        shown: Any = None
        if value is not None and bad.shape == value.shape:
            shown = float(value[bad][0])
        raise DataError(message(f"{count} of {bad.numel()}: {what}", site=name, value=shown, hint=hint))
