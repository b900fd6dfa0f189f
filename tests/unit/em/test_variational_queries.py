"""What a variational fit answers, what it refuses, and which programs it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import ppl_em

VARIATIONAL = ppl_em.EM(globals="variational")


def mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 0.5)))
    with pyro.plate("component", 3):
        precision = pyro.sample("precision", dist.Wishart(torch.tensor(4.0), covariance_matrix=torch.eye(2)))
        loc = pyro.sample("loc", dist.MultivariateNormal(torch.zeros(2), precision_matrix=0.1 * precision))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(loc[z], precision_matrix=precision[z]), obs=x)


def clusters() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(30, 2, generator=generator) for _ in range(2))
    return torch.cat([first, 0.5 * second + 3])


@pytest.fixture(scope="module")
def result() -> Any:
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return ppl_em.fit(mixture, clusters(), method=VARIATIONAL, restarts=4)
    finally:
        torch.set_default_dtype(default)


# Answers -------------------------------------------------------------------------------------------------------


def test_marginals_are_the_factors(result: Any) -> None:
    posterior = result.posterior()
    weights, precision, loc = (posterior.marginal(n) for n in ("weights", "precision", "loc"))
    assert type(weights).__name__ == "Dirichlet" and type(precision).__name__ == "Wishart"
    assert type(loc).__name__ == "MultivariateStudentT"
    torch.testing.assert_close(weights.mean, result.point_estimates["weights"])
    torch.testing.assert_close(precision.mean, result.point_estimates["precision"])
    torch.testing.assert_close(loc.mean, result.point_estimates["loc"])
    assert set(posterior.marginals) == {"weights", "precision", "loc", "z"}
    counts = posterior.marginal("z").probs.sum(0)
    torch.testing.assert_close(weights.concentration, 0.5 + counts, rtol=1e-3, atol=1e-3)


def test_draws_have_the_marginals_moments(result: Any) -> None:
    draws = result.posterior().sample(4000, seed=3)
    assert draws["z"].shape == (4000, 60)
    for name in ("weights", "precision", "loc"):
        mean = result.posterior().marginal(name).mean
        error = draws[name].std(0) / 4000**0.5
        assert bool(((draws[name].mean(0) - mean).abs() <= 4.5 * error + 1e-9).all()), name
    spread = result.posterior().marginal("loc").covariance_matrix.diagonal(dim1=-2, dim2=-1)
    kept = result.posterior().marginal("z").probs.sum(0) > 10
    torch.testing.assert_close(draws["loc"].var(0)[kept], spread[kept], rtol=0.2, atol=0.0)
    again = result.posterior().sample(4000, seed=3)
    assert all(torch.equal(draws[n], again[n]) for n in draws)


def test_log_prob_is_a_bound_on_the_predictive_density(result: Any) -> None:
    x = clusters()[::7]
    bound = result.log_prob(x)
    drawn = result.draws(300, seed=2)
    density = torch.stack(
        [
            dist.MixtureSameFamily(
                dist.Categorical(drawn["weights"][i]),
                dist.MultivariateNormal(drawn["loc"][i], precision_matrix=drawn["precision"][i]),
            ).log_prob(x)
            for i in range(300)
        ]
    )
    predictive = density.logsumexp(0) - torch.log(torch.tensor(300.0))
    assert bool((bound < predictive + 0.05).all())
    assert bool((bound > predictive - 1.5).all())
    assert result.log_prob().shape == (60,)


@pytest.mark.parametrize("params", ["point", "draws"])
@pytest.mark.parametrize("latents", ["posterior", "prior"])
def test_predictions_look_like_the_data(result: Any, params: str, latents: str) -> None:
    drawn = result.predict(num_samples=40, latents=latents, params=params, seed=1)["x"]
    assert drawn.shape == (40, 60, 2)
    torch.testing.assert_close(drawn.mean((0, 1)), clusters().mean(0), rtol=0.0, atol=0.5)


def test_estimates_are_shown_with_their_spread(result: Any) -> None:
    table = result.summary()
    assert set(table["rule"]) == {"conjugate update"}
    factor = result.posterior().marginal("weights")
    row = table.loc["weights[0]"]
    assert row["estimate"] == pytest.approx(float(factor.mean[0]))
    assert row["std_error"] == pytest.approx(float(factor.variance[0].sqrt()), rel=0.05)
    assert row["lower"] < row["estimate"] < row["upper"]
    assert "elbo" in str(result)


def test_saved_and_read_again_it_answers_the_same(result: Any, tmp_path: Path) -> None:
    x = clusters()[:5]
    loaded = ppl_em.load(result.save(tmp_path / "fit"), mixture)
    torch.testing.assert_close(loaded.log_prob(x), result.log_prob(x))
    mine, other = (r.posterior(x).marginal("weights").concentration for r in (result, loaded))
    torch.testing.assert_close(mine, other)
    one, two = (r.predict(x, num_samples=3, params="draws", seed=5)["x"] for r in (result, loaded))
    torch.testing.assert_close(one, two)


def test_a_fit_is_continued_where_it_ended(result: Any) -> None:
    further = ppl_em.fit(mixture, clusters(), method=VARIATIONAL, init=result)
    assert float(further.history[0]) == pytest.approx(result.objective, abs=1e-9)
    assert further.num_steps <= 8


def test_guide_draws_every_latent(result: Any) -> None:
    from pyro import poutine

    trace = poutine.trace(result.guide).get_trace(clusters())
    assert {n for n, s in trace.nodes.items() if s["type"] == "sample"} == {"weights", "precision", "loc", "z"}


def test_what_has_no_meaning_is_refused(result: Any) -> None:
    questions: dict[str, Callable[[], Any]] = {
        "aic": lambda: result.aic,
        "bic": lambda: result.bic,
        "information": lambda: result.information,
        "profile": lambda: result.profile("weights", (0,)),
        "bootstrap": lambda: result.bootstrap(),
        "relabel": lambda: result.relabel("z"),
        "update": lambda: result.update(clusters()),
        "impute": lambda: result.impute(),
        "terms": lambda: result.terms(params={}),
    }
    for name, ask in questions.items():
        with pytest.raises(ppl_em.errors.PplEmError, match="Try"):
            ask()
        assert name


# Refusals ------------------------------------------------------------------------------------------------------


def laplace(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Laplace(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def scale_prior(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, scale), obs=x)


def wrong_pair(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.StudentT(rate, 0.0, 1.0), obs=x)


def opaque(x: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(2.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(p**2 + p), obs=x.abs())


def logistic(x: Tensor) -> None:
    slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(logits=slope * torch.arange(len(x))), obs=(x > 0).to(x.dtype))


def regression(x: Tensor) -> None:
    level, slope = (pyro.sample(n, dist.Normal(0.0, 1.0)) for n in ("level", "slope"))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(level + slope * torch.arange(len(x)), 1.0), obs=x)


def half_known(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def nothing(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def part_of_a_row(x: Tensor) -> None:
    w = pyro.sample("w", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Categorical(w[:3]), obs=(x > 0).long())


def random_concentration(x: Tensor) -> None:
    a = pyro.sample("a", dist.Gamma(2.0, 1.0))
    p = pyro.sample("p", dist.Beta(a, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p), obs=(x > 0).to(x.dtype))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (laplace, "'loc' .*Laplace.* prior is conjugate to none"),
        (scale_prior, "'scale' .*not conjugate to 'scale' of Normal at 'x'"),
        (wrong_pair, "'rate' .*StudentT at 'x'"),
        (opaque, "'p' .*Poisson at 'x'"),
        (logistic, "'slope' .*Bernoulli at 'x'"),
        (regression, "'level' .*Normal at 'x' through a linear predictor"),
        (half_known, "'scale': it shares the site 'x' with 'loc'"),
        (nothing, "no global latent"),
        (part_of_a_row, "'w' .*Categorical at 'x'"),
        (random_concentration, "'a' .*Beta at 'p'"),
    ],
)
def test_what_is_not_conjugate_is_refused_by_name(model: Any, said: str) -> None:
    with pytest.raises(ppl_em.errors.PlanError, match=said) as raised:
        ppl_em.explain(model, torch.tensor([1.0, 2.0, -1.0]), method=VARIATIONAL)
    assert 'globals="point"' in str(raised.value)


@pytest.mark.parametrize("setting", [{"e_step": "hard"}, {"e_step": "sample"}, {"variant": "stepwise"}])
def test_settings_without_meaning_are_refused(setting: dict[str, Any]) -> None:
    with pytest.raises(ppl_em.errors.PlanError, match="variational"):
        ppl_em.fit(mixture, clusters(), method=ppl_em.EM(globals="variational", **setting))


def test_a_loader_is_refused() -> None:
    loader = torch.utils.data.DataLoader(clusters(), batch_size=20)
    with pytest.raises(ppl_em.errors.PplEmError, match="DataLoader"):
        ppl_em.fit(mixture, loader, method=VARIATIONAL)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"weights.concentration": torch.ones(3)}, "leaves a hyperparameter out"),
        ({"nobody.concentration": torch.ones(3)}, "names no hyperparameter"),
    ],
)
def test_starts_that_are_no_factors_are_refused(given: dict[str, Tensor], said: str) -> None:
    with pytest.raises(ppl_em.errors.ModelError, match=said):
        ppl_em.fit(mixture, clusters(), method=VARIATIONAL, init=given)


# Beside parameters that have no prior -------------------------------------------------------------------------


def empirical(x: Tensor) -> None:
    """Weights have a factor; means and scale are maximised."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((2,), 2.0)))
    loc = pyro.param("loc", torch.tensor([0.0, 2.0]))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale), obs=x)


def test_parameters_apart_from_factors_are_maximised_in_the_bound() -> None:
    x = clusters()[:, 0]
    result: Any = ppl_em.fit(empirical, x, method=ppl_em.EM(globals="variational", tol=1e-10), restarts=2)
    assert result.plan.rule_of("loc") == "closed form" and result.plan.rule_of("weights") == "conjugate update"
    r = result.posterior().marginal("z").probs
    torch.testing.assert_close(result.params["loc"], (r.T @ x) / r.sum(0), rtol=1e-5, atol=1e-5)
    concentration = result.posterior().marginal("weights").concentration
    torch.testing.assert_close(concentration, 2 + r.sum(0), rtol=1e-4, atol=1e-4)
    assert result.num_parameters == 3
    assert float((result.history[:-1] - result.history[1:]).max()) <= 1e-9 * (1 + abs(result.objective))


def test_a_frozen_global_stays_where_it_is() -> None:
    x = clusters()
    options: dict[str, Any] = {"freeze": ["weights"], "init": {"weights": torch.tensor([0.5, 0.3, 0.2])}}
    result: Any = ppl_em.fit(mixture, x, method=VARIATIONAL, restarts=2, **options)
    torch.testing.assert_close(result.point_estimates["weights"], torch.tensor([0.5, 0.3, 0.2]))
    assert "weights.concentration" not in result.guide_params
