"""Multivariate normal: mean by generalised least squares, then the scatter in the covariance's structure."""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_em.mstep.normal import TINY, propose_location, settle
from ppl_em.mstep.registry import weighted_mle
from ppl_em.mstep.sample import NoClosedForm, WeightedSample

MAX_JOINT = 2000
"""Largest number of mean elements that are solved for jointly where ties couple components."""


@weighted_mle.register(dist.MultivariateNormal)
def multivariate_normal(sample: WeightedSample) -> None:
    """Set loc to the mean, the covariance to the scatter: full, block-diagonal, diagonal or isotropic.

    Reference: Anderson (2003), An Introduction to Multivariate Statistical Analysis, chapter 3; Celeux,
    Govaert (1995), Gaussian parsimonious clustering models.
    """
    names = ("covariance_matrix", "precision_matrix", "scale_tril")
    matrix = next((name for name in names if name in sample.args), None)
    if matrix is None:
        raise NoClosedForm("a multivariate normal needs covariance_matrix, precision_matrix or scale_tril")
    name = matrix

    def step() -> None:
        if sample.free("loc"):
            propose_mean(sample, _precision(name, sample.rows(name)))
        if sample.free(name):
            _propose_matrix(sample, name)

    settle(sample, step, outer=name)


def _precision(name: str, value: Tensor) -> Tensor:
    """Precision matrices (…, D, D) from the argument that the program gave."""
    if name == "precision_matrix":
        return value
    factor = value if name == "scale_tril" else torch.linalg.cholesky(value)
    return torch.cholesky_inverse(factor)


def propose_mean(sample: WeightedSample, precision: Tensor) -> None:
    """Propose loc by generalised least squares over its ties, given precisions by row (R, D, D)."""
    count, ties = sample.count(), sample.ties("loc")
    eye = torch.eye(precision.shape[-1], dtype=torch.float64, device=count.device)
    precision = precision / precision.diagonal(dim1=-2, dim2=-1).amax()
    diagonal = precision.diagonal(dim1=-2, dim2=-1)
    if not bool((precision - torch.diag_embed(diagonal)).any()):
        return propose_location(sample, diagonal, sample.residual, count[:, None])
    if ties.patterned:
        return _propose_mean_jointly(sample, precision)
    if ties.num_cells == sample.num_rows:
        precision = eye.expand_as(precision)
    weight = sample.pool("loc", count[:, None, None] * precision)
    weight[sample.mass("loc") < TINY] = eye
    for _ in range(2):  # the second step removes the rounding of a far start
        pull = torch.einsum("rde,re->rd", precision, sample.residual(sample.rows("loc")))
        step = torch.linalg.solve(weight, sample.pool("loc", pull))
        sample.propose("loc", sample.cell_values("loc") + step)


def _propose_mean_jointly(sample: WeightedSample, precision: Tensor) -> None:
    """Means whose elements are tied or fixed in any pattern: the normal equations of all free elements."""
    ties = sample.ties("loc")
    if ties.num_groups > MAX_JOINT:
        raise NoClosedForm(f"{ties.num_groups} tied mean elements couple the components")
    groups = ties.spread(ties.groups)
    left, right = torch.broadcast_tensors(groups[:, :, None], groups[:, None, :])
    both = (left >= 0) & (right >= 0)
    weight = (sample.count()[:, None, None] * precision)[both]
    size = ties.num_groups
    matrix = precision.new_zeros(size * size).index_add(0, left[both] * size + right[both], weight)
    matrix = matrix.view(size, size)
    empty = matrix.diagonal() < TINY
    matrix = matrix + torch.diag(empty.double())
    for _ in range(2):
        pull = torch.einsum("rde,re->rd", precision, sample.residual(sample.rows("loc")))
        step = torch.linalg.solve(matrix, ties.pool_elements(pull))
        old = ties.gather(sample.cell_values("loc"))
        sample.propose_elements("loc", old + torch.where(empty, 0.0, step))


def _propose_matrix(sample: WeightedSample, name: str) -> None:
    ties, old = sample.ties(name), sample.cell_values(name)
    size = old.shape[-1]
    eye = torch.eye(size, dtype=torch.bool, device=old.device)
    if bool((ties.fixed | eye).all()):
        if bool(old[:, ~eye].any()):
            raise NoClosedForm(f"off-diagonal elements of '{name}' are fixed at values other than zero")
        return _propose_diagonal(sample, name)
    free = ~ties.fixed
    lower = torch.ones_like(eye).tril()
    needed = free | free.mT if name == "scale_tril" else free
    linked = needed.double()
    if bool((((linked @ linked) > 0) & ~needed).any()) or not bool(needed[:, eye].all()):
        raise NoClosedForm(f"the free elements of '{name}' are neither a full, a block nor a diagonal matrix")
    if name == "scale_tril":
        free = needed & lower
    if bool(old[ties.fixed].any()):
        raise NoClosedForm(f"some elements of '{name}' are fixed at values other than zero")
    if ties.patterned and not _independent(ties.groups, needed if name != "scale_tril" else free, name):
        raise NoClosedForm(f"elements of '{name}' are tied within or between matrices")
    scatter = sample.pool(name, sample.outer(sample.rows("loc")))
    mass = sample.mass(name).clamp(min=TINY)[:, None, None]
    sample.propose(name, _as_argument(name, torch.where(needed, scatter / mass, 0.0), sample.mass(name) < TINY))


def _independent(groups: Tensor, free: Tensor, name: str) -> bool:
    """Whether free elements are distinct parameter elements, up to the symmetry of a covariance."""
    if name != "scale_tril":
        upper = torch.ones_like(free).triu(1)
        mirrored = bool((groups == groups.mT).all())
        free = free & ~upper if mirrored else free
    return torch.unique(groups[free]).numel() == int(free.sum())


def _as_argument(name: str, covariance: Tensor, empty: Tensor) -> Tensor:
    """Covariance matrices (C, D, D) as the argument that the program gave."""
    eye = torch.eye(covariance.shape[-1], dtype=torch.float64, device=covariance.device)
    covariance = torch.where(empty[:, None, None], eye, (covariance + covariance.mT) / 2)
    factor, info = torch.linalg.cholesky_ex(covariance)
    ridge = 1e-15
    while bool(info.any()) and ridge < 1e-3:
        # A scatter of deficient rank has no precision: the least ridge that has one keeps numbers finite.
        scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=TINY**0.5)
        ridge *= 10
        lift = torch.where(info > 0, ridge * scale, 0.0)[:, None, None] * eye
        covariance = covariance + lift
        factor, info = torch.linalg.cholesky_ex(covariance)
    if name == "covariance_matrix":
        return covariance
    return factor if name == "scale_tril" else torch.cholesky_inverse(factor)


def _propose_diagonal(sample: WeightedSample, name: str) -> None:
    """Variances by parameter element: isotropic, tied between components, or each by itself."""
    ties = sample.ties(name)
    squares = sample.deviation(sample.rows("loc"))
    count = sample.count()[:, None].expand_as(squares)
    total, mass = ties.pool_elements(torch.diag_embed(squares)), ties.pool_elements(torch.diag_embed(count))
    variance = (total / mass.clamp(min=TINY)).clamp(min=torch.finfo(sample.args[name].value.dtype).tiny)
    if name == "scale_tril":
        variance = variance.sqrt()
    elif name == "precision_matrix":
        variance = 1 / variance
    sample.propose_elements(name, variance)
