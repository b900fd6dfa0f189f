"""Bounds reach what is known: exact likelihoods, the mean-field gap, the optimum of exact EM."""

from __future__ import annotations

import pytest
import torch

import ppl_em
from tests.unit.svi.programs import (
    factor_data,
    factor_log_likelihood,
    factors,
    gaussian_mixture,
    mean_field_gap,
)

#: The figures are promised to this, nats per datum.
PER_DATUM = 0.02


@pytest.mark.parametrize(("covariance", "gap"), [("full", 0.0), ("diagonal", mean_field_gap())])
def test_principal_components_reach_the_known_bound(covariance: str, gap: float) -> None:
    x = factor_data()
    settings = ppl_em.SVI(max_steps=1500, lr=2e-2, covariance=covariance, hidden=(), evaluation_particles=400)
    result = ppl_em.fit(factors, x, method=settings)
    exact = float(factor_log_likelihood(x).mean())
    assert result.objective / len(x) == pytest.approx(exact - gap, abs=PER_DATUM / 2)
    assert not result.exact and result.objective_name == "elbo" and result.log_likelihood is None
    estimate, error = result.estimate_log_likelihood(200)
    # Weights under a posterior that is too narrow have heavy tails: the estimate closes most of the gap, not all.
    assert exact - gap / 4 - PER_DATUM / 2 < estimate / len(x) < exact + (4 * error) / len(x) + 1e-3


def test_the_mean_field_gap_is_large_enough_to_see() -> None:
    assert mean_field_gap() > 10 * PER_DATUM


@pytest.mark.parametrize("batch_size", [None, 40])
def test_a_mixture_with_its_components_summed_reaches_the_optimum_of_em(batch_size: int | None) -> None:
    x = torch.cat([torch.randn(70, 2) - 1.5, 0.5 * torch.randn(50, 2) + 1.5])
    exact = ppl_em.fit(gaussian_mixture, x)
    method = ppl_em.SVI(max_steps=600, lr=3e-2, batch_size=batch_size)
    result = ppl_em.fit(gaussian_mixture, x, method=method)
    assert result.plan.engine_of("z") == "mixture"
    assert result.objective / len(x) == pytest.approx(exact.objective / len(x), abs=1e-2)
    assert result.log_likelihood == pytest.approx(float(result.log_prob().sum()), abs=1e-8)


def test_global_latents_get_a_distribution_whose_mean_is_the_posterior_mean() -> None:
    x = torch.randn(60, 3)
    y = x @ torch.tensor([1.0, -1.0, 0.5]) + 0.3 * torch.randn(60)
    noise = 0.3

    def regression(x: torch.Tensor, y: torch.Tensor) -> None:
        import pyro
        import pyro.distributions as dist

        w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, noise), obs=y)

    method = ppl_em.SVI(max_steps=800, lr=5e-2, covariance="full", evaluation_particles=200)
    result = ppl_em.fit(regression, x, y, method=method)
    assert result.plan.engine_of("w") == "variational"
    precision = torch.eye(3) + x.T @ x / noise**2
    mean = torch.linalg.solve(precision, x.T @ y / noise**2)
    exact = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)
    gap = float(torch.distributions.kl_divergence(result.posterior().marginal("w"), exact))
    assert gap < 0.05
    covariance = x @ x.T + noise**2 * torch.eye(60)
    evidence = float(torch.distributions.MultivariateNormal(torch.zeros(60), covariance).log_prob(y))
    spread = 1.5 / method.evaluation_particles**0.5  # of log p(y | w), whose variance is about 3/2
    assert result.objective == pytest.approx(evidence - gap, abs=4 * spread)
