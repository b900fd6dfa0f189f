"""Draws: right where the posterior is normal, corrected where it nearly is, distrusted where it is not."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats

import ppl_em
from models import gmm
from ppl_em import arviz_bridge
from ppl_em.diagnostics.evaluate import log_likelihoods, objectives
from ppl_em.em.e_step import e_step
from ppl_em.per_datum import log_prob
from tests.tolerances import BRUTE_FORCE, STATISTICAL
from tests.unit.diagnostics import programs


def test_a_normal_posterior_is_drawn_exactly() -> None:
    def known_scale(x: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(1.0, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.5), obs=x)

    x = torch.randn(20) + 3
    draws = ppl_em.fit(known_scale, x).draws(4000)
    precision = 1 / 4 + len(x) / 2.25
    mean = (1 / 4 + float(x.sum()) / 2.25) / precision
    assert draws.k_hat < 0.1 and draws.reliable and draws.corrected
    error = precision**-0.5 / 4000**0.5
    assert float(draws["loc"].mean()) == pytest.approx(mean, abs=STATISTICAL * error)
    assert float(draws["loc"].std()) == pytest.approx(precision**-0.5, rel=0.05)


def test_a_posterior_under_a_prior_is_corrected_to_the_exact_one() -> None:
    # Rate of a Poisson under a Gamma prior: the posterior is a Gamma distribution.
    def counts(x: torch.Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    x = torch.tensor([1.0, 0.0, 2.0, 1.0, 3.0])
    draws = ppl_em.fit(counts, x).draws(4000)
    posterior = stats.gamma(2.0 + 7.0, scale=1 / 6.0)
    assert draws.reliable
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        below = float((draws["rate"] <= posterior.ppf(share)).double().mean())
        assert below == pytest.approx(share, abs=STATISTICAL * (share * (1 - share) / 4000) ** 0.5)


def test_draws_are_repeatable_and_shaped_as_the_parameters(faithful) -> None:
    draws = faithful.draws(50, seed=4)
    assert {n: v.shape for n, v in draws.items()} == {n: (50, *v.shape) for n, v in faithful.params.items()}
    assert all(torch.equal(v, faithful.draws(50, seed=4)[n]) for n, v in draws.items())
    assert not torch.equal(draws["loc"], faithful.draws(50, seed=5)["loc"])
    assert torch.allclose(draws["weights"].sum(-1), torch.ones(50))


def test_where_the_likelihood_is_far_from_normal_the_draws_are_distrusted() -> None:
    # Ten data, two components that overlap: the likelihood has ridges and spikes.
    x = programs.mixture_data(10, seed=5, gap=1.0)
    result = ppl_em.fit(programs.two_normals, x, freeze=["scale"], restarts=4)
    draws = result.draws()
    assert not draws.reliable and not draws.corrected
    outcome = {c.name: c for c in result.diagnose().checks}["intervals"]
    assert outcome.outcome.value == "fail" and "bootstrap" in outcome.advice


@pytest.mark.parametrize("which", ["faithful", "earthquakes"])
def test_many_points_at_once_are_the_same_as_one_by_one(which: str, request: pytest.FixtureRequest) -> None:
    result = request.getfixturevalue(which)
    information = result.information
    points = 0.5 * (information.root @ torch.randn(information.root.shape[1], 5)).T
    found = objectives(information.plan, information.coordinates, points)
    values = [information.coordinates.values(u) for u in points]
    expected = torch.tensor([e_step(information.plan, v).objective for v in values])
    assert torch.allclose(found, expected, atol=BRUTE_FORCE)
    if which == "faithful":
        rows = log_likelihoods(information.plan, information.coordinates, points)
        assert torch.allclose(rows, torch.stack([log_prob(information.plan, v) for v in values]), atol=BRUTE_FORCE)


def test_loo_is_that_of_the_closed_form_likelihood(faithful) -> None:
    x, draws = gmm.load().numpy(), faithful._draws
    parts = []
    for k in range(2):
        cov, loc = draws["cov"][:, k].numpy(), draws["loc"][:, k].numpy()
        log_density = np.stack([stats.multivariate_normal(m, c).logpdf(x) for m, c in zip(loc, cov, strict=True)])
        parts.append(log_density + np.log(draws["weights"][:, k].numpy())[:, None])
    closed = special.logsumexp(parts, axis=0)
    dims = arviz_bridge.SAMPLE_DIMS
    native = arviz_bridge.to_native(
        {
            "posterior": arviz_bridge.dataset({"w": (dims, draws["weights"][None, :, 0].numpy())}),
            "log_likelihood": arviz_bridge.dataset({"x": ((*dims, "data"), closed[None])}),
        }
    )
    expected = arviz_bridge.loo(native, "x")
    assert faithful.loo.elpd == pytest.approx(expected.elpd, abs=1e-6)
    assert faithful.loo.se == pytest.approx(expected.se, abs=1e-6)
    assert np.allclose(faithful.loo.elpd_i, expected.elpd_i, atol=1e-6)
    assert faithful.loo.p == pytest.approx(11, abs=3)


def test_loo_through_the_native_object(faithful) -> None:
    native = faithful.to_arviz()
    found = arviz_bridge.loo(native, "x")
    assert found.elpd == pytest.approx(faithful.loo.elpd, abs=1e-9)


def test_loo_predicts_what_refits_without_each_datum_predict() -> None:
    # Exact leave-one-out of a normal sample with known scale under a flat prior: predictive Normal(mean, s² (1 + 1/n)).
    x = programs.mixture_data(40, share=0.0)

    def known_scale(x: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    result = ppl_em.fit(known_scale, x)
    exact = []
    for i in range(len(x)):
        others = torch.cat([x[:i], x[i + 1 :]])
        exact.append(stats.norm(float(others.mean()), (1 + 1 / len(others)) ** 0.5).logpdf(float(x[i])))
    assert result.loo.elpd == pytest.approx(sum(exact), abs=0.1)
    assert np.allclose(result.loo.elpd_i, exact, atol=0.05)
