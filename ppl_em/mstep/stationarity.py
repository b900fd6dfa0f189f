"""First-order conditions of a proposal: they prove a rule's closed form and refuse a wrong one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_em.mstep.constraint import bounds, constraint_of
from ppl_em.mstep.density import log_likelihood_terms
from ppl_em.mstep.registry import weighted_mle
from ppl_em.mstep.sample import WeightedSample

NUDGE = 4 * torch.finfo(torch.float64).eps
"""Elements on the boundary are judged this far inside it: the condition there is one-sided."""

EDGE = 1e-10
"""Elements this close to the boundary are judged by complementarity: distance times slope."""


@dataclass(frozen=True)
class Derivatives:
    """Q's derivatives with respect to one argument by cell.

    Attributes:
        value: (C, *arg_event) where they were taken.
        gradient: (C, *arg_event).
        curvature: (C, *arg_event) size of the Hessian's row of each element.
        nudged: (C, *arg_event) elements that lie on the boundary of the constraint.
    """

    value: Tensor
    gradient: Tensor
    curvature: Tensor
    nudged: Tensor


def stationarity(sample: WeightedSample, family: type) -> float:
    """Largest scaled Karush–Kuhn–Tucker residual of the sample's current proposals.

    Residuals are free of units: about 0.01 where a scale or a probability is off by one per cent, or where a
    location is off by one per cent of its natural scale (the inverse root of the information in one datum);
    at a maximum they are rounding, below 1e-8.

    Args:
        sample: the sample after a rule has proposed.
        family: the distribution class.

    Returns:
        The largest residual over all free arguments, infinite where a derivative is not finite.

    Example:
        >>> import pyro.distributions as dist
        >>> from ppl_em.mstep.block import Argument, Block
        >>> rate = Argument(torch.ones(1), torch.tensor([0]))
        >>> block = Block(torch.ones(1, 3), torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0]))
        >>> sample = WeightedSample({"rate": rate}, (block,), num_rows=1)
        >>> weighted_mle[dist.Poisson](sample)
        >>> stationarity(sample, dist.Poisson) < 1e-12
        True
    """
    return max((float(r.max()) for r in residuals(sample, family).values() if r.numel()), default=0.0)


def residuals(sample: WeightedSample, family: type) -> dict[str, Tensor]:
    """Scaled residuals of each free argument by parameter element (G,), or by element of its matrices."""
    known = family in weighted_mle
    special = weighted_mle[family].residuals if known else {}
    ceilings = weighted_mle[family].ceilings if known else {}
    names = [name for name in sample.args if sample.free(name)]
    derivatives = _derivatives(sample, family, names) if names else {}
    result = {}
    for name in names:
        if name in special:
            residual = special[name](sample)
        else:
            if name in ceilings:
                _stop_at(ceilings[name], derivatives[name])
            residual = _residual(sample, name, constraint_of(family, name), derivatives[name])
        result[name] = torch.nan_to_num(residual, nan=torch.inf, posinf=torch.inf)
    return result


def _derivatives(sample: WeightedSample, family: type, names: list[str]) -> dict[str, Derivatives]:
    """Gradients and row sizes of the Hessian, added up over bounded portions of the data."""
    fixed = {name: sample.rows(name) for name in sample.args if name not in names}
    leaves, nudged = {}, {}
    for name in names:
        value = sample.cell_values(name)
        lower, upper = bounds(constraint_of(family, name))
        nudged[name] = ((value <= lower) | (value >= upper)) & ~sample.ties(name).fixed
        inside = value.clamp(lower + NUDGE, upper - NUDGE)
        leaves[name] = torch.where(nudged[name], inside, value).requires_grad_()
    variables = list(leaves.values())
    generator = torch.Generator().manual_seed(0)
    probes = [[torch.randn(v.shape, generator=generator).to(v) for v in variables] for _ in range(2)]
    gradient = [torch.zeros_like(v) for v in variables]
    products = [[torch.zeros_like(v) for v in variables] for _ in probes]
    with torch.enable_grad():
        for term in log_likelihood_terms(sample.blocks, sample.event_dim, family):
            rows = {name: sample.spread(name, leaf) for name, leaf in leaves.items()}
            first = torch.autograd.grad(term({**fixed, **rows}), variables, create_graph=True)
            for total, part in zip(gradient, first, strict=True):
                total += part.detach()
            for product, probe in zip(products, probes, strict=True):
                _add_product(product, first, probe, variables)
    curvature = [torch.stack(pair).abs().amax(0) for pair in zip(*products, strict=True)]
    return {
        name: Derivatives(leaves[name].detach(), g, h, nudged[name])
        for name, g, h in zip(names, gradient, curvature, strict=True)
    }


def _add_product(total: list[Tensor], first: tuple[Tensor, ...], probe: list[Tensor], variables: list[Tensor]) -> None:
    """Add the product of the Hessian's diagonal blocks with a probe to ``total``, argument by argument."""
    for index, (gradient, direction, variable) in enumerate(zip(first, probe, variables, strict=True)):
        if gradient.requires_grad:
            (part,) = torch.autograd.grad((gradient * direction).sum(), variable, retain_graph=True, allow_unused=True)
            if part is not None:
                total[index] += part


def _stop_at(ceiling: float, at: Derivatives) -> None:
    """Forget the slope of elements that would rise beyond their ceiling."""
    at.gradient[(at.value >= ceiling * (1 - 1e-12)) & (at.gradient > 0)] = 0.0


def _residual(sample: WeightedSample, name: str, constraint: Any, at: Derivatives) -> Tensor:
    ties = sample.ties(name)
    mass = sample.mass(name).clamp(min=1e-250).reshape((-1,) + (1,) * ties.arg_dim)
    if constraint is constraints.simplex:
        probs = at.value.clamp(min=NUDGE)
        level = (at.value * at.gradient).sum(-1, keepdim=True) / at.value.sum(-1, keepdim=True)
        excess = probs * (at.gradient - level)
        return ties.pool_cells(excess).abs() / ties.pool_cells(mass).clamp(min=1e-250)
    if constraint in (constraints.positive_definite, constraints.lower_cholesky):
        return _matrix_residual(sample, name, constraint is constraints.lower_cholesky, at, mass)
    total = ties.pool_elements(sample.count().reshape((-1,) + (1,) * ties.arg_dim)).clamp(min=1e-250)
    gradient = ties.pool_cells(at.gradient).abs()
    curvature = torch.nan_to_num(ties.pool_cells(at.curvature), nan=0.0, posinf=0.0)
    # The distance to the maximum in units of one datum's standard error.
    distance = gradient / (total * curvature).sqrt()
    lower, upper = bounds(constraint)
    room = torch.minimum(at.value - lower, upper - at.value)
    room = ties.gather(torch.where(room.isinf(), 1.0, room))
    edge = (ties.gather(at.nudged.double()) > 0) | (curvature <= 0) | (room < EDGE)
    residual = torch.where(edge, gradient * room / total, distance)
    return torch.where(gradient == 0, 0.0, residual)


def _matrix_residual(sample: WeightedSample, name: str, triangular: bool, at: Derivatives, mass: Tensor) -> Tensor:
    """Gradient with respect to a covariance, precision or Cholesky factor in the matrix's own units."""
    ties = sample.ties(name)
    factor = at.value if triangular else torch.linalg.cholesky(at.value)
    gradient = at.gradient.tril() if triangular else (at.gradient + at.gradient.mT) / 2
    lower = torch.ones_like(gradient[0], dtype=torch.bool).tril() & ~ties.fixed
    if ties.groups[lower].unique().numel() == int(lower.sum()):
        gradient = torch.where(ties.fixed, 0.0, gradient)
        whitened = factor.mT @ gradient if triangular else factor.mT @ gradient @ factor
        return ((whitened.tril() if triangular else whitened) / mass).abs()
    norm = factor.square().sum(-1).sqrt()
    unit = norm[:, :, None] if triangular else norm[:, :, None] * norm[:, None, :]
    return ties.pool_cells(gradient * unit).abs() / ties.pool_cells(mass)
