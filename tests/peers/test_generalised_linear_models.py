"""Weighted generalised linear models against statsmodels: the same coefficients, whatever the plan calls the rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import statsmodels.api as sm
import torch
from pyro.distributions import constraints
from torch import Tensor

import ppl_em

N = 250


def design(seed: int = 0) -> np.ndarray:
    return np.column_stack([np.ones(N), np.random.default_rng(seed).normal(size=(N, 2))])


def poisson(eta: Tensor) -> Any:
    return dist.Poisson(eta.exp())


def logistic(eta: Tensor) -> Any:
    return dist.Bernoulli(logits=eta)


def logistic_probs(eta: Tensor) -> Any:
    return dist.Bernoulli(probs=torch.sigmoid(eta))


def binomial(eta: Tensor) -> Any:
    return dist.Binomial(5, logits=eta)


def gamma(eta: Tensor) -> Any:
    shape = pyro.param("shape", torch.tensor(1.0), constraint=constraints.positive)
    return dist.Gamma(shape, shape / eta.exp())


CASES: dict[str, tuple[Callable[[Tensor], Any], Any, str]] = {
    "poisson": (poisson, sm.families.Poisson(), "newton"),
    "logistic": (logistic, sm.families.Binomial(), "newton"),
    "logistic, probs": (logistic_probs, sm.families.Binomial(), "newton"),
    "binomial": (binomial, sm.families.Binomial(), "newton"),
    "gamma": (gamma, sm.families.Gamma(sm.families.links.Log()), "newton"),
}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_coefficients_of_statsmodels(name: str, weighted: bool) -> None:
    likelihood, family, rule = CASES[name]
    x, rng = design(), np.random.default_rng(1)
    with torch.no_grad(), pyro.get_param_store().scope():
        torch.manual_seed(3)
        y = likelihood(torch.from_numpy(x @ np.array([0.3, 0.5, -0.4]))).sample()
    weights = rng.uniform(0.5, 2.0, size=N) if weighted else np.ones(N)

    def model(x: Tensor, y: Tensor) -> None:
        coef = pyro.param("coef", torch.zeros(3))
        with pyro.plate("data", len(y)):
            pyro.sample("y", likelihood(x @ coef), obs=y)

    result = ppl_em.fit(model, x, y, weights=weights, method=ppl_em.EM(tol=1e-10))
    assert result.plan.rule_of("coef") == rule
    response = y.numpy() if name != "binomial" else np.column_stack([y, 5 - y])
    peer = sm.GLM(response, x, family=family, freq_weights=weights).fit(tol=1e-12, maxiter=200)
    np.testing.assert_allclose(result.params["coef"], peer.params, rtol=1e-6, atol=1e-8)


def test_multinomial_logits_of_statsmodels() -> None:
    x = design()
    torch.manual_seed(0)
    true = torch.tensor([[0.0, 0.5, -0.5], [0.0, 1.0, 0.3], [0.0, -0.4, 0.8]])
    y = dist.Categorical(logits=torch.from_numpy(x) @ true).sample()

    def model(x: Tensor, y: Tensor) -> None:
        free = pyro.param("G", torch.zeros(3, 2))
        logits = torch.cat([torch.zeros(len(x), 1), x @ free], 1)  # the first category is the reference
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Categorical(logits=logits), obs=y)

    result = ppl_em.fit(model, x, y)
    assert result.plan.rule_of("G") == "newton"
    peer = sm.MNLogit(y.numpy(), x).fit(disp=0, method="newton", tol=1e-12)
    np.testing.assert_allclose(result.params["G"], peer.params, rtol=1e-6, atol=1e-8)
    assert result.objective == pytest.approx(peer.llf, abs=1e-8)


def test_negative_binomial_with_its_dispersion() -> None:
    x = design()
    torch.manual_seed(0)
    mean = torch.from_numpy(np.exp(x @ np.array([0.8, 0.4, -0.3])))
    y = dist.GammaPoisson(3.0, 3.0 / mean).sample()

    def model(x: Tensor, y: Tensor) -> None:
        coef = pyro.param("coef", torch.zeros(3))
        size = pyro.param("size", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.NegativeBinomial(size, logits=x @ coef - size.log()), obs=y)

    result = ppl_em.fit(model, x, y, method=ppl_em.EM(tol=1e-9))
    peer = sm.NegativeBinomial(y.numpy(), x).fit(disp=0, maxiter=200, gtol=1e-10)
    np.testing.assert_allclose(result.params["coef"], peer.params[:3], atol=1e-4)
    assert float(result.params["size"]) == pytest.approx(1 / peer.params[3], rel=1e-3)
    assert result.objective == pytest.approx(peer.llf, abs=1e-6)
