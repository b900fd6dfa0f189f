"""NaN where nothing can be integrated out: in covariates, parameters and factors."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_em.errors import DataError, message
from ppl_em.trace.record import Record


def refuse_stray_nan(records: Mapping[str, Record]) -> None:
    """Refuse NaN that reaches a density otherwise than as an observed value.

    Args:
        records: the sites of a run.

    Raises:
        DataError: the site, the argument, and where the NaN may come from.
    """
    gaps = [n for n, r in records.items() if r.hidden is not None]
    for name, record in records.items():
        if record.peeled is None:
            _refuse_factor(record, gaps)
            continue
        for argument, tensor in record.peeled.arguments.items():
            bad = _nan(tensor)
            if bad is not None and _counts(record, bad, record.peeled.event_dims[argument]):
                _refuse(name, argument, bad, gaps)


def _nan(tensor: Tensor) -> Tensor | None:
    if not tensor.is_floating_point():
        return None
    with torch._C.DisableTorchFunction():
        bad = tensor.detach().isnan()
        return bad if bool(bad.any()) else None


def _counts(record: Record, bad: Tensor, event_dim: int) -> bool:
    """Whether any of these elements of an argument belongs to a density that the program's own masks do not hide."""
    assert record.peeled is not None
    with torch._C.DisableTorchFunction():
        if event_dim:
            bad = bad.flatten(bad.dim() - event_dim).any(-1)
        inner = record.peeled.inner
        mask = record.mask
        if isinstance(mask, Tensor):
            bad = bad & mask.reshape(mask.shape + (1,) * inner)
        elif mask is False:
            return False
        own = record.peeled.mask
        if isinstance(own, Tensor) and record.hidden is None:
            bad = bad & own
        return bool(bad.any()) and own is not False


def _refuse(name: str, argument: str, bad: Tensor, gaps: list[str]) -> None:
    first = tuple(bad.nonzero()[0].tolist())
    why = "only what is observed may be missing; a covariate, or a value that other sites are computed from, may not"
    hint = "leaving these data out, filling them in, or a distribution for the covariate (pyro.sample with obs=)"
    if name in gaps or gaps:
        hint += f"; missing values were observed at {', '.join(gaps[:3])}"
    where = f"{int(bad.sum())} elements, the first at index {first}"
    raise DataError(
        message(f"NaN reaches the argument '{argument}' of a distribution", site=name, value=where, why=why, hint=hint)
    )


def _refuse_factor(record: Record, gaps: list[str]) -> None:
    if not isinstance(record.fn, dist.Unit):
        return
    bad = _nan(record.fn.log_factor)
    if bad is None or record.mask is False:
        return
    if isinstance(record.mask, Tensor) and not bool((bad & record.mask).any()):
        return
    first = tuple(bad.nonzero()[0].tolist())
    why = "a factor is a number of its own: nothing can be integrated out of it"
    hint = "leaving the terms of missing values out of the factor, or pyro.sample with obs="
    where = f"{int(bad.sum())} elements, the first at index {first}"
    raise DataError(message("NaN in a factor", site=record.name, value=where, why=why, hint=hint))
