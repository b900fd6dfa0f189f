"""Covariances however they are written: one optimum, that of scikit-learn, in closed form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from sklearn.mixture import GaussianMixture
from torch import Tensor

import ppl_em

D = 3
START = torch.tensor([[0.0, 0.0, 0.0], [3.0, 3.0, 3.0]])
TRIANGLE, MATRIX = constraints.lower_cholesky, constraints.positive_definite
SPELLINGS: dict[str, tuple[Any, str, Any]] = {
    "scale_tril": (TRIANGLE, "scale_tril", lambda p: p),
    "covariance of a factor": (TRIANGLE, "covariance_matrix", lambda p: p @ p.mT),
    "precision of a factor": (TRIANGLE, "precision_matrix", lambda p: p @ p.mT),
    "covariance": (MATRIX, "covariance_matrix", lambda p: p),
    "precision": (MATRIX, "precision_matrix", lambda p: p),
    "factor of a covariance": (MATRIX, "scale_tril", torch.linalg.cholesky),
    "inverse": (MATRIX, "covariance_matrix", torch.linalg.inv),
}


def data() -> Tensor:
    root = torch.tensor([[1.0, 0.5, 0.2], [0.0, 0.7, -0.3], [0.0, 0.0, 1.5]])
    return torch.cat([torch.randn(80, D) @ root, 0.5 * torch.randn(50, D) @ root.mT + 5])


def mixture(x: Tensor, spelling: str, tied: bool, gathered_first: bool = False) -> None:
    constraint, argument, image = SPELLINGS[spelling]
    w = pyro.param("w", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    loc = pyro.param("loc", START)
    shape = (D, D) if tied else (2, D, D)
    p = pyro.param("p", torch.eye(D).expand(shape).clone(), constraint=constraint)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        matrix = image(p) if tied else image(p[z]) if gathered_first else image(p)[z]
        pyro.sample("x", dist.MultivariateNormal(loc[z], **{argument: matrix}), obs=x)


def peer(x: Tensor, tied: bool) -> float:
    eye = np.eye(D) if tied else np.tile(np.eye(D), (2, 1, 1))
    kind = "tied" if tied else "full"
    start = {"weights_init": [0.4, 0.6], "means_init": START.numpy(), "precisions_init": eye}
    fit = GaussianMixture(2, covariance_type=kind, tol=1e-12, max_iter=2000, reg_covar=0, **start).fit(x.numpy())
    return float(fit.score(x.numpy()) * len(x))


@pytest.mark.parametrize("tied", [False, True], ids=["full", "tied"])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_one_optimum_for_every_spelling(spelling: str, tied: bool) -> None:
    x = data()
    result = ppl_em.fit(mixture, x, spelling, tied, init="params", method=ppl_em.EM(tol=1e-9))
    assert result.plan.rule_of("p") == ("newton" if spelling == "inverse" else "closed form")
    assert result.objective == pytest.approx(peer(x, tied), abs=1e-6)
    assert bool(SPELLINGS[spelling][0].check(result.params["p"]).all())


@pytest.mark.parametrize("spelling", ["covariance of a factor", "factor of a covariance"])
def test_the_order_of_gathering_does_not_matter(spelling: str) -> None:
    x = data()
    result = ppl_em.fit(mixture, x, spelling, False, True, init="params", method=ppl_em.EM(tol=1e-9))
    assert result.plan.rule_of("p") == "closed form"
    assert result.objective == pytest.approx(peer(x, False), abs=1e-6)


def test_correlations_and_scales_apart() -> None:
    """A correlation's Cholesky factor times scales: Newton's method under both constraints."""

    def model(x: Tensor) -> None:
        w = pyro.param("w", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        loc = pyro.param("loc", START)
        root = pyro.param("root", torch.eye(D).expand(2, D, D).clone(), constraint=constraints.corr_cholesky)
        scale = pyro.param("scale", torch.ones(2, D), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.MultivariateNormal(loc[z], scale_tril=(scale[..., None] * root)[z]), obs=x)

    x = data()
    result = ppl_em.fit(model, x, init="params", method=ppl_em.EM(tol=1e-9))
    assert result.plan.rule_of("root") == result.plan.rule_of("scale") == "newton"
    assert result.plan.rule_of("loc") == "closed form"
    assert result.objective == pytest.approx(peer(x, False), abs=1e-6)
    assert bool(constraints.corr_cholesky.check(result.params["root"]).all())


def test_a_correlation_matrix_without_scales() -> None:
    """Standardised data: the maximum over correlations alone, against a search over the one correlation."""

    def model(x: Tensor) -> None:
        root = pyro.param("root", torch.eye(2), constraint=constraints.corr_cholesky)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=root), obs=x)

    x = torch.randn(70, 2) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]])
    result = ppl_em.fit(model, x, init="params", method=ppl_em.EM(tol=1e-10))
    rho = torch.linspace(-0.99, 0.99, 19_801)
    squares, product = x.square().sum(), (x[:, 0] * x[:, 1]).sum()
    rest = 1 - rho.square()
    density = -70 * (rest.log() / 2 + np.log(2 * np.pi)) - (squares - 2 * rho * product) / 2 / rest
    best = density.argmax()
    assert result.objective >= float(density[best]) - 1e-9
    assert float(result.params["root"][1, 0]) == pytest.approx(float(rho[best]), abs=1e-4)
