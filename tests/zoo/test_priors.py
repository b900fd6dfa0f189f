"""Point estimates under priors: formulas, direct maximisation of the observed-data log-posterior, unbounded priors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.ops.indexing import Vindex
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import biject_to

import ppl_em
from models import dawid_skene
from ppl_em.em.held import HELD_AT
from ppl_em.errors import PlanError
from ppl_em.mstep import conjugate
from ppl_em.status import Status
from tests.tolerances import ASCENT

Values = Mapping[str, Tensor]


def draws(count: int, seed: int = 0) -> Tensor:
    """Two normal clusters, one third and two thirds."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.arange(count) % 3 == 0
    noise = torch.randn(count, generator=generator, dtype=torch.float64)
    return torch.where(first, -1.5 + 0.7 * noise, 2.0 + 1.2 * noise)


def maximise(
    log_posterior: Callable[[Values], Tensor], start: Values, supports: Mapping[str, Any]
) -> dict[str, Tensor]:
    """BFGS on the log-posterior in unconstrained coordinates from a start; constrained values."""
    charts = {n: biject_to(c) for n, c in supports.items()}
    free = {n: charts[n].inv(start[n]) for n in supports}
    sizes = [f.numel() for f in free.values()]

    def rebuild(x: Tensor) -> dict[str, Tensor]:
        parts = x.split(sizes)
        return {n: charts[n](p.reshape(free[n].shape)) for n, p in zip(free, parts, strict=True)}

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        u = torch.tensor(x, requires_grad=True)
        total = -log_posterior(rebuild(u))
        (slope,) = torch.autograd.grad(total, u)
        return float(total.detach()), slope.numpy()

    x0 = torch.cat([f.reshape(-1) for f in free.values()]).numpy()
    found = minimize(loss, x0, jac=True, method="BFGS", options={"gtol": 1e-8, "maxiter": 2000})
    return rebuild(torch.tensor(found.x))


def ascends(result: Any) -> bool:
    """Whether no step lowered the log-posterior beyond rounding."""
    fall = result.history[:-1] - result.history[1:]
    return bool((fall <= ASCENT * (1 + result.history[1:].abs())).all())


# The Gaussian mixture of Pyro's tutorial, as it stands there but for the annotation -----------------------------

DATA = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0], dtype=torch.float64)
K = 2


def tutorial(data: Tensor, alpha: float = 0.5) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(alpha * torch.ones(K)))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("components", K):
        locs = pyro.sample("locs", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(data)):
        assignment = pyro.sample("assignment", dist.Categorical(weights))
        pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)


def tutorial_log_posterior(values: Values, alpha: float = 0.5) -> Tensor:
    weights, scale, locs = values["weights"], values["scale"], values["locs"]
    prior = dist.Dirichlet(alpha * torch.ones(K)).log_prob(weights) + dist.LogNormal(0.0, 2.0).log_prob(scale)
    prior = prior + dist.Normal(0.0, 10.0).log_prob(locs).sum()
    by_component = dist.Normal(locs, scale).log_prob(DATA[:, None]) + weights.log()
    return prior + by_component.logsumexp(-1).sum()


@pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=pytest.mark.slow) for s in (1, 6, 11))])
def test_the_mixture_of_the_tutorial(seed: int) -> None:
    result = ppl_em.fit(tutorial, DATA, seed=seed)
    found = result.point_estimates
    order = found["locs"].argsort()
    assert result.converged and result.detail == "" and ascends(result)
    # The clusters are so far apart that expected counts are whole numbers: (2 + ½ − 1, 3 + ½ − 1) / 4.
    torch.testing.assert_close(found["weights"][order], torch.tensor([0.375, 0.625]), atol=1e-6, rtol=0)
    torch.testing.assert_close(found["locs"][order], torch.tensor([0.4989, 10.9845]), atol=1e-3, rtol=0)
    assert float(found["scale"]) == pytest.approx(0.651, abs=1e-3)
    assert result.objective == pytest.approx(float(tutorial_log_posterior(found)), abs=1e-9)
    supports = {"weights": constraints.simplex, "scale": constraints.positive, "locs": constraints.real}
    peer = maximise(
        tutorial_log_posterior, {n: v * 1.0 for n, v in found.items()} | {"scale": torch.tensor(1.0)}, supports
    )
    for name, value in peer.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-4)


def test_the_plan_of_the_tutorial() -> None:
    plan = ppl_em.explain(tutorial, DATA)
    assert plan.rule_of("weights") == plan.rule_of("locs") == "closed form"
    assert "Dirichlet–Categorical" in str(plan) and "Normal–Normal" in str(plan)
    assert plan.rule_of("scale") == "newton" and "LogNormal" in str(plan)


def test_an_interior_optimum_is_not_beaten_by_a_divergent_prior() -> None:
    """One empty component has the larger log-posterior, and only for the distance at which its weight is held."""
    alpha = 0.05
    result = ppl_em.fit(tutorial, DATA, alpha, seed=1)
    order = result.point_estimates["locs"].argsort()
    torch.testing.assert_close(
        result.point_estimates["weights"][order], torch.tensor([1.05, 2.05]) / 3.1, atol=1e-6, rtol=0
    )
    assert result.converged and result.detail == ""
    assert max(r.objective for r in result.restarts) > result.objective + 1


# Formulas --------------------------------------------------------------------------------------------------------

COUNTS = torch.tensor([3.0, 0.0, 2.0, 5.0, 1.0, 4.0], dtype=torch.float64)
EXPOSURE = torch.tensor([1.0, 2.0, 0.5, 2.0, 1.0, 3.0], dtype=torch.float64)
X = draws(40)


def binomial(x: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Binomial(6, p), obs=x)


def geometric(x: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Geometric(p), obs=x)


def poisson(x: Tensor) -> None:
    rate = pyro.sample("p", dist.Gamma(2.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(rate * EXPOSURE), obs=x)


def exponential(x: Tensor) -> None:
    rate = pyro.sample("p", dist.Gamma(2.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Exponential(rate), obs=x + 1)


def transitions(x: Tensor) -> None:
    with pyro.plate("states", 3):
        table = pyro.sample("p", dist.Dirichlet(torch.tensor([1.5, 2.0, 1.2])))
    before = torch.tensor([0, 1, 1, 2, 0, 0])
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Categorical(table[before]), obs=(x % 3).long())


def location(x: Tensor) -> None:
    loc = pyro.sample("p", dist.Normal(1.0, 0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 2.0), obs=x)


def variance(x: Tensor) -> None:
    v = pyro.sample("p", dist.InverseGamma(2.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(1.0, v.sqrt()), obs=x)


def precision(x: Tensor) -> None:
    tau = pyro.sample("p", dist.Gamma(2.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(1.0, 1 / tau.sqrt()), obs=x)


def transition_modes() -> list[list[float]]:
    counts = torch.zeros(3, 3, dtype=torch.float64)
    for before, after in zip([0, 1, 1, 2, 0, 0], (COUNTS % 3).long().tolist(), strict=True):
        counts[before, after] += 1
    powers = counts + torch.tensor([0.5, 1.0, 0.2], dtype=torch.float64)
    return (powers / powers.sum(-1, keepdim=True)).tolist()


SQUARES = float((COUNTS - 1).square().sum())
FORMULAS: dict[str, tuple[Any, Any]] = {
    "Beta–Binomial": (binomial, (15 + 1) / (36 + 3)),
    "Beta–Geometric": (geometric, (6 + 1) / (6 + 15 + 3)),
    "Gamma–Poisson": (poisson, (15 + 1) / (float(EXPOSURE.sum()) + 3)),
    "Gamma–Exponential": (exponential, (6 + 1) / (15 + 6 + 3)),
    "Dirichlet–Categorical": (transitions, transition_modes()),
    "Normal–Normal": (location, (15 / 4 + 1 / 0.25) / (6 / 4 + 1 / 0.25)),
    "InverseGamma–Normal": (variance, (3 + SQUARES / 2) / (2 + 3 + 1)),
    "Gamma–Normal": (precision, (2 + 3 - 1) / (3 + SQUARES / 2)),
}


@pytest.mark.parametrize("pair", FORMULAS)
def test_closed_forms(pair: str) -> None:
    model, expected = FORMULAS[pair]
    result = ppl_em.fit(model, COUNTS)
    torch.testing.assert_close(result.point_estimates["p"], torch.as_tensor(expected), rtol=1e-9, atol=1e-9)
    assert result.plan.rule_of("p") == "closed form" and pair in str(result.plan)
    assert result.converged and float(result.history[1]) == pytest.approx(result.objective, abs=1e-9)
    assert result.log_likelihood is not None
    assert result.log_prior == pytest.approx(result.objective - result.log_likelihood)
    assert f"log_prior {result.log_prior:.6f}" in str(result)


def test_hierarchical_location_and_variance() -> None:
    """Normal–inverse-gamma: the joint mode is reached in one step, mean before variance."""

    def model(x: Tensor) -> None:
        v = pyro.sample("v", dist.InverseGamma(2.0, 3.0))
        m = pyro.sample("m", dist.Normal(1.0, (5 * v).sqrt()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, v.sqrt()), obs=x)

    result = ppl_em.fit(model, X)
    m = (X.sum() + 1 / 5) / (len(X) + 1 / 5)
    squares = (X - m).square().sum() + (m - 1) ** 2 / 5
    v = (3 + squares / 2) / (2 + len(X) / 2 + 0.5 + 1)
    torch.testing.assert_close(result.point_estimates["m"], m)
    torch.testing.assert_close(result.point_estimates["v"], v)
    assert float(result.history[1]) == pytest.approx(result.objective, abs=1e-9)
    assert result.plan.rule_of("m") == result.plan.rule_of("v") == "closed form"


@pytest.mark.filterwarnings("ignore:Singular sample detected")
def test_wishart_prior_of_a_precision_matrix() -> None:
    mean = torch.tensor([1.0, -2.0])
    x = torch.stack([X, draws(40, seed=1)], 1)

    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Wishart(torch.tensor(4.0), covariance_matrix=torch.eye(2)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(mean, precision_matrix=p), obs=x)

    result = ppl_em.fit(model, x)
    scatter = (x - mean).mT @ (x - mean)
    expected = (4 + 40 - 2 - 1) * torch.linalg.inv(torch.eye(2) + scatter)
    torch.testing.assert_close(result.point_estimates["p"], expected)
    assert result.plan.rule_of("p") == "closed form"


def test_a_correlation_matrix_and_scales() -> None:
    """LKJ and half-Cauchy priors have no closed form: Newton's method ends at the peer's optimum."""
    x = torch.stack([X, 0.5 * X + draws(40, seed=1)], 1)

    def model(x: Tensor) -> None:
        m = pyro.sample("m", dist.MultivariateNormal(torch.zeros(2), 9 * torch.eye(2)))
        s = pyro.sample("s", dist.HalfCauchy(1.0).expand([2]).to_event(1))
        factor = pyro.sample("factor", dist.LKJCholesky(2, torch.tensor(2.0)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MultivariateNormal(m, scale_tril=s[:, None] * factor), obs=x)

    def log_posterior(v: Values) -> Tensor:
        prior = dist.MultivariateNormal(torch.zeros(2), 9 * torch.eye(2)).log_prob(v["m"])
        prior = prior + dist.HalfCauchy(1.0).log_prob(v["s"]).sum() + dist.LKJCholesky(2, 2.0).log_prob(v["factor"])
        return prior + dist.MultivariateNormal(v["m"], scale_tril=v["s"][:, None] * v["factor"]).log_prob(x).sum()

    result = ppl_em.fit(model, x)
    start = {"m": torch.zeros(2), "s": torch.ones(2), "factor": torch.eye(2)}
    supports = {"m": constraints.real, "s": constraints.positive, "factor": constraints.corr_cholesky}
    for name, value in maximise(log_posterior, start, supports).items():
        torch.testing.assert_close(result.point_estimates[name], value, atol=1e-4, rtol=1e-4)
    assert result.plan.rule_of("m") == "closed form" and result.plan.rule_of("factor") == "newton"


def test_ridge_regression() -> None:
    covariates = torch.stack([X, draws(40, seed=2)], 1)
    response = covariates @ torch.tensor([1.0, -2.0]) + 0.5 + draws(40, seed=3)

    def model(x: Tensor, y: Tensor) -> None:
        slope = pyro.sample("slope", dist.Normal(0.0, 0.5).expand([2]).to_event(1))
        level = pyro.sample("level", dist.Normal(1.0, 2.0))
        s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ slope + level, s), obs=y)

    result = ppl_em.fit(model, covariates, response, method=ppl_em.EM(tol=1e-12))
    design = torch.cat([covariates, torch.ones(40, 1)], 1)
    penalty, mean = torch.tensor([4.0, 4.0, 0.25]), torch.tensor([0.0, 0.0, 1.0])
    s = result.params["s"]
    expected = torch.linalg.solve(
        design.mT @ design / s**2 + torch.diag(penalty), design.mT @ response / s**2 + penalty * mean
    )
    found = torch.cat([result.point_estimates["slope"], result.point_estimates["level"][None]])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    assert result.plan.rule_of("slope") == result.plan.rule_of("level") == "least squares"


# Mixtures against direct maximisation ----------------------------------------------------------------------------


def mixture(x: Tensor) -> None:
    w = pyro.sample("w", dist.Dirichlet(torch.tensor([2.0, 2.0])))
    with pyro.plate("components", 2):
        v = pyro.sample("v", dist.InverseGamma(2.0, 1.0))
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(m[z], v[z].sqrt()), obs=x)


SUPPORTS = {"w": constraints.simplex, "v": constraints.positive, "m": constraints.real}


def mixture_log_posterior(values: Values, *, unconstrained: bool = False) -> Tensor:
    w, v, m = values["w"], values["v"], values["m"]
    prior = dist.Dirichlet(torch.tensor([2.0, 2.0])).log_prob(w) + dist.InverseGamma(2.0, 1.0).log_prob(v).sum()
    prior = prior + dist.Normal(0.0, 3.0).log_prob(m).sum()
    if unconstrained:  # |dw/du| of two breaks' log-odds is w₁ w₂, |dv/du| of the logarithm v
        prior = prior + w.log().sum() + v.log().sum()
    return prior + (dist.Normal(m, v.sqrt()).log_prob(X[:, None]) + w.log()).logsumexp(-1).sum()


@pytest.mark.parametrize("space", ["constrained", "unconstrained"])
def test_a_mixture_in_both_spaces_against_direct_maximisation(space: Any) -> None:
    method = ppl_em.EM(map_space=space, tol=1e-10)
    result = ppl_em.fit(mixture, X, method=method)
    start = {"w": torch.tensor([0.3, 0.7]), "v": torch.ones(2), "m": torch.tensor([-1.5, 2.0])}

    def target(values: Values) -> Tensor:
        return mixture_log_posterior(values, unconstrained=space == "unconstrained")

    peer = maximise(target, start, SUPPORTS)
    order = result.point_estimates["m"].argsort()
    for name, value in peer.items():
        torch.testing.assert_close(result.point_estimates[name][order], value, atol=2e-4, rtol=2e-4)
    assert result.objective == pytest.approx(float(target(peer)), abs=1e-6)
    assert result.converged and ascends(result)
    assert {result.plan.rule_of(n) for n in "wvm"} == {"closed form"}
    assert ("in unconstrained coordinates" in str(result.plan)) == (space == "unconstrained")


def test_every_plain_step_ascends() -> None:
    result = ppl_em.fit(mixture, X, method=ppl_em.EM(accelerate=False), init="params")
    assert result.num_steps > 5 and ascends(result)


def test_a_loaded_result_knows_its_space(tmp_path: Path) -> None:
    result = ppl_em.fit(mixture, X, method=ppl_em.EM(map_space="unconstrained"))
    result.save(tmp_path / "fit")
    loaded = ppl_em.load(tmp_path / "fit", mixture).with_data(X)
    assert loaded.log_prior == pytest.approx(result.log_prior)
    for name, value in result.standard_errors().items():
        torch.testing.assert_close(loaded.standard_errors()[name], value)


def test_unknown_spaces_are_refused() -> None:
    with pytest.raises(PlanError, match="map_space"):
        ppl_em.EM(map_space="log")  # pyright: ignore[reportArgumentType]


def test_weights_of_data_leave_the_prior_as_it_is() -> None:
    doubled = ppl_em.fit(mixture, torch.cat([X, X]))
    weighted = ppl_em.fit(mixture, X, weights=torch.full((len(X),), 2.0))
    assert weighted.objective == pytest.approx(doubled.objective, abs=1e-6)


def test_frozen_latents_stay() -> None:
    result = ppl_em.fit(mixture, X, freeze=["w"], init={"w": torch.tensor([0.5, 0.5])})
    assert result.point_estimates["w"].tolist() == [0.5, 0.5]


# Unbounded priors ------------------------------------------------------------------------------------------------


def coin(x: Tensor, a: float = 0.1, b: float = 0.9) -> None:
    p = pyro.sample("p", dist.Beta(a, b))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p), obs=x)


@pytest.mark.parametrize(("x", "expected"), [(0.0, HELD_AT), (1.0, 1 - HELD_AT)])
def test_a_beta_prior_without_a_bound_is_held_and_named(x: float, expected: float) -> None:
    result = ppl_em.fit(coin, torch.full((5,), x))
    assert float(result.point_estimates["p"]) == pytest.approx(expected, rel=1e-9)
    assert result.converged and result.detail.startswith("p was held 1e-06 from the boundary")
    assert result.detail in str(result)
    likelihood = 5 * np.log1p(-HELD_AT)
    assert result.log_likelihood == pytest.approx(likelihood)
    density = dist.Beta(0.1, 0.9).log_prob(torch.tensor(expected))
    assert result.log_prior == pytest.approx(float(density), rel=1e-6)


def test_a_beta_prior_without_a_bound_whose_posterior_has_a_mode() -> None:
    result = ppl_em.fit(coin, torch.tensor([1.0, 0.0, 1.0, 1.0]))
    assert float(result.point_estimates["p"]) == pytest.approx((3 + 0.1 - 1) / (4 + 1 - 2))
    assert result.converged and result.detail == ""


def test_unconstrained_modes_are_interior() -> None:
    method = ppl_em.EM(map_space="unconstrained")
    result = ppl_em.fit(coin, torch.zeros(5), method=method)
    assert float(result.point_estimates["p"]) == pytest.approx(0.1 / (5 + 1))
    assert result.converged and result.detail == ""


def test_a_gamma_prior_without_a_bound_is_held_relative_to_its_mean() -> None:
    def model(x: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(0.3, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    result = ppl_em.fit(model, torch.zeros(4))
    assert float(result.point_estimates["rate"]) == pytest.approx(HELD_AT * 0.15)
    assert "rate was held" in result.detail and result.converged


def test_newtons_method_keeps_the_distance_too() -> None:
    def model(x: Tensor) -> None:
        rate = pyro.sample("rate", dist.Gamma(0.3, 2.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate + rate.expm1()), obs=x)

    result = ppl_em.fit(model, torch.zeros(4))
    assert result.plan.rule_of("rate") == "newton"
    assert float(result.point_estimates["rate"]) == pytest.approx(HELD_AT * 0.15, rel=0.01)
    assert "rate was held" in result.detail


def sparse(x: Tensor) -> None:
    p = pyro.sample("p", dist.Dirichlet(torch.full((4,), 0.1)))
    with pyro.plate("components", 4):
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(p))
        pyro.sample("x", dist.Normal(m[z], 1.0), obs=x)


def sticks(x: Tensor) -> None:
    with pyro.plate("breaks", 3):
        p = pyro.sample("p", dist.Beta(1.0, 0.5))
    left = torch.nn.functional.pad((1 - p).cumprod(-1), (1, 0), value=1.0)
    weights = torch.nn.functional.pad(p, (0, 1), value=1.0) * left
    with pyro.plate("components", 4):
        m = pyro.sample("m", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(m[z], 1.0), obs=x)


@pytest.mark.parametrize("seed", [0, 1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("model", [sparse, pytest.param(sticks, marks=pytest.mark.slow)])
def test_sparse_mixtures_end_well_on_every_seed(model: Any, seed: int) -> None:
    result = ppl_em.fit(model, X, seed=seed)
    p = result.point_estimates["p"]
    assert result.converged and ascends(result)
    assert bool(p.isfinite().all()) and bool((p >= 0).all()) and bool((p <= 1).all())
    held = ((p > 0) & (p <= 1.01 * HELD_AT)) | (1 - p <= 1.01 * HELD_AT)
    assert ("held 1e-06" in result.detail) == bool(held.any())
    assert result.plan.rule_of("p") == "closed form"
    for restart in result.restarts:
        assert restart.status is not Status.NOT_MONOTONE and np.isfinite(restart.objective)


# Hyperparameters that are estimated ------------------------------------------------------------------------------


def hierarchy(x: Tensor, spread: Callable[[], Any]) -> None:
    centre = pyro.param("centre", torch.tensor(0.0))
    m = pyro.sample("m", dist.Normal(centre, spread()).expand([4]).to_event(1))
    with pyro.plate("data", 10):
        pyro.sample("x", dist.Normal(m, 1.0).to_event(1), obs=x.reshape(10, 4))


def test_a_priors_location_is_estimated_with_the_latents() -> None:
    result = ppl_em.fit(hierarchy, X, lambda: 0.5, method=ppl_em.EM(tol=1e-12))
    means = X.reshape(10, 4).mean(0)
    centre = means.mean()  # shrinking about the mean leaves the mean
    expected = (10 * means + 4 * centre) / 14
    torch.testing.assert_close(result.params["centre"], centre, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.point_estimates["m"], expected, atol=1e-5, rtol=0)
    assert ascends(result)


def test_a_priors_scale_without_a_prior_is_refused() -> None:
    with pytest.raises(PlanError, match=r"(?s)'tau'.*only the prior of 'm'"):
        ppl_em.fit(hierarchy, X, lambda: pyro.param("tau", torch.tensor(1.0), constraint=constraints.positive))


def test_a_collapsing_hierarchy_is_named() -> None:
    result = ppl_em.fit(hierarchy, 0.1 * X, lambda: pyro.sample("tau", dist.HalfCauchy(1.0)))
    assert result.status is Status.DEGENERATE and "'m'" in result.detail
    assert not result.converged


def test_a_scale_shared_by_prior_and_data() -> None:
    def model(x: Tensor) -> None:
        s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
        m = pyro.sample("m", dist.Normal(0.0, 2 * s))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m, s), obs=x)

    result = ppl_em.fit(model, X, method=ppl_em.EM(tol=1e-12))
    m = X.sum() / (len(X) + 0.25)
    s = (((X - m).square().sum() + m**2 / 4) / (len(X) + 1)).sqrt()
    torch.testing.assert_close(result.point_estimates["m"], m, atol=1e-6, rtol=0)
    torch.testing.assert_close(result.params["s"], s, atol=1e-6, rtol=0)


# The proof of a closed form --------------------------------------------------------------------------------------


def test_a_wrong_pair_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Successes that are off by one per cent do not pass the first-order conditions: Newton's method takes over."""
    right = conjugate.find_pair("Beta", "Bernoulli", "probs")
    assert right is not None

    def wrong(sample: Any, variance: Any) -> conjugate.Message:
        message = right.message(sample, variance)
        return {**message, "successes": 1.01 * message["successes"]}

    pair = conjugate.Pair("Beta", "Bernoulli", "probs", "identity", wrong)
    monkeypatch.setitem(conjugate._PAIRS, ("Beta", "Bernoulli", "probs", "identity"), pair)
    result = ppl_em.fit(coin, torch.tensor([1.0, 0.0, 1.0, 1.0]), 2.0, 2.0)
    assert result.plan.rule_of("p") == "newton" and "not stationary" in str(result.plan)
    assert float(result.point_estimates["p"]) == pytest.approx(4 / 6, abs=1e-6)


def test_single_precision() -> None:
    def model(x: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(torch.tensor(2.0, dtype=torch.float32), torch.tensor(2.0, dtype=torch.float32)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    result = ppl_em.fit(model, torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float32))
    assert result.point_estimates["p"].dtype == torch.float32
    assert float(result.point_estimates["p"]) == pytest.approx(4 / 6, abs=1e-6)
    assert result.plan.rule_of("p") == "closed form"


# Dawid and Skene -------------------------------------------------------------------------------------------------

SADDLE, PUBLISHED = -362.862, -192.8908


def uniform(labels: Tensor, observers: Tensor) -> None:
    shares = pyro.param("shares", torch.ones(4) / 4, constraint=constraints.simplex)
    errors = pyro.param("errors", torch.ones(5, 4, 4) / 4, constraint=constraints.simplex)
    judge(labels, observers, shares, errors)


def with_priors(labels: Tensor, observers: Tensor) -> None:
    shares = pyro.sample("shares", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("observers", 5, dim=-2), pyro.plate("classes", 4, dim=-1):
        errors = pyro.sample("errors", dist.Dirichlet(torch.ones(4)))
    judge(labels, observers, shares, errors)


def judge(labels: Tensor, observers: Tensor, shares: Tensor, errors: Tensor) -> None:
    with pyro.plate("items", len(labels), dim=-2):
        truth = pyro.sample("truth", dist.Categorical(shares))
        with pyro.plate("judgements", labels.shape[1], dim=-1):
            pyro.sample("label", dist.Categorical(Vindex(errors)[observers, truth, :]), obs=labels)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("model", [uniform, with_priors])
def test_observers_from_uniform_tables(model: Any, seed: int) -> None:
    """Uniform tables are an exact saddle; fits from them reach the published optimum, or the better one at −191.57."""
    labels, observers = dawid_skene.load()
    result = ppl_em.fit(model, labels, observers, seed=seed)
    assert result.converged and ascends(result)
    assert result.log_likelihood is not None and result.log_likelihood >= PUBLISHED - 1e-3
    assert result.plan.rule_of("shares") == result.plan.rule_of("errors") == "closed form"
    # Under flat priors the modes are the maximum-likelihood estimates.
    if model is with_priors:
        flat = 20 * float(torch.tensor(4.0).lgamma()) + float(torch.tensor(4.0).lgamma())
        assert result.log_prior == pytest.approx(flat)


def test_no_fit_stays_at_the_saddle() -> None:
    labels, observers = dawid_skene.load()
    shares = torch.nn.functional.one_hot(labels).double().mean((0, 1))
    same = shares.expand(5, 4, 4)  # every observer answers alike, whatever the truth: nothing tells the classes apart
    start = ppl_em.fit(uniform, labels, observers, init={"errors": same}, method=ppl_em.EM(max_steps=0))
    assert start.objective <= SADDLE
    result = ppl_em.fit(uniform, labels, observers, init="params")
    assert result.objective > SADDLE + 150
