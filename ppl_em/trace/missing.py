"""Observed values that are not numbers (NaN) are missing: what the density of the rest is, and what cannot be had.

Reference:
    Rubin, D. (1976). Inference and missing data. Biometrika 63.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor

from ppl_em.distributions.compound import MixtureOf
from ppl_em.distributions.partly_observed import (
    PartlyObservedMixture,
    PartlyObservedNormal,
    admits_gaps,
    mixture_with_gaps,
    stand_in,
    with_gaps,
)
from ppl_em.errors import DataError, message
from ppl_em.ir import Factor, Site
from ppl_em.ir.shapes import broadcast_shapes
from ppl_em.trace.compounds import compound_parts


@dataclass(frozen=True)
class Seen:
    """What is seen of an observed value.

    Args:
        fn: the distribution of what is seen.
        value: the value, harmless numbers where it is missing (NaN remains where ``fn`` knows what to do with it).
        hidden: True where an element is missing, shaped as the value; None where all is there.
    """

    fn: Any
    value: Any
    hidden: Tensor | None = None


def seen_part(name: str, fn: Any, value: Any, mask: Any = None, given: Any = None) -> Seen:
    """The distribution of what is not missing, and the value without what is.

    Args:
        name: the site's, for messages.
        fn: its distribution, after its plates expanded it.
        value: what was observed; NaN means missing.
        mask: of the handlers around the site: what it hides does not count anyway.
        given: the distribution as the program passed it.

    Raises:
        DataError: a part of an event is missing, and its family has no density for the rest.
    """
    if not isinstance(value, Tensor) or not value.is_floating_point() or isinstance(fn, (dist.Unit, dist.Delta)):
        return Seen(fn, value)
    with torch._C.DisableTorchFunction():
        total = value.detach().sum()
        if bool(total.isfinite()) or not bool((nan := value.detach().isnan()).any()):
            return Seen(fn, value)
        base, counted = innermost(fn), _counted(fn, value, mask)
        hidden = nan & counted
        depth = len(base.event_shape)
        whole = hidden.flatten(value.dim() - depth).all(-1) if depth else hidden
        partial = hidden & ~whole.reshape(whole.shape + (1,) * depth)
    gaps = bool(partial.any())
    change = _with_gaps(name, base, given, partial) if gaps else None
    value = _filled(name, base, value, nan & ~partial, depth)
    keep = ~whole if bool(whole.any()) else None
    if change is not None or keep is not None:
        fn = _rebuilt(fn, change, keep)
    return Seen(fn, value, hidden if bool(hidden.any()) else None)


def innermost(fn: Any) -> Any:
    """A distribution without its wrappers."""
    while isinstance(fn, (torch.distributions.Independent, dist.MaskedDistribution, ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def knows_gaps(fn: Any) -> bool:
    """Whether NaN in a value means something to a distribution."""
    return isinstance(innermost(fn), (PartlyObservedNormal, PartlyObservedMixture))


def whole_numbers(fn: Any) -> bool:
    """Whether a distribution's values are whole numbers."""
    base = innermost(fn)
    if isinstance(base, PartlyObservedMixture):
        base = base.part("component")
    try:
        return bool(getattr(base.support, "is_discrete", False))
    except NotImplementedError:
        return False


def _counted(fn: Any, value: Tensor, mask: Any) -> Tensor:
    """Elements that no mask hides, in the shape of the value."""
    counted = torch.ones(value.shape, dtype=torch.bool, device=value.device)
    masks = [(mask, len(fn.event_shape))] if mask is not None and mask is not True else []
    while isinstance(fn, (torch.distributions.Independent, dist.MaskedDistribution, ExpandedDistribution)):
        if isinstance(fn, dist.MaskedDistribution):
            masks.append((fn._mask, len(fn.event_shape)))
        fn = fn.base_dist
    for part, event_dim in masks:
        tensor = torch.as_tensor(part, device=value.device)
        counted = counted & reach(tensor, value, event_dim)
    return counted


def reach(mask: Tensor, value: Tensor, event_dim: int) -> Tensor:
    """A mask over batch elements in the shape of a value; an element counts if it does anywhere along what is larger."""
    mask = mask.reshape(tuple(mask.shape) + (1,) * event_dim)
    try:
        full = mask.expand(broadcast_shapes(mask.shape, value.shape))
    except RuntimeError:
        return torch.ones_like(value, dtype=torch.bool)
    while full.dim() > value.dim():
        full = full.any(0)
    for axis, size in enumerate(value.shape):
        if size == 1 and full.shape[axis] > 1:
            full = full.any(axis, keepdim=True)
    return full


def _with_gaps(name: str, base: Any, given: Any, partial: Tensor) -> Callable[[Any], Any]:
    """How to make the innermost distribution one that knows gaps.

    Raises:
        DataError: its family has no density for a part of an event.
    """
    made_of = compound_parts(base if given is None else innermost(given))
    family = type(base) if made_of is None else made_of[0]
    if not admits_gaps(base, family):
        first = tuple(partial.nonzero()[0].tolist())
        events = int(partial.flatten(partial.dim() - len(base.event_shape)).any(-1).sum())
        shown = f"{events} events, the first NaN at index {first}"
        why = f"{type(base).__name__} has no density for a part of an event here"
        hint = "NaN in all of such an event (it is left out), filling it in, or a distribution of its single elements"
        raise DataError(message("NaN in a part of an observed event", site=name, value=shown, why=why, hint=hint))
    if made_of is None:
        return PartlyObservedNormal.like
    assert issubclass(family, MixtureOf)
    arguments = made_of[1]
    return lambda fn: mixture_with_gaps(fn, family, arguments)


def _filled(name: str, base: Any, value: Tensor, gone: Tensor, depth: int) -> Tensor:
    """The value with numbers that the density can be evaluated at in place of what does not count."""
    if not bool(gone.any()):
        return value
    with torch._C.DisableTorchFunction():
        plain = value.detach()
        if depth == 0 or isinstance(base, torch.distributions.MultivariateNormal):
            return torch.where(gone, stand_in(plain, base if depth == 0 else dist.Normal(0.0, 1.0)), plain)
        events = plain.flatten(0, plain.dim() - depth - 1) if plain.dim() > depth else plain.unsqueeze(0)
        complete = ~events.isnan().flatten(1).any(1)
        if not bool(complete.any()):
            hint = "leaving the site out"
            raise DataError(message("no event is observed", site=name, value=tuple(value.shape), hint=hint))
        return torch.where(gone, events[int(complete.nonzero()[0])], plain)


def _rebuilt(fn: Any, change: Callable[[Any], Any] | None, keep: Tensor | None) -> Any:
    """A distribution with its innermost one changed and masked, its wrappers as they were."""
    if isinstance(fn, torch.distributions.Independent):
        inner: Any = _rebuilt(fn.base_dist, change, keep)
        return inner.to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, dist.MaskedDistribution):
        return _rebuilt(fn.base_dist, change, keep).mask(fn._mask)
    if isinstance(fn, ExpandedDistribution):
        changed = fn if change is None else _rebuilt(fn.base_dist, change, None).expand(fn.batch_shape)
        return changed if keep is None else changed.mask(keep)
    changed = fn if change is None else change(fn)
    return changed if keep is None else changed.mask(keep)


def alike(sites: Mapping[str, Site]) -> dict[str, Site]:
    """The sites, all members of a family as ones that know gaps where one of them has any: steps of a loop stay alike."""
    families = {s.family for s in sites.values() if s.role == "observed"}
    changed = {f: with_gaps(f) for f in families if f is not None and with_gaps(f) is not f}
    changed = {f: g for f, g in changed.items() if g in families}
    return {n: replace(s, family=changed[s.family]) if s.family in changed else s for n, s in sites.items()}


def shown(value: Factor, missing: Factor | None) -> Factor:
    """An observed value with NaN where it is missing."""
    if missing is None:
        return value
    dims = (*value.dims, *(d for d in missing.dims if d not in value.dims))
    return Factor(torch.where(missing.align(dims), torch.nan, value.align(dims)), dims)
