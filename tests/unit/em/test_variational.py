"""Variational Bayes EM: the bound against exact evidence, and the rules that any bound obeys."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_em
from tests.tolerances import ASCENT, BRUTE_FORCE

lgamma = math.lgamma


def fit(model: Callable[..., None], *args: Any, **options: Any) -> Any:
    method = ppl_em.EM(globals="variational", **options.pop("em", {}))
    return ppl_em.fit(model, *args, method=method, **options)


def log_beta(*a: float) -> float:
    return sum(lgamma(v) for v in a) - lgamma(sum(a))


# Programs without local latents: the bound is the evidence -----------------------------------------------------


def coin(x: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p), obs=x)


def coin_evidence(x: Tensor) -> float:
    heads = float(x.sum())
    return log_beta(2 + heads, 3 + len(x) - heads) - log_beta(2, 3)


def die(x: Tensor) -> None:
    w = pyro.sample("w", dist.Dirichlet(torch.tensor([1.0, 2.0, 0.5])))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Categorical(w), obs=x)


def die_evidence(x: Tensor) -> float:
    prior, counts = [1.0, 2.0, 0.5], torch.bincount(x, minlength=3).tolist()
    return log_beta(*(a + c for a, c in zip(prior, counts, strict=True))) - log_beta(*prior)


def stick(x: Tensor) -> None:
    with pyro.plate("break", 2):
        v = pyro.sample("v", dist.Beta(torch.tensor([1.0, 2.0]), 1.5))
    w = torch.stack([v[0], (1 - v[0]) * v[1], (1 - v[0]) * (1 - v[1])])
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Categorical(w), obs=x)


def stick_evidence(x: Tensor) -> float:
    a, b, c = torch.bincount(x, minlength=3).tolist()
    first = log_beta(1 + a, 1.5 + b + c) - log_beta(1, 1.5)
    return first + log_beta(2 + b, 1.5 + c) - log_beta(2, 1.5)


def two_sided(x: Tensor) -> None:
    with pyro.plate("side", 2):
        v = pyro.sample("v", dist.Beta(2.0, 3.0))
    table = torch.stack([1 - v, v], -1)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Categorical(table[torch.tensor([0, 1, 0, 0, 1])]), obs=x)


def two_sided_evidence(x: Tensor) -> float:
    side = torch.tensor([0, 1, 0, 0, 1])
    return sum(coin_evidence(x[side == k].double()) for k in (0, 1))


def failures(x: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.NegativeBinomial(2.0, p), obs=x)


def failures_evidence(x: Tensor) -> float:
    ways = sum(lgamma(2 + v) - lgamma(v + 1) - lgamma(2) for v in x.tolist())
    return log_beta(2 + float(x.sum()), 3 + 2 * len(x)) - log_beta(2, 3) + ways


def trials(x: Tensor) -> None:
    p = pyro.sample("p", dist.Uniform(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Geometric(1 - p), obs=x)


def trials_evidence(x: Tensor) -> float:
    return log_beta(1 + float(x.sum()), 1 + len(x))


def counts(x: Tensor) -> None:
    rate = pyro.sample("rate", dist.Gamma(2.0, 0.7))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(1.5 * rate), obs=x)


def counts_evidence(x: Tensor) -> float:
    a, b = 2 + float(x.sum()), 0.7 + 1.5 * len(x)
    base = float((x * math.log(1.5) - torch.lgamma(x + 1)).sum())
    return lgamma(a) - lgamma(2) + 2 * math.log(0.7) - a * math.log(b) + base


def waiting(x: Tensor) -> None:
    scale = pyro.sample("scale", dist.InverseGamma(2.0, 1.3))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Gamma(1.5, 1 / scale), obs=x)


def waiting_evidence(x: Tensor) -> float:
    a, b = 2 + 1.5 * len(x), 1.3 + float(x.sum())
    base = float((0.5 * x.log()).sum()) - len(x) * lgamma(1.5)
    return lgamma(a) - lgamma(2) + 2 * math.log(1.3) - a * math.log(b) + base


def normal_gamma(x: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.5))
    mu = pyro.sample("mu", dist.Normal(1.0, (0.3 * tau) ** -0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, tau**-0.5), obs=x)


def normal_inverse_gamma(x: Tensor) -> None:
    variance = pyro.sample("variance", dist.InverseGamma(2.0, 1.5))
    mu = pyro.sample("mu", dist.Normal(1.0, (variance / 0.3).sqrt()))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, variance.sqrt()), obs=x)


def normal_evidence(x: Tensor) -> float:
    n, mean = len(x), float(x.mean())
    k, a = 0.3 + n, 2 + n / 2
    b = 1.5 + 0.5 * float((x - mean).square().sum()) + 0.3 * n * (mean - 1) ** 2 / (2 * k)
    gammas = lgamma(a) - lgamma(2) + 2 * math.log(1.5) - a * math.log(b)
    return gammas + 0.5 * math.log(0.3 / k) - n / 2 * math.log(2 * math.pi)


def known_scale(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(1.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 0.7), obs=x)


def known_scale_evidence(x: Tensor) -> float:
    n = len(x)
    covariance = 0.49 * torch.eye(n) + 4.0 * torch.ones(n, n)
    return float(torch.distributions.MultivariateNormal(torch.ones(n), covariance).log_prob(x))


SCATTER = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64)


def normal_wishart(x: Tensor) -> None:
    precision = pyro.sample("precision", dist.Wishart(torch.tensor(4.0), precision_matrix=SCATTER))
    mu = pyro.sample("mu", dist.MultivariateNormal(torch.tensor([1.0, 2.0]), precision_matrix=0.5 * precision))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(mu, precision_matrix=precision), obs=x)


def normal_wishart_evidence(x: Tensor) -> float:
    n, mean = len(x), x.mean(0)
    k, df, shift = 0.5 + n, 4.0 + n, mean - torch.tensor([1.0, 2.0])
    total = SCATTER + (x - mean).T @ (x - mean) + 0.5 * n / k * torch.outer(shift, shift)
    gammas = torch.mvlgamma(torch.tensor(df / 2), 2) - torch.mvlgamma(torch.tensor(2.0), 2)
    dets = 2.0 * torch.logdet(SCATTER) - df / 2 * torch.logdet(total)
    return float(gammas + dets) + math.log(0.5 / k) - n * math.log(math.pi)


def vectors(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(mu, SCATTER), obs=x)


def vectors_evidence(x: Tensor) -> float:
    n, prior = len(x), torch.tensor([[2.0, 0.5], [0.5, 1.0]])
    covariance = torch.block_diag(*[SCATTER] * n) + prior.repeat(n, n)
    return float(torch.distributions.MultivariateNormal(torch.zeros(2 * n), covariance).log_prob(x.reshape(-1)))


def elements(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(torch.zeros(2), torch.tensor([2.0, 0.5])).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(mu, SCATTER), obs=x)


def elements_evidence(x: Tensor) -> float:
    n, prior = len(x), torch.diag(torch.tensor([4.0, 0.25]))
    covariance = torch.block_diag(*[SCATTER] * n) + prior.repeat(n, n)
    return float(torch.distributions.MultivariateNormal(torch.zeros(2 * n), covariance).log_prob(x.reshape(-1)))


def affine(x: Tensor) -> None:
    """The normal-gamma program in other words: mean 2 mu + 1 and precision tau / 4."""
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.5 / 4))
    mu = pyro.sample("mu", dist.Normal(0.0, 0.5 * (0.3 * tau / 4) ** -0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(2 * mu + 1, 2 * tau.rsqrt()), obs=x)


def affine_evidence(x: Tensor) -> float:
    """τ / 4 ~ Gamma(2, 1.5), 2 μ + 1 ~ Normal(1, (0.3 τ / 4)^-1/2): the program above."""
    return normal_evidence(x)


def logarithms(x: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.5))
    mu = pyro.sample("mu", dist.Normal(1.0, (0.3 * tau) ** -0.5))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.LogNormal(mu, tau**-0.5), obs=x)


def logarithms_evidence(x: Tensor) -> float:
    return normal_evidence(x.log()) - float(x.log().sum())


BITS = torch.tensor([1.0, 0.0, 1.0, 1.0, 1.0])
FACES = torch.tensor([0, 0, 2, 1, 2, 2])
POSITIVE = torch.tensor([2.0, 1.0, 5.0, 3.0])
REAL = torch.tensor([3.1, -0.4, 2.2, 5.0, 1.9, 2.7, 0.3])
PAIRS = torch.stack([REAL[:6], 0.4 * REAL[:6] + REAL[1:]], 1)


@pytest.mark.parametrize(
    ("model", "evidence", "x"),
    [
        (coin, coin_evidence, BITS),
        (die, die_evidence, FACES),
        (stick, stick_evidence, FACES),
        (two_sided, two_sided_evidence, BITS.long()),
        (failures, failures_evidence, POSITIVE),
        (trials, trials_evidence, POSITIVE),
        (counts, counts_evidence, POSITIVE),
        (waiting, waiting_evidence, POSITIVE),
        (normal_gamma, normal_evidence, REAL),
        (normal_inverse_gamma, normal_evidence, REAL),
        (known_scale, known_scale_evidence, REAL),
        (normal_wishart, normal_wishart_evidence, PAIRS),
        (vectors, vectors_evidence, PAIRS),
        (elements, elements_evidence, PAIRS),
        (affine, affine_evidence, REAL),
        (logarithms, logarithms_evidence, POSITIVE),
    ],
)
def test_without_local_latents_the_bound_is_the_evidence(
    model: Any, evidence: Callable[[Tensor], float], x: Tensor
) -> None:
    x = x.double() if x.is_floating_point() else x
    result = fit(model, x)
    assert result.objective_name == "elbo"
    assert result.objective == pytest.approx(evidence(x), abs=1e-10)
    assert result.log_likelihood is None
    assert not result.exact


# With local latents: the bound is below the evidence, and rises ------------------------------------------------


def two_coins(x: Tensor) -> None:
    weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
    with pyro.plate("coin", 2):
        p = pyro.sample("p", dist.Beta(torch.tensor([1.0, 4.0]), torch.tensor([3.0, 1.0])))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(weight))
        pyro.sample("x", dist.Binomial(4, p[z.long()]), obs=x)


def two_coins_evidence(x: Tensor) -> float:
    """Enumeration of all assignments, the globals integrated in closed form for each."""
    choose = sum(lgamma(5) - lgamma(v + 1) - lgamma(5 - v) for v in x.tolist())
    terms = []
    for z in itertools.product((0, 1), repeat=len(x)):
        ones = sum(z)
        term = log_beta(2 + ones, 2 + len(x) - ones) - log_beta(2, 2)
        for k, (a, b) in enumerate([(1.0, 3.0), (4.0, 1.0)]):
            mine = [v for v, own in zip(x.tolist(), z, strict=True) if own == k]
            term += log_beta(a + sum(mine), b + 4 * len(mine) - sum(mine)) - log_beta(a, b)
        terms.append(term)
    return float(torch.logsumexp(torch.tensor(terms), 0)) + choose


def test_the_bound_of_a_mixture_is_below_the_evidence() -> None:
    x = torch.tensor([0.0, 1.0, 3.0, 4.0, 1.0, 4.0, 0.0, 3.0])
    evidence = two_coins_evidence(x)
    result = fit(two_coins, x, restarts=3)
    assert evidence - 1.0 < result.objective < evidence
    estimate, error = result.estimate_log_likelihood(800)
    assert abs(estimate - evidence) < 4 * error + 1e-3
    assert error < 0.1


def mean_field(x: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(2.0, 1.5))
    mu = pyro.sample("mu", dist.Normal(1.0, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, tau**-0.5), obs=x)


def test_independent_priors_have_factors_of_their_own() -> None:
    result = fit(mean_field, REAL)
    mu, tau = result.posterior().marginal("mu"), result.posterior().marginal("tau")
    assert type(mu).__name__ == "Normal" and type(tau).__name__ == "Gamma"
    n, expected_tau = len(REAL), float(tau.mean)
    precision = 0.25 + n * expected_tau  # each factor is the optimum given the other
    assert float(mu.scale) == pytest.approx(precision**-0.5, rel=1e-5)
    assert float(mu.loc) == pytest.approx((0.25 + expected_tau * float(REAL.sum())) / precision, rel=1e-5)
    squares = float((REAL - mu.loc).square().sum()) + n * float(mu.variance)
    assert float(tau.concentration) == pytest.approx(2 + n / 2)
    assert float(tau.rate) == pytest.approx(1.5 + squares / 2, rel=1e-5)
    m, t = torch.meshgrid(torch.linspace(-8, 10, 1801), torch.linspace(1e-3, 6, 2000), indexing="ij")
    joint = dist.Gamma(2.0, 1.5).log_prob(t) + dist.Normal(1.0, 2.0).log_prob(m)
    for value in REAL:
        joint = joint + dist.Normal(m, t**-0.5).log_prob(value)
    evidence = float(torch.logsumexp(joint.reshape(-1), 0)) + math.log(0.01 * (6 - 1e-3) / 1999)
    assert evidence - 0.2 < result.objective < evidence


def hierarchy(x: Tensor, group: Tensor) -> None:
    centre = pyro.sample("centre", dist.Normal(0.0, 5.0))
    between = pyro.sample("between", dist.InverseGamma(2.0, 1.0))
    rate = pyro.sample("rate", dist.Gamma(1.0, 1.0))
    with pyro.plate("group", 3):
        mu = pyro.sample("mu", dist.Normal(centre, between.sqrt()))
        tau = pyro.sample("tau", dist.Gamma(2.0, rate))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu[group], tau[group].rsqrt()), obs=x)


def mixture(x: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.full((3,), 0.5)))
    with pyro.plate("component", 3):
        tau = pyro.sample("tau", dist.Gamma(2.0 * torch.ones(2), 1.0).to_event(1))
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), (0.1 * tau).rsqrt()).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(mu[z], tau[z].rsqrt()).to_event(1), obs=x)


def clusters() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randn(20, 2, generator=generator) for _ in range(2))
    return torch.cat([first, 0.5 * second + 3])


@pytest.mark.parametrize("accelerate", [True, False])
@pytest.mark.parametrize(
    ("model", "args"), [(hierarchy, (REAL, torch.tensor([0, 1, 2, 0, 1, 2, 0]))), (mixture, (clusters(),))]
)
def test_no_step_lowers_the_bound(model: Any, args: tuple[Any, ...], accelerate: bool) -> None:
    result = fit(model, *args, em={"accelerate": accelerate, "tol": 1e-9}, restarts=3)
    falls = (result.history[:-1] - result.history[1:]).max()
    assert float(falls) <= ASCENT * (1 + abs(result.objective))
    assert result.converged
    assert float(result.history[-1]) == result.objective


def test_restarts_end_in_optima_that_acceleration_does_not_change() -> None:
    x = clusters()
    start = ppl_em.fit(mixture, x, method=ppl_em.EM(globals="variational", max_steps=0), restarts=1)
    fast, slow = (fit(mixture, x, em={"accelerate": a, "tol": 1e-10}, init=start) for a in (True, False))
    assert fast.objective == pytest.approx(slow.objective, abs=1e-6)
    assert float(slow.history[0]) == pytest.approx(start.objective, abs=BRUTE_FORCE)


def test_the_bound_is_an_expectation_under_q() -> None:
    x = clusters()
    result = fit(mixture, x, restarts=2)
    plan, q = result.plan, result.posterior()
    draws = q.sample(4000, seed=1)
    joint = torch.zeros(4000)
    for name in ("weights", "tau", "mu"):
        assert draws[name].shape[0] == 4000
    component = [draws[n].gather(1, draws["z"].long()[..., None].expand(-1, -1, 2)) for n in ("mu", "tau")]
    joint += dist.Normal(component[0], component[1].rsqrt()).log_prob(x).sum((-2, -1))
    joint += dist.Categorical(draws["weights"][:, None]).log_prob(draws["z"]).sum(-1)
    joint += dist.Dirichlet(torch.full((3,), 0.5)).log_prob(draws["weights"])
    joint += dist.Gamma(2.0, 1.0).log_prob(draws["tau"]).sum((-2, -1))
    joint += dist.Normal(0.0, (0.1 * draws["tau"]).rsqrt()).log_prob(draws["mu"]).sum((-2, -1))
    terms = result.terms()
    assert abs(float(joint.mean()) - terms["expected_log_joint"]) < 4 * float(joint.std()) / 4000**0.5
    assert terms["expected_log_joint"] + terms["entropy"] == pytest.approx(result.objective)
    assert plan.engine_of("z") == "mixture" and plan.engine_of("weights") == "variational"


def test_weights_of_data_multiply_their_statistics() -> None:
    x = clusters()
    twice = torch.cat([x, x])
    options = {"em": {"tol": 1e-10}, "init": {"mu": torch.tensor([[0.0, 0.0], [3.0, 3.0], [1.0, 2.0]])}}
    doubled, weighted = fit(mixture, twice, **options), fit(mixture, x, weights=torch.full((len(x),), 2.0), **options)
    assert weighted.objective == pytest.approx(doubled.objective, abs=1e-6)
    for name, value in doubled.guide_params.items():
        torch.testing.assert_close(weighted.guide_params[name], value, rtol=1e-4, atol=1e-4)
