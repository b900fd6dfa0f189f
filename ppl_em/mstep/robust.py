"""Heavy-tailed families: the Laplace location is a weighted median, Student's t a mixture over scales."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_em.mstep.inner import newton_rule
from ppl_em.mstep.normal import TINY, propose_location, root_mean, settle
from ppl_em.mstep.registry import weighted_mle
from ppl_em.mstep.sample import WeightedSample


def weighted_median(weights: Tensor, x: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """Lower weighted median of the data of each cell, (C,); arbitrary for cells without data.

    Args:
        weights: (M,) positive.
        x: (M,) data.
        cell: (M,) cell of each datum.
        num_cells: C.
    """
    order = torch.argsort(x, stable=True)
    order = order[torch.argsort(cell[order], stable=True)]
    total = weights.new_zeros(num_cells).index_add(0, cell, weights)
    # Shares of the own cell, so that light cells are not lost beside heavy ones.
    reached = (weights / total[cell])[order].cumsum(0)
    size = torch.bincount(cell, minlength=num_cells)
    start = size.cumsum(0) - size
    before = torch.where(start > 0, reached[(start - 1).clamp(min=0)], 0.0)
    sorted_cell = cell[order]
    half = reached - before[sorted_cell] >= 0.5 - 1e-14 * num_cells
    position = torch.arange(len(x), device=x.device)
    first = position.new_full((num_cells,), len(x) - 1)
    first = first.scatter_reduce(0, sorted_cell[half], position[half], "amin")
    return x[order][first]


def _laplace_loc_residual(sample: WeightedSample) -> Tensor:
    """How far zero is outside the subdifferential of Σ w |x − loc| / scale, as a share of the weight."""
    weights, x, row = sample.flat()
    cell = sample.ties("loc").cells[row]
    weights = weights / sample.rows("scale")[row]
    side = (x - sample.rows("loc")[row]).sign()
    zeros = weights.new_zeros(sample.ties("loc").num_cells)
    pull = zeros.index_add(0, cell, weights * side)
    slack = zeros.index_add(0, cell, weights * (side == 0))
    total = zeros.index_add(0, cell, weights)
    return (pull.abs() - slack).clamp(min=0.0) / total.clamp(min=TINY)


@weighted_mle.register(dist.Laplace, residuals={"loc": _laplace_loc_residual})
def laplace(sample: WeightedSample) -> None:
    """Set loc to the weighted median, scale to the mean absolute deviation."""
    weights, x, row = sample.flat()

    def step() -> None:
        if sample.free("loc"):
            ties, scale = sample.ties("loc"), sample.rows("scale")
            relative = weights * (scale.min() / scale)[row]
            sample.propose("loc", weighted_median(relative, x, ties.cells[row], ties.num_cells))
        if sample.free("scale"):
            distance = (x - sample.rows("loc")[row]).abs()
            by_row = distance.new_zeros(sample.num_rows).index_add(0, row, weights * distance)
            mean = sample.pool("scale", by_row) / sample.mass("scale").clamp(min=TINY)
            sample.propose("scale", mean.clamp(min=torch.finfo(sample.args["scale"].value.dtype).tiny))

    if len(x):
        settle(sample, step, outer="scale")


NORMAL_ENOUGH = 1e5
"""Largest degrees of freedom: data with light tails have no most likely number."""
_fit_student_t = newton_rule(dist.StudentT, {"df": NORMAL_ENOUGH})


@weighted_mle.register(dist.StudentT, exact="newton", ceilings={"df": NORMAL_ENOUGH})
def student_t(sample: WeightedSample) -> None:
    """Ascend by EM over the latent scales of the data, then by Newton's method to the nearest maximum.

    The likelihood may have several maxima; the one that is reached is not below the start.

    Reference: Liu, Rubin (1995), ML estimation of the t distribution using EM and its extensions.
    """
    weights, x, row = sample.flat()

    def by_row(values: Tensor) -> Tensor:
        return values.new_zeros(sample.num_rows).index_add(0, row, values)

    for _ in range(5):
        loc, scale, df = (sample.rows(name)[row] for name in ("loc", "scale", "df"))
        precision = weights * (df + 1) / (df + ((x - loc) / scale).square())
        mass = by_row(precision)
        residual: Callable[[Tensor], Tensor] = lambda at, p=precision: by_row(p * (x - at[row]))  # noqa: E731
        if sample.free("loc"):
            own = sample.rows("scale")
            propose_location(sample, (own / own.max()).clamp(min=1e-150).pow(-2), residual, mass)
        if sample.free("scale"):
            squares = by_row(precision * (x - sample.rows("loc")[row]).square())
            sample.propose_elements("scale", root_mean(sample, "scale", squares))
    _fit_student_t(sample)


for _family in (dist.Cauchy, dist.HalfCauchy, dist.Logistic, dist.SoftLaplace, dist.Gumbel):
    weighted_mle.register(_family, exact="newton")(newton_rule(_family))
