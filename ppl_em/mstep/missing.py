"""Multivariate normals with missing elements: one step of exact EM, in closed form.

Reference:
    Little, R. & Rubin, D. (2002). Statistical Analysis with Missing Data, 2nd edition, section 11.2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.distributions.observed_normal import CHUNK, Patterns, conditional, standardised
from ppl_em.distributions.partly_observed import PartlyObservedNormal
from ppl_em.mstep.block import Argument, Block
from ppl_em.mstep.given import GivenSample
from ppl_em.mstep.multivariate import multivariate_normal
from ppl_em.mstep.normal import TINY
from ppl_em.mstep.part import flattened
from ppl_em.mstep.registry import weighted_mle
from ppl_em.mstep.sample import NoClosedForm, WeightedSample


@dataclass(frozen=True)
class Completed:
    """Expected statistics of completed data, by row, about each row's own mean.

    Args:
        count: (R,) total weight.
        centre: (R, D) the mean.
        first: (R, D) Σ w (E[x] − centre).
        second: (R, D) Σ w E[(x − centre)²].
        products: (R, D, D) Σ w E[(x − centre)(x − centre)ᵀ].
    """

    count: Tensor
    centre: Tensor
    first: Tensor
    second: Tensor
    products: Tensor
    histogram: Tensor | None = None


@weighted_mle.register(PartlyObservedNormal, exact="em")
def partly_observed_normal(sample: WeightedSample) -> None:
    """The rule of the multivariate normal on data whose missing elements are replaced by their expectations.

    The expectations E[x] and E[x xᵀ] given the observed elements are taken at the current arguments, row by row, so the
    likelihood of what is observed does not fall. Data without gaps make it the maximiser itself.
    """
    names = ("covariance_matrix", "precision_matrix", "scale_tril")
    matrix = next((n for n in names if n in sample.args), None)
    if matrix is None:
        raise NoClosedForm("a multivariate normal needs covariance_matrix, precision_matrix or scale_tril")
    loc, covariance = sample.rows("loc"), _covariance(matrix, sample.rows(matrix))
    blocks = [flattened(b, 1) for b in sample.blocks]
    given = [completed(b, loc[b.rows], covariance[b.rows]) for b in blocks]
    arguments = {}
    for name, argument in sample.args.items():
        arguments[name] = Argument(sample.rows(name), argument.cells, argument.pattern)
    inner = GivenSample(arguments, [b.rows for b in blocks], given, sample.num_rows, 1)
    multivariate_normal(inner)
    sample.proposals.update(inner.proposals)


def _covariance(name: str, value: Tensor) -> Tensor:
    """Covariance matrices (…, D, D) from the argument that the program gave."""
    if name == "covariance_matrix":
        return value
    return value @ value.mT if name == "scale_tril" else torch.cholesky_inverse(torch.linalg.cholesky(value))


@torch.no_grad()
def completed(block: Block, loc: Tensor, covariance: Tensor) -> Completed:
    """Expected statistics of one block.

    Args:
        block: weights (R, I), values (I, D) or (R, I, D) with NaN where missing.
        loc: (R, D) current means.
        covariance: (R, D, D) current covariances.
    """
    if not block.per_row(1):
        portions = list(_shared(block, loc, covariance))
        return _statistics(portions, loc)
    size = block.values.shape[1] * block.values.shape[2] ** 2
    rows = torch.arange(len(loc)).split(max(1, CHUNK // size))
    parts = [_statistics([_own(block, loc, covariance, r)], loc[r]) for r in rows]
    fields = ("count", "centre", "first", "second", "products")
    return Completed(*(torch.cat([getattr(p, f) for p in parts]) for f in fields))


#: Weights (R, i), completed data (R, i, D), and Σ_i w_ri Cov[x_i] (R, D, D).
Portion = tuple[Tensor, Tensor, Tensor]


def _statistics(portions: Sequence[Portion], loc: Tensor) -> Completed:
    """Moments about the weighted means of completed data; where nothing has weight, about ``loc`` (R, D)."""
    count = torch.stack([w.sum(1) for w, _, _ in portions]).sum(0)
    total = torch.stack([_weighted(w, x) for w, x, _ in portions]).sum(0)
    centre = torch.where(count[:, None] > TINY, total / count.clamp(min=TINY)[:, None], loc)
    first, products = torch.zeros_like(centre), torch.zeros(*centre.shape, centre.shape[1]).to(centre)
    for w, x, rest in portions:
        y = x - centre[:, None]
        first += _weighted(w, y)
        products += (w.unsqueeze(-1) * y).mT @ y + rest
    return Completed(count, centre, first, products.diagonal(dim1=-2, dim2=-1), products)


def _weighted(w: Tensor, x: Tensor) -> Tensor:
    """Σ_i w_ri x_ri, (R, D)."""
    return (w.unsqueeze(1) @ x).squeeze(1)


def _shared(block: Block, loc: Tensor, covariance: Tensor) -> Iterator[Portion]:
    """Data that all rows share, pattern by pattern: the regression on what is observed is the same for all of one."""
    weights, values = block.weights.double(), block.values.double()
    patterns = Patterns.of(values)
    for keep, members in zip(patterns.keep, patterns.members, strict=True):
        gain, rest = _regression(covariance, keep)
        w, x = weights[:, members], values[members]
        residual = torch.where(keep, x - loc[:, None], 0.0)
        filled = torch.where(keep, x, loc[:, None] + residual @ gain.mT)
        filled = torch.where((w > 0).unsqueeze(-1), filled, loc[:, None])  # what has no weight may hold anything
        yield w, filled, w.sum(1)[:, None, None] * rest


def _regression(covariance: Tensor, keep: Tensor) -> tuple[Tensor, Tensor]:
    """Coefficients (R, D, D) of all elements on the observed ones, and the covariance that remains (R, D, D)."""
    seen = keep.to(covariance.dtype)
    factor = torch.linalg.cholesky(standardised(covariance, keep))
    cross = covariance * seen
    gain = torch.cholesky_solve(cross.mT, factor).mT * seen
    white = torch.linalg.solve_triangular(factor, cross.mT, upper=False)
    rest = covariance - white.mT @ white
    hidden = 1 - seen
    return gain, (rest + rest.mT) / 2 * (hidden.unsqueeze(-1) * hidden)


def _own(block: Block, loc: Tensor, covariance: Tensor, rows: Tensor) -> Portion:
    """Some rows that have data of their own."""
    w, x = block.weights[rows].double(), block.values[rows].double()
    mean = loc[rows, None]
    filled, rest = conditional(mean, covariance[rows, None].expand(-1, x.shape[1], -1, -1), x)
    filled = torch.where((w > 0).unsqueeze(-1), filled, mean)
    return w, filled, torch.einsum("ri,ride->rde", w, rest)


def without_gaps(block: Block, event_dim: int) -> Block:
    """A block whose missing elements have no weight; elements that shared weights get their own.

    Args:
        block: of single elements (other blocks are returned as they are: their rule knows gaps).
        event_dim: number of event dimensions of a datum.
    """
    values = block.values
    if event_dim or not values.is_floating_point() or not bool(values.isnan().any()):
        return block
    flat = flattened(block, 0)
    wide = flat.values if flat.per_row(0) else flat.values.expand(flat.weights.shape)
    hidden = wide.isnan()
    usable = wide[~hidden]
    neutral = usable[0] if usable.numel() else torch.zeros((), dtype=wide.dtype)
    return Block(torch.where(hidden, 0.0, flat.weights), torch.where(hidden, neutral, wide), flat.rows)
