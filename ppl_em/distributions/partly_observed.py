"""Densities of vectors with gaps: what is not a number (NaN) was not observed, and is integrated out.

Reference:
    Little, R. & Rubin, D. (2002). Statistical Analysis with Missing Data, 2nd edition, chapters 7 and 11.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import transform_to

from ppl_em.distributions.compound import Compound, MixtureOf, compound_family
from ppl_em.distributions.observed_normal import observed_log_prob


class PartlyObservedNormal(dist.MultivariateNormal):
    """A multivariate normal whose values may have gaps (NaN): the density is that of the observed sub-vector.

    Example:
        >>> normal = PartlyObservedNormal(torch.zeros(2), covariance_matrix=torch.eye(2))
        >>> gap = normal.log_prob(torch.tensor([1.0, torch.nan]))
        >>> bool(torch.isclose(gap, dist.Normal(0.0, 1.0).log_prob(torch.tensor(1.0))))
        True
    """

    @classmethod
    def like(cls, fn: Any) -> PartlyObservedNormal:
        """The same distribution for values with gaps.

        Args:
            fn: a multivariate normal.
        """
        new = cls.__new__(cls)
        new.__dict__.update(fn.__dict__)
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of the observed part of each vector, 0 where nothing is observed.

        Args:
            value: (*batch, D), NaN where missing.
        """
        if not bool(value.isnan().any()):
            return super().log_prob(value)
        factor = self._unbroadcasted_scale_tril
        return observed_log_prob(self.loc, factor @ factor.mT, value)


class PartlyObservedMixture(MixtureOf):
    """A finite mixture of vectors with gaps: each component's density is that of the observed elements."""

    def _score(self, name: str, value: Tensor) -> Tensor:
        """Log-density under one part, elements that are missing left out."""
        hidden = value.isnan() if value.is_floating_point() else None
        if name != "component" or hidden is None or not self.reinterpreted or not bool(hidden.any()):
            return super()._score(name, value)
        part = self.part(name)
        log_prob = part.log_prob(torch.where(hidden, stand_in(value, part), value))
        return torch.where(hidden, 0.0, log_prob).sum(tuple(range(-self.reinterpreted, 0)))


def admits_gaps(fn: Any, family: type) -> bool:
    """Whether single elements of a distribution's events may be missing.

    Args:
        fn: a distribution without wrappers, events of at least one dimension.
        family: its class, or that of all distributions that are put together like it.
    """
    if type(fn).__name__ == "MultivariateNormal":
        return True
    if not isinstance(family, type) or not issubclass(family, MixtureOf):
        return False
    component = family.parts["component"]
    plain = getattr(component.support, "event_dim", 1) == 0 if hasattr(component, "support") else False
    normal = component.__name__ in ("MultivariateNormal", "PartlyObservedNormal")
    return (bool(family.reinterpreted) and plain) or (normal and not family.reinterpreted)


def with_gaps(family: type) -> type:
    """The family of the same distributions for values with gaps; the family itself where it knows none."""
    if family.__name__ == "MultivariateNormal":
        return PartlyObservedNormal
    if not issubclass(family, MixtureOf) or issubclass(family, PartlyObservedMixture):
        return family
    parts = {n: with_gaps(p) if n == "component" else p for n, p in family.parts.items()}
    declared: Any = family.arg_constraints
    name = family.__name__.split("[")[0]
    return compound_family(
        PartlyObservedMixture, name, tuple(parts.items()), tuple(declared.items()), family.reinterpreted
    )


def mixture_with_gaps(fn: Any, family: type[Compound], arguments: dict[str, Tensor]) -> Any:
    """A mixture as a distribution for values with gaps, batch and event shape those of ``fn``."""
    made: Any = with_gaps(family)(**arguments)
    made._batch_shape, made._event_shape = fn.batch_shape, fn.event_shape
    return made


def stand_in(value: Tensor, fn: Any) -> Tensor:
    """A harmless value for each missing element: a typical one of its own column, always inside the support.

    Args:
        value: (…, columns) with NaN where missing.
        fn: distribution of single elements.

    Returns:
        Broadcastable to ``value``.
    """
    width = value.shape[-1] if value.dim() > 1 else 1
    rows = value.detach().reshape(-1, width)
    column = rows.nanmedian(0).values
    column = torch.where(column.isnan(), rows.reshape(-1).nanmedian(), column)
    column = column if value.dim() > 1 else column[0]
    support = _support(fn)
    neutral = _neutral(support, value)
    column = torch.where(column.isnan(), neutral, column)
    if support is None:
        return column
    wide = column.expand(value.shape)
    return torch.where(_inside(support, wide), wide, neutral)


def without_gaps(value: Tensor, fn: Any = None) -> Tensor:
    """A value with typical numbers in its gaps, where something has to be computed from all elements.

    Args:
        value: (…, columns), NaN where missing.
        fn: its distribution, which says what is inside the support.
    """
    hidden = value.isnan()
    if not bool(hidden.any()):
        return value
    single = isinstance(fn, PartlyObservedMixture) and fn.reinterpreted
    return torch.where(hidden, stand_in(value, fn.part("component") if single else None), value)


def _support(fn: Any) -> Any:
    try:
        return fn.support
    except (NotImplementedError, AttributeError):
        return None


def _inside(support: Any, value: Tensor) -> Tensor:
    inside = support.check(value)
    return inside if inside.shape == value.shape else torch.ones_like(value, dtype=torch.bool)


def _neutral(support: Any, like: Tensor) -> Tensor:
    """A value in the interior of a support where that can be told, else zero."""
    zero = torch.zeros((), dtype=like.dtype, device=like.device)
    if support is None or getattr(support, "is_discrete", False):
        lower = getattr(support, "lower_bound", None)
        return lower.to(zero) if isinstance(lower, Tensor) else zero + (lower or 0)
    try:
        return transform_to(support)(zero)  # pyright: ignore[reportReturnType]
    except (NotImplementedError, RuntimeError, ValueError, AttributeError):
        return zero


__all__ = [
    "PartlyObservedMixture",
    "PartlyObservedNormal",
    "admits_gaps",
    "mixture_with_gaps",
    "stand_in",
    "with_gaps",
    "without_gaps",
]
