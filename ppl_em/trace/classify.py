"""What each unobserved site is: to be summed, integrated, or estimated as a point."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import torch

from ppl_em.errors import PlanError
from ppl_em.ir import Latent
from ppl_em.trace.record import Record
from ppl_em.trace.support import enumerate_support


def data_plates(records: Mapping[str, Record]) -> frozenset[str]:
    """Names of plates that enclose an observation."""
    return frozenset(f.name for r in records.values() if r.role in ("observed", "factor") for f in r.frames)


def classify(
    records: Mapping[str, Record],
    bounds: Mapping[str, int] | None = None,
    folded: Mapping[str, int] | None = None,
    optional: Collection[str] = (),
) -> tuple[dict[str, Latent], dict[str, PlanError]]:
    """Latents of a program in the order of its sites, and those that cannot be enumerated, with the reason.

    Args:
        records: its sites.
        bounds: number of values of latents whose support depends on other latents.
        folded: number of batch dimensions of latents whose elements are enumerated jointly.
        optional: sites that some execution paths do not reach.
    """
    bounds, folded = bounds or {}, folded or {}
    refused: dict[str, PlanError] = {}
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
            local = in_data or len(record.fn.batch_shape) > len(plates)
            depth = folded.get(name, 0)
            kept = tuple(p for dim, p in framed if dim < -depth)
            try:
                support = enumerate_support(record, bounds.get(name), depth)
            except PlanError as error:
                refused[name], support = error, None
            if support is not None and name in optional:
                nothing = torch.nan if support.is_floating_point() else -1
                support = torch.cat([support, torch.full_like(support[:1], nothing)])
            shape = tuple(record.fn.event_shape) if support is None else tuple(support.shape[1:])
            latents[name] = Latent(
                name, "discrete", kept, parents, local, support, shape, folded=depth, optional=name in optional
            )
        else:
            local = in_data or any(_same_family(name, z) and latents[z].kind == "continuous" for z in parents)
            latents[name] = Latent(name, "continuous", plates, parents, local, None, tuple(record.fn.event_shape))
    return _mark_first_of_time_axes(latents), refused


def is_discrete(fn: Any) -> bool:
    """Whether a distribution's support is discrete."""
    try:
        return bool(fn.support.is_discrete)
    except (NotImplementedError, AttributeError):
        return bool(getattr(fn, "has_enumerate_support", False))


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
