"""Conjugate posteriors as distributions, and where their densities are largest.

Reference:
    Gelman, A. et al. (2013). Bayesian Data Analysis, 3rd edition, appendix A.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import pyro.distributions as dist
import torch
from torch import Tensor

Space = Literal["constrained", "unconstrained"]


def canonical(prior: Any) -> Any:
    """A prior as a member of the conjugate family that it belongs to.

    Args:
        prior: a distribution without wrappers.

    Returns:
        A Beta, Dirichlet, Gamma, InverseGamma, Normal, MultivariateNormal or Wishart distribution with float64
        arguments, or None where the prior is no member of these.

    Example:
        >>> canonical(dist.Uniform(0.0, 1.0))
        Beta()
        >>> canonical(dist.Cauchy(0.0, 1.0)) is None
        True
    """
    name = type(prior).__name__
    if name == "Exponential":
        return dist.Gamma(torch.ones_like(prior.rate).double(), prior.rate.double(), validate_args=False)
    if name == "Chi2":
        return dist.Gamma(prior.df.double() / 2, torch.full_like(prior.df, 0.5).double(), validate_args=False)
    if name == "Uniform":
        unit = bool((prior.low == 0).all()) and bool((prior.high == 1).all())
        one = torch.ones_like(prior.low).double()
        return dist.Beta(one, one, validate_args=False) if unit else None
    make = _CANONICAL.get(name)
    return None if make is None else make(prior)


_CANONICAL: Mapping[str, Callable[[Any], Any]] = {
    "Beta": lambda p: dist.Beta(p.concentration1.double(), p.concentration0.double(), validate_args=False),
    "Dirichlet": lambda p: dist.Dirichlet(p.concentration.double(), validate_args=False),
    "Gamma": lambda p: dist.Gamma(p.concentration.double(), p.rate.double(), validate_args=False),
    "InverseGamma": lambda p: dist.InverseGamma(p.concentration.double(), p.rate.double(), validate_args=False),
    "Normal": lambda p: dist.Normal(p.loc.double(), p.scale.double(), validate_args=False),
    "MultivariateNormal": lambda p: dist.MultivariateNormal(
        p.loc.double(), scale_tril=p.scale_tril.double(), validate_args=False
    ),
    "Wishart": lambda p: dist.Wishart(p.df.double(), scale_tril=p.scale_tril.double(), validate_args=False),
}


def as_vectors(prior: Any) -> Any:
    """Independent normal elements as one multivariate normal over the last dimension."""
    return dist.MultivariateNormal(prior.loc, scale_tril=torch.diag_embed(prior.scale), validate_args=False)


def posterior(prior: Any, message: Mapping[str, Tensor]) -> Any:
    """The prior updated by what the data add to its hyperparameters: a distribution of the same family.

    Args:
        prior: as :func:`canonical` gives it, batch shape B.
        message: additions by name, each (*B, *entry), see :data:`ppl_em.mstep.conjugate.ENTRIES`.

    Example:
        >>> heads = posterior(dist.Beta(2.0, 2.0), {"successes": torch.tensor(6.0), "failures": torch.tensor(3.0)})
        >>> float(heads.concentration1), float(heads.concentration0)
        (8.0, 5.0)
    """
    return _UPDATES[type(prior).__name__](prior, message)


def _beta(prior: Any, m: Mapping[str, Tensor]) -> Any:
    won, lost = prior.concentration1 + m["successes"], prior.concentration0 + m["failures"]
    return dist.Beta(won, lost, validate_args=False)


def _gamma_like(family: Any) -> Callable[[Any, Mapping[str, Tensor]], Any]:
    def update(prior: Any, m: Mapping[str, Tensor]) -> Any:
        rate = prior.rate + m["rate"]
        return family(prior.concentration + m["concentration"], rate, validate_args=False)

    return update


def _normal(prior: Any, m: Mapping[str, Tensor]) -> Any:
    own = prior.scale.pow(-2)
    precision = own + m["precision"]
    # About the prior's mean, so that a vague prior far from the data costs no digits.
    loc = prior.loc + (m["shift"] - m["precision"] * prior.loc) / precision
    return dist.Normal(loc, precision.rsqrt(), validate_args=False)


def _vector_normal(prior: Any, m: Mapping[str, Tensor]) -> Any:
    precision = torch.cholesky_inverse(prior.scale_tril) + m["precision"]
    pull = m["shift"] - torch.einsum("...de,...e->...d", m["precision"], prior.loc)
    loc = prior.loc + torch.linalg.solve(precision, pull[..., None])[..., 0]
    return dist.MultivariateNormal(loc, precision_matrix=(precision + precision.mT) / 2, validate_args=False)


def _wishart(prior: Any, m: Mapping[str, Tensor]) -> Any:
    inverse = torch.cholesky_inverse(prior.scale_tril) + m["scatter"]
    covariance = torch.cholesky_inverse(torch.linalg.cholesky((inverse + inverse.mT) / 2))
    return dist.Wishart(prior.df + m["df"], covariance_matrix=covariance, validate_args=False)


_UPDATES: Mapping[str, Callable[[Any, Mapping[str, Tensor]], Any]] = {
    "Beta": _beta,
    "Dirichlet": lambda p, m: dist.Dirichlet(p.concentration + m["counts"], validate_args=False),
    "Gamma": _gamma_like(dist.Gamma),
    "InverseGamma": _gamma_like(dist.InverseGamma),
    "Normal": _normal,
    "MultivariateNormal": _vector_normal,
    "Wishart": _wishart,
}


def mode(
    posterior: Any, floor: Tensor | float = 0.0, space: Space = "constrained", ceiling: Tensor | float | None = None
) -> Tensor:
    """Where the density is largest among values at least ``floor`` away from the boundary.

    A density that is unbounded at the boundary (a concentration below one) has its largest value at the floor; one that
    is bounded has the mode of the textbooks, on the boundary included.

    Args:
        posterior: of a family that :func:`canonical` gives.
        floor: least distance of each element from the boundary, (*batch, *event) or a number.
        ceiling: of a Beta, the least distance from one; None takes ``floor``.
        space: whose density: of the values as the program draws them, or of their unconstrained coordinates
            (``torch.distributions.biject_to``), where the Jacobian counts and these families have an interior mode.

    Returns:
        The mode, (*batch, *event).

    Example:
        >>> mode(dist.Dirichlet(torch.tensor([2.5, 3.5])))
        tensor([0.3750, 0.6250])
        >>> mode(dist.Dirichlet(torch.tensor([0.5, 5.5])), floor=1e-6)
        tensor([1.0000e-06, 1.0000e+00])
        >>> mode(dist.Dirichlet(torch.tensor([0.5, 5.5])), space="unconstrained")
        tensor([0.0833, 0.9167])
    """
    free = 1.0 if space == "unconstrained" else 0.0  # the Jacobian adds one to each exponent
    name = type(posterior).__name__
    if name in ("Normal", "MultivariateNormal"):
        return posterior.loc
    if name == "Dirichlet":
        return _simplex_mode(posterior.concentration - 1 + free, floor)
    if name == "Beta":
        return _interval_mode(posterior.concentration1 - 1 + free, posterior.concentration0 - 1 + free, floor, ceiling)
    if name == "Gamma":
        value = (posterior.concentration - 1 + free) / posterior.rate
        return torch.maximum(value.clamp(min=0.0), torch.as_tensor(floor).to(value))
    if name == "InverseGamma":
        return posterior.rate / (posterior.concentration + 1 - free)
    if name == "Wishart":
        return _wishart_mode(posterior, space)
    raise KeyError(f"no formula for the mode of {name}")


def _simplex_mode(exponents: Tensor, floor: Tensor | float) -> Tensor:
    """Maximise Σ c log p over the simplex with p ≥ floor, rows of c in the last dimension.

    Where all c are positive and no floor is met this is c / Σ c. Elements at the floor give up their share to the others
    (each round finds at least one more); a row without a positive c is largest at a corner.
    """
    floor = torch.as_tensor(floor).to(exponents).expand_as(exponents)
    corner = exponents == exponents.amax(-1, keepdim=True)
    corner = corner & (corner.cumsum(-1) == 1)
    positive = exponents > 0
    free = torch.where(positive.any(-1, keepdim=True), positive, corner)
    weight = torch.where(positive, exponents, free.to(exponents))
    for _ in range(exponents.shape[-1]):
        left = 1 - torch.where(free, 0.0, floor).sum(-1, keepdim=True)
        share = torch.where(free, weight, 0.0)
        value = torch.where(free, left * share / share.sum(-1, keepdim=True), floor)
        below = free & (value < floor)
        if not bool(below.any()):
            break
        free = free & ~below
    return value


def _interval_mode(won: Tensor, lost: Tensor, floor: Tensor | float, ceiling: Tensor | float | None) -> Tensor:
    """Maximise a log p + b log(1 − p) over [floor, 1 − ceiling]; 1/2 where a = b = 0."""
    lower = torch.as_tensor(floor).to(won).expand_as(won)
    upper = lower if ceiling is None else torch.as_tensor(ceiling).to(won).expand_as(won)
    total = won + lost
    inner = torch.where(total > 0, won / torch.where(total > 0, total, 1.0), 0.5)
    # With no positive exponent the density is largest at one of the ends: what it has there besides a common part.
    ends = torch.where(torch.special.xlogy(won, lower) > torch.special.xlogy(lost, upper), 0.0, 1.0)
    value = torch.where(won > 0, torch.where(lost > 0, inner, 1.0), torch.where(lost > 0, 0.0, ends))
    value = torch.where((won == 0) & (lost == 0), 0.5, value.to(won))
    return torch.minimum(torch.maximum(value, lower), 1 - upper)


def _wishart_mode(posterior: Any, space: Space) -> Tensor:
    """(ν − D − 1) V of the matrix itself; of the elements of its Cholesky factor, diagonal in logs, C diag(ν + 1 − i) Cᵀ."""
    factor = posterior.scale_tril
    size = factor.shape[-1]
    df = posterior.df[..., None, None]
    if space == "unconstrained":
        order = torch.arange(1, size + 1, dtype=factor.dtype, device=factor.device)
        return factor @ torch.diag_embed(posterior.df[..., None] + 1 - order) @ factor.mT
    if bool((posterior.df <= size + 1).any()):
        raise ValueError(f"a Wishart density with df ≤ {size + 1} has no mode. Try a larger df, or data.")
    return (df - size - 1) * (factor @ factor.mT)
