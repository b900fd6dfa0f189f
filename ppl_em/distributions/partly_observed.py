"""Densities of vectors with gaps: what is not a number (NaN) was not observed, and is integrated out.

Reference:
    Little, R. & Rubin, D. (2002). Statistical Analysis with Missing Data, 2nd edition, chapters 7 and 11.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import transform_to

from ppl_em.distributions.compound import Compound, MixtureOf, compound_family

#: Elements of the largest temporary.
CHUNK = 1 << 20
#: Patterns of gaps are worked through one by one where each has this many data on average, else datum by datum.
SHARED = 8


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


# multivariate normal ---------------------------------------------------------------------------------------------


def observed_log_prob(loc: Tensor, covariance: Tensor, value: Tensor) -> Tensor:
    """Log-density of the observed sub-vectors, differentiable in the mean and the covariance.

    Args:
        loc: (*batch, D).
        covariance: (*batch, D, D).
        value: (*batch, D), NaN where missing.

    Returns:
        (*batch), shapes broadcast.
    """
    batch = torch.broadcast_shapes(value.shape[:-1], loc.shape[:-1], covariance.shape[:-2])
    rank, size = len(batch), value.shape[-1]
    loc = loc.reshape((1,) * (rank + 1 - loc.dim()) + tuple(loc.shape))
    covariance = covariance.reshape((1,) * (rank + 2 - covariance.dim()) + tuple(covariance.shape))
    value = value.reshape((1,) * (rank + 1 - value.dim()) + tuple(value.shape))
    data = [d for d in range(rank) if value.shape[d] > 1]
    cells = [d for d in range(rank) if value.shape[d] == 1]
    order = (*cells, *data)
    sizes = [batch[d] for d in data]
    value = value.permute(*order, rank).reshape(-1, size)
    loc = _joined(loc.permute(*order, rank), len(cells), sizes, 1)
    covariance = _joined(covariance.permute(*order, rank, rank + 1), len(cells), sizes, 2)
    patterns = Patterns.of(value)
    if covariance.shape[len(cells)] == 1 and len(patterns.keep) * SHARED <= len(value):
        found = _by_pattern(loc, covariance.squeeze(len(cells)), value, patterns)
    else:
        found = _by_datum(loc, covariance, value)
    shape = [batch[d] for d in cells]
    found = found.expand((*shape, len(value))).reshape((*shape, *sizes))
    back = [order.index(d) for d in range(rank)]
    return found.permute(back) if rank else found.reshape(())


def _joined(tensor: Tensor, cells: int, sizes: list[int], right: int) -> Tensor:
    """Data dimensions, which follow the cells', as one: of size 1 where nothing varies along them."""
    lead, rest = tuple(tensor.shape[:cells]), tuple(tensor.shape[tensor.dim() - right :])
    if all(n == 1 for n in tensor.shape[cells : tensor.dim() - right]):
        return tensor.reshape(*lead, 1, *rest)
    return tensor.expand(*lead, *sizes, *rest).reshape(*lead, math.prod(sizes), *rest)


@dataclass(frozen=True)
class Patterns:
    """Which elements of each datum are observed.

    Args:
        keep: (P, D) the distinct patterns, True where observed.
        members: positions of the data of each pattern.
    """

    keep: Tensor
    members: tuple[Tensor, ...]

    @classmethod
    def of(cls, value: Tensor) -> Patterns:
        """The patterns of (I, D) values with NaN where missing."""
        keep, inverse, counts = torch.unique(~value.isnan(), dim=0, return_inverse=True, return_counts=True)
        return cls(keep, tuple(inverse.argsort(stable=True).split(counts.tolist())))


def _by_pattern(loc: Tensor, covariance: Tensor, value: Tensor, patterns: Patterns) -> Tensor:
    """(…, I) for few patterns: one factorisation for each; loc (…, I or 1, D), covariance (…, D, D)."""
    parts = []
    for keep, members in zip(patterns.keep, patterns.members, strict=True):
        seen = keep.nonzero()[:, 0]
        mean = loc[..., seen] if loc.shape[-2] == 1 else loc[..., members, :][..., seen]
        residual = value[members][:, seen] - mean
        if not len(seen):
            parts.append(residual.sum(-1).expand(*covariance.shape[:-2], len(members)))
            continue
        factor = torch.linalg.cholesky(covariance[..., seen, :][..., seen])
        white = torch.linalg.solve_triangular(factor, residual.mT, upper=False)
        parts.append(_normal_log_density(white.square().sum(-2), factor.unsqueeze(-3), torch.tensor(len(seen))))
    back = torch.cat(patterns.members).argsort()
    return torch.cat(parts, -1)[..., back]


def _by_datum(loc: Tensor, covariance: Tensor, value: Tensor) -> Tensor:
    """(…, I) where nearly every datum has a pattern of its own: the missing part is replaced by standard normals."""
    size = value.shape[-1]
    cells = math.prod(torch.broadcast_shapes(loc.shape[:-2], covariance.shape[:-3]))
    step = max(1, CHUNK // max(1, cells * size * size))
    parts = []
    for start in range(0, len(value), step):
        x = value[start : start + step]
        mean, cov = (
            t if t.shape[axis] == 1 else t.narrow(axis, start, len(x)) for t, axis in ((loc, -2), (covariance, -3))
        )
        keep = ~x.isnan()
        factor = torch.linalg.cholesky(standardised(cov, keep))
        residual = torch.where(keep, x - mean, 0.0)
        white = torch.linalg.solve_triangular(factor, residual.unsqueeze(-1), upper=False)
        parts.append(_normal_log_density(white.square().sum((-2, -1)), factor, keep.sum(-1)))
    return torch.cat(parts, -1)


def _normal_log_density(square: Tensor, factor: Tensor, count: Tensor) -> Tensor:
    log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    return -0.5 * (square + count.to(square.dtype) * math.log(2 * math.pi)) - log_det


def standardised(covariance: Tensor, keep: Tensor) -> Tensor:
    """Covariances (…, D, D) of vectors whose missing elements are independent standard normals.

    Args:
        covariance: (…, D, D).
        keep: (…, D) True where observed.
    """
    k = keep.to(covariance.dtype)
    return covariance * (k.unsqueeze(-1) * k.unsqueeze(-2)) + torch.diag_embed(1 - k)


def conditional(loc: Tensor, covariance: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the missing elements given the observed ones.

    Args:
        loc: (…, D).
        covariance: (…, D, D).
        value: (…, D), NaN where missing.

    Returns:
        The value with its gaps filled by their conditional means, and the conditional covariance (…, D, D), zero in the
        rows and columns of observed elements.
    """
    keep = ~value.isnan()
    seen = keep.to(covariance.dtype)
    factor = torch.linalg.cholesky(standardised(covariance, keep))
    residual = torch.where(keep, value - loc, 0.0)
    cross = covariance * seen.unsqueeze(-2)  # of all elements with the observed ones
    mean = loc + (cross @ torch.cholesky_solve(residual.unsqueeze(-1), factor)).squeeze(-1)
    white = torch.linalg.solve_triangular(factor, cross.mT, upper=False)
    rest = covariance - white.mT @ white
    hidden = 1 - seen
    rest = (rest + rest.mT) / 2 * (hidden.unsqueeze(-1) * hidden.unsqueeze(-2))
    return torch.where(keep, value, mean), rest


__all__ = [
    "PartlyObservedMixture",
    "PartlyObservedNormal",
    "Patterns",
    "admits_gaps",
    "conditional",
    "mixture_with_gaps",
    "observed_log_prob",
    "stand_in",
    "standardised",
    "with_gaps",
    "without_gaps",
]
