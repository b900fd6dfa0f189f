"""A result answers every question about the fit: numbers, posteriors, densities, predictions, models."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import Predictive
from torch import Tensor

import ppl_em
from ppl_em import EM
from ppl_em.errors import NotAvailableYet, PplEmError
from tests.tolerances import BRUTE_FORCE, STATISTICAL
from tests.unit.programs import chain, mixture, two_kinds

X = two_kinds()


@pytest.fixture(scope="module")
def result() -> ppl_em.FitResult:
    torch.set_default_dtype(torch.float64)
    return ppl_em.fit(mixture, X, init="params")


@pytest.fixture(scope="module")
def path() -> ppl_em.FitResult:
    torch.set_default_dtype(torch.float64)
    return ppl_em.fit(chain, X[:9] - 1.5, init="params", method=EM(max_steps=5))


def log_density(params: dict[str, Tensor], x: Tensor) -> Tensor:
    """The mixture's density by torch alone."""
    parts = dist.Categorical(params["weights"]), dist.Normal(params["loc"], params["scale"])
    return dist.MixtureSameFamily(*parts).log_prob(x)


def test_it_is_frozen(result: ppl_em.FitResult) -> None:
    with pytest.raises(FrozenInstanceError):
        result.objective = 0.0  # type: ignore[misc]
    assert all(not v.requires_grad for v in result.params.values())


def test_numbers(result: ppl_em.FitResult) -> None:
    assert result.objective_name == "log_likelihood"
    assert result.log_likelihood == result.objective == float(result.history[-1])
    assert result.objective == pytest.approx(float(log_density(result.params, X).sum()), abs=BRUTE_FORCE)
    assert result.num_parameters == 5
    assert result.num_observations == len(X)
    assert result.aic == pytest.approx(-2 * result.objective + 10)
    assert result.bic == pytest.approx(-2 * result.objective + 5 * math.log(len(X)))
    assert result.point_estimates == {} and result.guide_params == {}
    assert result.estimate_log_likelihood() == (result.objective, 0.0)
    assert f"{result.objective:.6f}" in str(result)
    assert "<table" in result._repr_html_()


def test_density_of_each_datum(result: ppl_em.FitResult) -> None:
    torch.testing.assert_close(result.log_prob(), log_density(result.params, X))
    new = torch.tensor([0.0, 3.0, 9.0])
    torch.testing.assert_close(result.log_prob(new), log_density(result.params, new))


def test_density_of_a_single_series_is_a_scalar(path: ppl_em.FitResult) -> None:
    assert path.log_prob().shape == ()
    assert float(path.log_prob()) == pytest.approx(path.objective)


def test_posterior_of_given_data(result: ppl_em.FitResult) -> None:
    new = torch.tensor([0.0, 3.0])
    marginal = result.posterior(new).marginal("z")
    assert isinstance(marginal, torch.distributions.Categorical)
    assert marginal.batch_shape == (2,)
    joint = dist.Normal(result.params["loc"], result.params["scale"]).log_prob(new[:, None])
    expected = torch.softmax(joint + result.params["weights"].log(), -1)
    torch.testing.assert_close(marginal.probs, expected)
    assert result.posterior().marginals.keys() == {"z"}


def test_a_fit_answers_on_numpy_and_pandas(result: ppl_em.FitResult) -> None:
    import pandas as pd

    expected = result.log_prob(X[:4])
    torch.testing.assert_close(result.log_prob(X[:4].numpy()), expected)
    torch.testing.assert_close(result.log_prob(pd.Series(X[:4].numpy())), expected)


def test_settings_of_the_fit_need_not_be_repeated() -> None:
    fitted = ppl_em.fit(mixture, X, model_kwargs={"num_components": 3}, restarts=1, method=EM(max_steps=3))
    assert fitted.posterior(X[:2]).marginal("z").probs.shape == (2, 3)
    assert fitted.posterior(X[:2], model_kwargs={"num_components": 3}).marginal("z").probs.shape == (2, 3)
    assert fitted.predict(X[:2], num_samples=2)["x"].shape == (2, 2)


def test_predictions_given_the_data(result: ppl_em.FitResult) -> None:
    drawn = result.predict(num_samples=500, seed=1)
    assert drawn.keys() == {"x"}
    assert drawn["x"].shape == (500, len(X))
    assert torch.equal(drawn["x"], result.predict(num_samples=500, seed=1)["x"])
    assert not torch.equal(drawn["x"], result.predict(num_samples=500)["x"])
    probs = result.posterior().marginal("z").probs
    mean = probs @ result.params["loc"]
    second = probs @ (result.params["loc"] ** 2 + result.params["scale"] ** 2)
    error = ((second - mean**2) / 500).sqrt()
    assert bool(((drawn["x"].mean(0) - mean).abs() < STATISTICAL * error).all())


def test_predictions_from_the_program(result: ppl_em.FitResult) -> None:
    drawn = result.predict(num_samples=500, latents="prior", seed=1)["x"]
    weights, loc, scale = (result.params[n] for n in ("weights", "loc", "scale"))
    mean = float((weights * loc).sum())
    variance = float((weights * (loc**2 + scale**2)).sum()) - mean**2
    assert abs(float(drawn.mean()) - mean) < STATISTICAL * math.sqrt(variance / drawn.numel())


def test_predictions_of_new_data_have_their_shape(result: ppl_em.FitResult) -> None:
    assert result.predict(X[:3], num_samples=2)["x"].shape == (2, 3)


@pytest.mark.parametrize("option", [{"latents": "both"}, {"params": "all"}])
def test_unknown_kinds_of_prediction(result: ppl_em.FitResult, option: dict[str, str]) -> None:
    with pytest.raises(PplEmError, match="unknown"):
        result.predict(**option)  # type: ignore[arg-type]


def test_predictions_leave_no_footprint(result: ppl_em.FitResult, no_footprint: Callable) -> None:
    with no_footprint():
        result.predict(num_samples=2)
        result.posterior().sample(2)
        result.log_prob(X[:2])
        result.summary()


# the bound ---------------------------------------------------------------------------------------------------


def test_both_readings_of_the_bound_agree(result: ppl_em.FitResult) -> None:
    other = {"loc": torch.tensor([0.5, 2.0])}
    for params, q in [({}, {}), (other, {}), ({}, other), (other, other)]:
        terms = result.terms(params=params, q=q)
        assert terms["expected_log_joint"] + terms["entropy"] == pytest.approx(terms["elbo"], abs=BRUTE_FORCE)
        assert terms["log_likelihood"] - terms["kl"] == pytest.approx(terms["elbo"], abs=BRUTE_FORCE)
        assert terms["kl"] >= -BRUTE_FORCE
        if params == q:
            assert terms["kl"] == pytest.approx(0.0, abs=BRUTE_FORCE)
        else:
            assert terms["kl"] > 1e-3
    here = result.terms()
    assert here["log_likelihood"] == pytest.approx(result.objective, abs=BRUTE_FORCE)
    assert here["entropy"] == pytest.approx(float(result.posterior().entropy()), abs=BRUTE_FORCE)


def test_the_divergence_is_the_one_between_the_posteriors(result: ppl_em.FitResult) -> None:
    other = {**result.params, "loc": torch.tensor([0.5, 2.0])}
    q = torch.distributions.Categorical(
        logits=dist.Normal(other["loc"], other["scale"]).log_prob(X[:, None]) + other["weights"].log()
    )
    p = result.posterior().marginal("z")
    expected = float(torch.distributions.kl_divergence(q, p).sum())
    assert result.terms(q={"loc": other["loc"]})["kl"] == pytest.approx(expected, abs=BRUTE_FORCE)


# the program as fitted ---------------------------------------------------------------------------------------


def test_the_fitted_model_is_traced_without_the_parameter_store(result: ppl_em.FitResult) -> None:
    trace = poutine.trace(result.model).get_trace(X)
    assert torch.equal(trace.nodes["loc"]["value"], result.params["loc"])
    assert list(pyro.get_param_store().keys()) == []


def test_pyros_predictive_works_on_model_and_guide(result: ppl_em.FitResult) -> None:
    torch.manual_seed(0)
    predictive = Predictive(result.model, guide=result.guide, num_samples=300, return_sites=["z", "x"])
    drawn = predictive(X[:5])
    assert drawn["z"].shape == (300, 5)
    frequency = drawn["z"].double().mean(0)
    probs = result.posterior(X[:5]).marginal("z").probs[:, 1]
    error = (probs * (1 - probs) / 300).sqrt()
    assert bool(((frequency - probs).abs() < STATISTICAL * error + 2 / 300).all())


def test_the_guide_of_a_chain_draws_whole_paths(path: ppl_em.FitResult) -> None:
    torch.manual_seed(0)
    x = X[:9] - 1.5
    drawn = Predictive(path.model, guide=path.guide, num_samples=200, return_sites=["z_3", "z_4"])(x)
    together = (drawn["z_3"] * 2 + drawn["z_4"]).reshape(-1)
    frequency = torch.bincount(together, minlength=4).double() / 200
    joint = path.posterior().pairwise("z_3", "z_4").reshape(-1)
    error = (joint * (1 - joint) / 200).sqrt()
    assert bool(((frequency - joint).abs() < STATISTICAL * error + 2 / 200).all())


def test_the_guide_says_that_it_is_not_vectorised(result: ppl_em.FitResult) -> None:
    with pytest.raises(NotAvailableYet, match="parallel=False"):
        Predictive(result.model, guide=result.guide, num_samples=3, parallel=True)(X[:5])


def test_the_model_and_guide_give_the_log_likelihood_by_their_ratio(result: ppl_em.FitResult) -> None:
    """log p(x, z) − log q(z) with q the exact posterior is log p(x), whatever z is."""
    x = X[:6]
    values = {z: v[0] for z, v in result.posterior(x).sample(1, seed=2).items()}
    joint = poutine.trace(poutine.condition(result.model, values)).get_trace(x).log_prob_sum()
    q = result.posterior(x).marginal("z").log_prob(values["z"]).sum()
    assert float(joint - q) == pytest.approx(float(result.log_prob(x).sum()), abs=BRUTE_FORCE)


def test_write_params(result: ppl_em.FitResult) -> None:
    pyro.param("other", torch.ones(2))
    result.write_params()
    store = pyro.get_param_store()
    assert set(store.keys()) == {"other", *result.params}
    for name, value in result.params.items():
        torch.testing.assert_close(store[name].detach(), value)
    # The program itself now runs with them.
    trace = poutine.trace(mixture).get_trace(X)
    torch.testing.assert_close(trace.nodes["scale"]["value"].detach(), result.params["scale"])
    result.write_params()  # again, over itself


# points ------------------------------------------------------------------------------------------------------


def with_prior(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.tensor([-1.0, 4.0]), 2.0).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def test_global_latents_are_point_estimates_under_their_prior() -> None:
    result = ppl_em.fit(with_prior, X)
    assert result.converged
    loc = result.point_estimates["loc"]
    assert result.params == {}
    assert result.objective_name == "log_posterior"
    prior = float(dist.Normal(torch.tensor([-1.0, 4.0]), 2.0).log_prob(loc).sum())
    likelihood = float(
        dist.MixtureSameFamily(dist.Categorical(torch.ones(2) / 2), dist.Normal(loc, 1.0)).log_prob(X).sum()
    )
    assert result.log_likelihood == pytest.approx(likelihood, abs=BRUTE_FORCE)
    assert result.objective == pytest.approx(likelihood + prior, abs=BRUTE_FORCE)
    assert result.plan.engine_of("loc") == "point"
    assert result.num_parameters == 2
    # A stationary point of the log posterior, by torch alone.
    leaf = loc.clone().requires_grad_(True)
    total = dist.MixtureSameFamily(dist.Categorical(torch.ones(2) / 2), dist.Normal(leaf, 1.0)).log_prob(X).sum()
    total = total + dist.Normal(torch.tensor([-1.0, 4.0]), 2.0).log_prob(leaf).sum()
    total.backward()
    assert float(leaf.grad.abs().max()) < 1e-3
    terms = result.terms()
    assert terms["log_prior"] == pytest.approx(prior, abs=BRUTE_FORCE)
    assert result.aic == pytest.approx(-2 * likelihood + 4, abs=1e-8)
    drawn = Predictive(result.model, guide=result.guide, num_samples=3)(X)
    assert drawn["x"].shape == (3, len(X))


def test_scales_and_masks_count_in_the_objective_only() -> None:
    def scaled(x: Tensor) -> None:
        with poutine.scale(scale=2.5):
            mixture(x)

    plain_fit = ppl_em.fit(mixture, X, init="params", method=EM(max_steps=4, tol=0, accelerate=False))
    scaled_fit = ppl_em.fit(scaled, X, init="params", method=EM(max_steps=4, tol=0, accelerate=False))
    torch.testing.assert_close(scaled_fit.history, 2.5 * plain_fit.history)
    torch.testing.assert_close(scaled_fit.params["loc"], plain_fit.params["loc"])
    torch.testing.assert_close(scaled_fit.log_prob(), plain_fit.log_prob())


def test_masked_data_do_not_count() -> None:
    keep = torch.arange(len(X)) % 3 != 0

    def masked(x: Tensor) -> None:
        with poutine.mask(mask=keep):
            mixture(x)

    spoiled = torch.where(keep, X, torch.tensor(float("nan")))
    one = ppl_em.fit(masked, spoiled, init="params", method=EM(max_steps=8, tol=0))
    two = ppl_em.fit(mixture, X[keep], init="params", method=EM(max_steps=8, tol=0))
    torch.testing.assert_close(one.history, two.history)
    for name, value in two.params.items():
        torch.testing.assert_close(one.params[name], value)
    assert bool((one.log_prob()[~keep] == 0).all())


def test_modules_hold_the_returned_values() -> None:
    class Mixture(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__()
            self.loc = torch.nn.Parameter(torch.tensor([-1.0, 1.0]))
            self.scale = pyro.nn.PyroParam(torch.ones(2), constraint=constraints.positive)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
                pyro.sample("x", dist.Normal(self.loc[z], self.scale[z]), obs=x)

    module = Mixture()
    result = ppl_em.fit(module, X, restarts=3)
    torch.testing.assert_close(module.loc.detach(), result.params["loc"])
    expected = log_density({"weights": torch.ones(2) / 2, **{n: result.params[n] for n in ("loc", "scale")}}, X)
    assert result.objective == pytest.approx(float(expected.sum()), abs=BRUTE_FORCE)
    for restart in result.restarts:
        values = {"weights": torch.ones(2) / 2, **restart.params}
        assert restart.objective == pytest.approx(float(log_density(values, X).sum()), abs=BRUTE_FORCE)
