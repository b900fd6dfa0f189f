"""What each unobserved site is: to be summed, integrated, or estimated as a point."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ppl_em.errors import PlanError, message
from ppl_em.ir import Latent
from ppl_em.trace.run import Record

#: A latent vector (``.to_event``) of discrete variables is enumerated as a Cartesian product up to this many values.
MAX_PRODUCT = 4096


def data_plates(records: Mapping[str, Record]) -> frozenset[str]:
    """Names of plates that enclose an observation."""
    return frozenset(f.name for r in records.values() if r.role in ("observed", "factor") for f in r.frames)


def classify(records: Mapping[str, Record]) -> dict[str, Latent]:
    """Latents of a program in the order of its sites.

    Raises:
        PlanError: a latent of infinite discrete support.
    """
    data = data_plates(records)
    latents: dict[str, Latent] = {}
    for name, record in records.items():
        if record.role != "latent":
            continue
        framed = sorted((f.dim, f.name) for f in record.frames if f.dim is not None)
        plates = tuple(name for _, name in framed)
        parents = tuple(m[7:] for m in sorted(record.marks) if m.startswith("latent:") and m[7:] in latents)
        parents = tuple(z for z in latents if z in parents)
        in_data = any(f.name in data for f in record.frames)
        if is_discrete(record.fn):
            support = enumerate_support(record)
            local = in_data or len(record.fn.batch_shape) > len(plates)
            latents[name] = Latent(name, "discrete", plates, parents, local, support, tuple(record.fn.event_shape))
        else:
            local = in_data or any(_same_family(name, z) and latents[z].kind == "continuous" for z in parents)
            latents[name] = Latent(name, "continuous", plates, parents, local, None, tuple(record.fn.event_shape))
    return _mark_first_of_time_axes(latents)


def is_discrete(fn: Any) -> bool:
    """Whether a distribution's support is discrete."""
    try:
        return bool(fn.support.is_discrete)
    except (NotImplementedError, AttributeError):
        return bool(getattr(fn, "has_enumerate_support", False))


def enumerate_support(record: Record) -> Tensor:
    """All values of a discrete latent, (K, *event_shape).

    Raises:
        PlanError: the support is infinite, too large, or not the same for all elements.
    """
    assert record.peeled is not None
    base, inner = record.peeled.base, record.peeled.inner
    if not base.has_enumerate_support:
        raise PlanError(
            message(
                "a latent of infinite discrete support cannot be summed",
                site=record.name,
                value=type(base).__name__,
                hint="a truncated version (Categorical over 0..K-1), or a continuous relaxation",
            )
        )
    try:
        values = base.enumerate_support(expand=False)
    except (NotImplementedError, ValueError) as error:
        raise PlanError(
            message("the support differs between elements of one site", site=record.name, why=str(error), hint="one site per support")
        ) from error
    event = tuple(base.event_shape)
    values = values.reshape((values.shape[0], *event))
    if not inner:
        return values
    shape = tuple(base.batch_shape[len(base.batch_shape) - inner :])
    count = math.prod(shape)
    if values.shape[0] ** count > MAX_PRODUCT:
        raise PlanError(
            message(
                f"a vector of {count} discrete variables has {values.shape[0]}^{count} joint values",
                site=record.name,
                why=f"at most {MAX_PRODUCT} are enumerated as one latent",
                hint="a plate in place of .to_event if the elements are independent given the rest",
            )
        )
    rows = [torch.stack(row) for row in product(values, repeat=count)]
    return torch.stack(rows).reshape((len(rows), *shape, *event))


def _family(name: str) -> str | None:
    found = re.fullmatch(r"(.*?)[_\[]?(\d+)\]?", name)
    return found.group(1) if found else None


def _same_family(a: str, b: str) -> bool:
    return _family(a) is not None and _family(a) == _family(b)


def _mark_first_of_time_axes(latents: dict[str, Latent]) -> dict[str, Latent]:
    """The first state of a time axis has no parent of its family, yet belongs to the axis."""
    families = {_family(z) for z, v in latents.items() if v.local and v.kind == "continuous" and _family(z)}
    marked = {}
    for name, latent in latents.items():
        if latent.kind == "continuous" and not latent.local and _family(name) in families and name[-1:].isdigit():
            latent = Latent(name, "continuous", latent.plates, latent.parents, True, None, latent.event_shape)
        marked[name] = latent
    return marked
