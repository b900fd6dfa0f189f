"""Multivariate normal vectors with missing elements: marginal densities and conditional moments.

Reference:
    Anderson, T. (2003). An Introduction to Multivariate Statistical Analysis, 3rd edition, section 2.5.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

#: Elements of the largest temporary.
CHUNK = 1 << 20
#: Patterns of gaps are worked through one by one where each has this many data on average, else datum by datum.
SHARED = 8
#: Vectors of more elements than this have patterns that are no 64-bit numbers.
BITS = 62


def observed_log_prob(loc: Tensor, covariance: Tensor, value: Tensor) -> Tensor:
    """Log-density of the observed sub-vectors, differentiable in the mean and the covariance.

    Args:
        loc: (*batch, D).
        covariance: (*batch, D, D).
        value: (*batch, D), NaN where missing.

    Returns:
        (*batch), shapes broadcast.
    """
    table = Table.of(loc, covariance, value)
    patterns = Patterns.of(table.value)
    if table.shared and len(patterns.keep) * SHARED <= len(table.value):
        found = _by_pattern(table.loc, table.covariance.squeeze(-3), table.value, patterns)
    else:
        found = _by_datum(table)
    return table.back(found, 0)


def conditional_mean(loc: Tensor, covariance: Tensor, value: Tensor) -> Tensor:
    """The value with its gaps filled by their means given the observed elements, (*batch, D).

    Args:
        loc, covariance, value: as for :func:`observed_log_prob`.
    """
    table = Table.of(loc, covariance, value)
    parts = [conditional(mean, cov, x)[0] for mean, cov, x in table.portions()]
    return table.back(torch.cat(parts, -2), 1)


@dataclass(frozen=True)
class Table:
    """Values in one row for each datum, means and covariances with the dimensions that no datum varies along in front.

    Args:
        loc: (*cells, I or 1, D).
        covariance: (*cells, I or 1, D, D).
        value: (I, D).
        batch: the shape that all broadcast to.
        order: which dimensions of the batch are the cells', then which are the data's.
        cells: how many of them are the cells'.
    """

    loc: Tensor
    covariance: Tensor
    value: Tensor
    batch: tuple[int, ...]
    order: tuple[int, ...]
    cells: int

    @classmethod
    def of(cls, loc: Tensor, covariance: Tensor, value: Tensor) -> Table:
        """Sort the dimensions of (*batch, D), (*batch, D, D) and (*batch, D)."""
        batch = tuple(torch.broadcast_shapes(value.shape[:-1], loc.shape[:-1], covariance.shape[:-2]))
        rank, size = len(batch), value.shape[-1]
        loc = loc.reshape((1,) * (rank + 1 - loc.dim()) + tuple(loc.shape))
        covariance = covariance.reshape((1,) * (rank + 2 - covariance.dim()) + tuple(covariance.shape))
        value = value.reshape((1,) * (rank + 1 - value.dim()) + tuple(value.shape))
        cells = [d for d in range(rank) if value.shape[d] == 1]
        data = [d for d in range(rank) if value.shape[d] > 1]
        order, sizes = (*cells, *data), [batch[d] for d in data]
        rows = value.permute(*order, rank).reshape(-1, size)
        loc = _joined(loc.permute(*order, rank), len(cells), sizes, 1)
        covariance = _joined(covariance.permute(*order, rank, rank + 1), len(cells), sizes, 2)
        return cls(loc, covariance, rows, batch, order, len(cells))

    @property
    def shared(self) -> bool:
        """Whether all data have the same covariance."""
        return self.covariance.shape[-3] == 1

    def portions(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Means, covariances and values of so many rows at a time that their matrices stay small."""
        size = self.value.shape[-1]
        cells = math.prod(torch.broadcast_shapes(self.loc.shape[:-2], self.covariance.shape[:-3]))
        step = max(1, CHUNK // max(1, cells * size * size))
        for start in range(0, len(self.value), step):
            x = self.value[start : start + step]
            mean, cov = (
                t if t.shape[axis] == 1 else t.narrow(axis, start, len(x))
                for t, axis in ((self.loc, -2), (self.covariance, -3))
            )
            yield mean, cov, x

    def back(self, found: Tensor, event_dim: int) -> Tensor:
        """(*cells, I, *event) in the order of the batch, (*batch, *event)."""
        shape = [self.batch[d] for d in self.order]
        event = tuple(found.shape[found.dim() - event_dim :])
        lead = shape[: self.cells]
        found = found.expand((*lead, len(self.value), *event)).reshape((*shape, *event))
        rank = len(self.batch)
        places = [self.order.index(d) for d in range(rank)]
        return found.permute(*places, *range(rank, rank + event_dim)) if rank else found


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
        there = ~value.isnan()
        if value.shape[1] <= BITS:  # a pattern as one number
            bits = torch.arange(value.shape[1], device=value.device)
            code, inverse, counts = torch.unique((there << bits).sum(1), return_inverse=True, return_counts=True)
            keep = (code[:, None] >> bits) % 2 == 1
        else:
            keep, inverse, counts = torch.unique(there, dim=0, return_inverse=True, return_counts=True)
        return cls(keep, tuple(inverse.argsort(stable=True).split(counts.tolist())))


def _by_pattern(loc: Tensor, covariance: Tensor, value: Tensor, patterns: Patterns) -> Tensor:
    """(…, I) for few patterns: one factorisation for each; loc (…, I or 1, D), covariance (…, D, D)."""
    parts, cells = [], torch.broadcast_shapes(loc.shape[:-2], covariance.shape[:-2])
    for keep, members in zip(patterns.keep, patterns.members, strict=True):
        seen = keep.nonzero()[:, 0]
        mean = loc[..., seen] if loc.shape[-2] == 1 else loc[..., members, :][..., seen]
        residual = value[members][:, seen] - mean
        if not len(seen):
            parts.append(residual.sum(-1).expand(*cells, len(members)))
            continue
        factor = torch.linalg.cholesky(covariance[..., seen, :][..., seen])
        white = torch.linalg.solve_triangular(factor, residual.mT, upper=False)
        parts.append(_normal_log_density(white.square().sum(-2), factor.unsqueeze(-3), torch.tensor(len(seen))))
    back = torch.cat(patterns.members).argsort()
    return torch.cat(parts, -1)[..., back]


def _by_datum(table: Table) -> Tensor:
    """(…, I) where nearly every datum has a pattern of its own: the missing part is replaced by standard normals."""
    parts = []
    for mean, cov, x in table.portions():
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
