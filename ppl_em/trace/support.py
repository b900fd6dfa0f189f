"""The values of a discrete latent: as it stands, as a product of its elements, or up to a bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_em.errors import PlanError, message
from ppl_em.trace.record import Record, bound_of

#: A latent vector (``.to_event``) of discrete variables is enumerated as a Cartesian product up to this many values.
MAX_PRODUCT = 4096


def enumerate_support(record: Record, bound: int | None = None, folded: int = 0) -> Tensor:
    """All values of a discrete latent, (K, *folded_shape, *event_shape).

    Args:
        record: its sample statement.
        bound: number of values, where the support differs between elements or depends on another latent.
        folded: number of rightmost batch dimensions whose elements are enumerated jointly.

    Raises:
        PlanError: the support is infinite or too large.
    """
    assert record.peeled is not None
    base, inner = record.peeled.base, record.peeled.inner
    total = bound_of(base)
    if not base.has_enumerate_support:
        raise PlanError(
            message(
                "a latent of infinite discrete support cannot be summed",
                site=record.name,
                value=type(base).__name__,
                hint="a truncated version (Categorical over 0..K-1), or a continuous relaxation",
            )
        )
    event = tuple(base.event_shape)
    if total is not None:
        # Elements with a smaller total have no mass above it.
        dtype = total.dtype if total.is_floating_point() else torch.get_default_dtype()
        values = torch.arange(bound or 1 + int(total.max()), dtype=dtype, device=total.device)
    elif bound is not None and not event and not inner:
        values = torch.arange(bound, device=record.value.device)
    else:
        values = base.enumerate_support(expand=False)
        values = values.reshape((values.shape[0], *event))
    shape = tuple(record.fn.batch_shape)[len(record.fn.batch_shape) - folded :] if folded else ()
    shape += tuple(base.batch_shape[len(base.batch_shape) - inner :]) if inner else ()
    return _product(values, shape, record.name) if shape else values


def can_list(record: Record) -> bool:
    """Whether the values of one element of a discrete latent can be listed, whatever other latents are."""
    assert record.peeled is not None
    try:
        record.peeled.base.enumerate_support(expand=False)
    except NotImplementedError:
        return False
    return True


def _product(values: Tensor, shape: tuple[int, ...], name: str) -> Tensor:
    """All arrays of a shape whose elements are among given values."""
    count, event = math.prod(shape), tuple(values.shape[1:])
    if count * math.log(values.shape[0]) > math.log(MAX_PRODUCT) + 1e-9:
        raise PlanError(
            message(
                f"{count} discrete variables that depend on each other have {values.shape[0]}^{count} joint values",
                site=name,
                why=f"at most {MAX_PRODUCT} are enumerated as one latent",
                hint="a plate in place of .to_event if the elements are independent given the rest, fewer of them, "
                'or method="svi"',
            )
        )
    rows = torch.cartesian_prod(*[torch.arange(len(values))] * count).reshape(-1, count)
    return values[rows].reshape((len(rows), *shape, *event))
