"""The optimal factors q(θ) of global latents: their hyperparameters, expectations, entropies and divergences.

A factor is kept as its hyperparameters, by name; a location under a conjugate joint prior with its precision (the
normal-gamma and normal-Wishart distributions) keeps its precision relative to the other's.

Reference:
    Bishop, C. (2006). Pattern Recognition and Machine Learning. Springer. Chapter 10, appendix B.
    Beal, M. (2003). Variational algorithms for approximate Bayesian inference. PhD thesis, UCL. Chapter 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints, kl_divergence

Hyper = Mapping[str, Tensor]
"""Hyperparameters of one factor by name."""

_POSITIVE, _REAL = constraints.positive, constraints.real

#: Hyperparameters of each family of factors, with their constraints.
HYPERPARAMETERS: Mapping[str, Mapping[str, constraints.Constraint]] = {
    "Dirichlet": {"concentration": constraints.independent(_POSITIVE, 1)},
    "Beta": {"concentration1": _POSITIVE, "concentration0": _POSITIVE},
    "Gamma": {"concentration": _POSITIVE, "rate": _POSITIVE},
    "InverseGamma": {"concentration": _POSITIVE, "rate": _POSITIVE},
    "Normal": {"loc": _REAL, "precision": _POSITIVE},
    "MultivariateNormal": {"loc": constraints.real_vector, "precision": constraints.positive_definite},
    "Wishart": {"df": _POSITIVE, "inverse_scale": constraints.positive_definite},
}
#: In a joint factor with its precision a location has this in place of ``precision``.
RELATIVE = {"relative_precision": _POSITIVE}


@dataclass(frozen=True)
class Belief:
    """Expectations under one factor, whatever its family has of them; shapes as the parameter's unless said.

    Args:
        mean: E[θ].
        log: E[log θ] (Dirichlet, Beta), E[log τ] of a rate or precision, E[log |Λ|] by matrix.
        complement: E[log (1 − θ)] (Beta).
        precision: E[τ] or E[Λ] (of 1/θ for an inverse gamma).
        variance: of a location, given nothing else; (…, D, D) for vectors; zero in a joint factor.
        relative: 1/β of a location in a joint factor, (…) by vector; zero otherwise.
    """

    mean: Tensor
    log: Tensor | None = None
    complement: Tensor | None = None
    precision: Tensor | None = None
    variance: Tensor | None = None
    relative: Tensor | None = None


def belief(family: str, h: Hyper) -> Belief:
    """Expectations under a factor.

    Args:
        family: a key of :data:`HYPERPARAMETERS`.
        h: its hyperparameters.
    """
    if family == "Dirichlet":
        a = h["concentration"]
        total = a.sum(-1, keepdim=True)
        return Belief(a / total, torch.digamma(a) - torch.digamma(total))
    if family == "Beta":
        a, b = h["concentration1"], h["concentration0"]
        rest = torch.digamma(a + b)
        return Belief(a / (a + b), torch.digamma(a) - rest, torch.digamma(b) - rest)
    if family in ("Gamma", "InverseGamma"):
        a, b = h["concentration"], h["rate"]
        mean = a / b if family == "Gamma" else b / torch.where(a > 1, a - 1, a + 1)  # no mean: the mode
        return Belief(mean, torch.digamma(a) - b.log(), precision=a / b)
    if family == "Wishart":
        size = h["inverse_scale"].shape[-1]
        root = torch.linalg.cholesky(h["inverse_scale"])
        mean = h["df"][..., None, None] * torch.cholesky_inverse(root)
        log_det = size * math.log(2) + _digammas(h["df"], size) - _log_det(root)
        return Belief(mean, log_det, precision=mean)
    return _location(family, h)


def _location(family: str, h: Hyper) -> Belief:
    loc, vector = h["loc"], family == "MultivariateNormal"
    if "relative_precision" in h:
        spread = loc.new_zeros((*loc.shape, loc.shape[-1])) if vector else torch.zeros_like(loc)
        return Belief(loc, variance=spread, relative=h["relative_precision"].reciprocal())
    if not vector:
        return Belief(loc, variance=h["precision"].reciprocal(), relative=torch.zeros_like(loc))
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(h["precision"]))
    return Belief(loc, variance=covariance, relative=loc.new_zeros(loc.shape[:-1]))


def entropy(family: str, h: Hyper, log_precision: Tensor | None = None) -> Tensor:
    """Differential entropy of each element in nats; of the precision 1/θ for an inverse gamma.

    Args:
        family, h: the factor.
        log_precision: for a location in a joint factor, E[log τ] (or E[log |Λ|]) of its precision.
    """
    if family in ("Gamma", "InverseGamma"):
        return dist.Gamma(h["concentration"], h["rate"], validate_args=False).entropy()
    if family not in ("Normal", "MultivariateNormal"):
        return distribution(family, h).entropy()
    size = h["loc"].shape[-1] if family == "MultivariateNormal" else 1
    unit = 0.5 * size * (1 + math.log(2 * math.pi))
    if "relative_precision" in h:
        assert log_precision is not None
        return unit - 0.5 * (size * h["relative_precision"].log() + log_precision)
    if family == "Normal":
        return unit - 0.5 * h["precision"].log()
    return unit - 0.5 * _log_det(torch.linalg.cholesky(h["precision"]))


def divergence(family: str, h: Hyper, prior: Hyper) -> Tensor:
    """KL(q ‖ p) of each element in nats, for a prior with fixed hyperparameters.

    Args:
        family: ``"Dirichlet"``, ``"Beta"`` or ``"Wishart"``.
        h, prior: hyperparameters.
    """
    if family != "Wishart":
        return kl_divergence(distribution(family, h), distribution(family, prior))
    size = h["inverse_scale"].shape[-1]
    mine, other = (torch.linalg.cholesky(x["inverse_scale"]) for x in (h, prior))
    ratio = torch.cholesky_solve(prior["inverse_scale"], mine)
    trace = ratio.diagonal(dim1=-2, dim2=-1).sum(-1)
    df, df0 = h["df"], prior["df"]
    return (
        0.5 * df0 * (_log_det(mine) - _log_det(other))
        + 0.5 * df * (trace - size)
        + torch.mvlgamma(df0 / 2, size)
        - torch.mvlgamma(df / 2, size)
        + 0.5 * (df - df0) * _digammas(df, size)
    )


def distribution(family: str, h: Hyper, precision: Hyper | None = None) -> Any:
    """A factor as a distribution; a location in a joint factor as its Student-t marginal.

    Args:
        family, h: the factor.
        precision: hyperparameters of the precision in a joint factor, by element of this one.
    """
    if family == "Wishart":
        scale = torch.cholesky_inverse(torch.linalg.cholesky(h["inverse_scale"]))
        return dist.Wishart(h["df"], covariance_matrix=(scale + scale.mT) / 2, validate_args=False)
    if "relative_precision" in h:
        assert precision is not None
        return _student(family, h, precision)
    if family == "Normal":
        return dist.Normal(h["loc"], h["precision"].rsqrt(), validate_args=False)
    if family == "MultivariateNormal":
        return dist.MultivariateNormal(h["loc"], precision_matrix=h["precision"], validate_args=False)
    return getattr(dist, family)(**h, validate_args=False)


def _student(family: str, h: Hyper, precision: Hyper) -> Any:
    """Marginal of a location: the precision integrated out."""
    beta = h["relative_precision"]
    if family == "Normal":
        a, b = precision["concentration"], precision["rate"]
        return dist.StudentT(2 * a, h["loc"], (b / (a * beta)).sqrt(), validate_args=False)
    size = h["loc"].shape[-1]
    df = precision["df"] - size + 1
    shape = precision["inverse_scale"] / (beta * df)[..., None, None]
    return dist.MultivariateStudentT(df, h["loc"], torch.linalg.cholesky(shape), validate_args=False)


def _digammas(df: Tensor, size: int) -> Tensor:
    """Σ_d ψ((ν − d) / 2) over d = 0 … D − 1."""
    steps = torch.arange(size, dtype=df.dtype, device=df.device)
    return torch.digamma((df[..., None] - steps) / 2).sum(-1)


def _log_det(root: Tensor) -> Tensor:
    """The logarithm of |L Lᵀ|."""
    return 2 * root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
