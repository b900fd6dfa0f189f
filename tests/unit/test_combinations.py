"""Features in combination, each against a formula or a direct maximisation of a hand-written objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from scipy import optimize, special, stats
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import ppl_em

NAN = float("nan")
VARIATIONAL = ppl_em.EM(globals="variational")


def maximum(objective: Callable[[np.ndarray], float], starts: Sequence[Sequence[float]]) -> float:
    """The largest value of a function of real numbers over searches from several starts."""
    found = [
        optimize.minimize(lambda v: -objective(v), s, method="BFGS", options={"gtol": 1e-7})
        for s in map(np.array, starts)
    ]
    return -min(r.fun for r in found)


def two_clusters(n: int = 40, seed: int = 1, holes: float = 0.15) -> Tensor:
    """(n,) draws of two overlapping clusters, some missing."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(n, generator=g) + torch.where(torch.rand(n, generator=g) < 0.4, -3.0, 3.0)
    return torch.where(torch.rand(n, generator=g) < holes, torch.nan, x)


def mixture(x: Tensor, keep: Any = True) -> None:
    """Two clusters of one width."""
    w = pyro.param("w", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("n", len(x)), poutine.mask(mask=keep):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], s), obs=x)


def mixture_maximum(x: Tensor, weights: Tensor) -> float:
    """Largest Σ w log Σ_k π_k N(x | μ_k, σ) over what is not missing."""
    seen = ~x.isnan()
    data, w = x[seen].numpy(), weights[seen].numpy()

    def objective(v: np.ndarray) -> float:
        logs = [
            -np.logaddexp(0.0, sign * v[0]) + stats.norm.logpdf(data, m, np.exp(v[3]))
            for sign, m in ((-1, v[1]), (1, v[2]))
        ]
        return float((w * np.logaddexp(*logs)).sum())

    return maximum(objective, [[0, -3, 3, 0], [1, -2, 2, 0.5]])


@pytest.mark.parametrize("what", ["weights", "mask", "both"])
def test_holes_under_weights_and_masks(what: str) -> None:
    x = two_clusters()
    g = torch.Generator().manual_seed(2)
    weights = 2 * torch.rand(len(x), generator=g) if what != "mask" else torch.ones(len(x))
    keep = torch.rand(len(x), generator=g) < 0.7 if what != "weights" else torch.ones(len(x), dtype=torch.bool)
    weights[3] = 0.0
    result = ppl_em.fit(mixture, x, keep, weights=weights, restarts=3)
    assert result.objective == pytest.approx(mixture_maximum(x, weights * keep), abs=1e-5)


def test_holes_in_batches_of_a_loader() -> None:
    x = two_clusters()
    result = ppl_em.fit(mixture, DataLoader(TensorDataset(x), batch_size=13))
    assert result.objective == pytest.approx(mixture_maximum(x, torch.ones(len(x))), abs=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_labels_known_for_some_data(weighted: bool) -> None:
    x = two_clusters(holes=0.0)
    labels = torch.where(torch.arange(len(x)) < 10, (x > 0).double(), torch.nan)
    weights = torch.rand(len(x), generator=torch.Generator().manual_seed(3)) if weighted else torch.ones(len(x))

    def model(x: Tensor, labels: Tensor) -> None:
        w = pyro.param("w", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        s = pyro.param("s", torch.tensor([1.0, 1.0]), constraint=constraints.positive)
        with pyro.plate("n", len(x)):
            z = pyro.sample("z", dist.Categorical(w), obs=labels).long()
            pyro.sample("x", dist.Normal(loc[z], s[z]), obs=x)

    def objective(v: np.ndarray) -> float:
        data, known = x.numpy(), labels.numpy()
        first = -np.logaddexp(0, -v[0]) + stats.norm.logpdf(data, v[1], np.exp(v[3]))
        second = -np.logaddexp(0, v[0]) + stats.norm.logpdf(data, v[2], np.exp(v[4]))
        each = np.where(known == 0, first, np.where(known == 1, second, np.logaddexp(first, second)))
        return float((weights.numpy() * each).sum())

    result = ppl_em.fit(model, x, labels, weights=weights if weighted else None, restarts=3)
    assert result.objective == pytest.approx(maximum(objective, [[0, -3, 3, 0, 0]]), abs=1e-5)


def test_whole_data_missing_under_a_tied_covariance(tmp_path: Path) -> None:
    g = torch.Generator().manual_seed(4)
    x = torch.randn(25, 2, generator=g) @ torch.tensor([[1.0, 0.6], [0.0, 0.8]]) + 1.0
    x = torch.where(torch.rand(25, 2, generator=g) < 0.2, torch.nan, x)
    x[4] = torch.nan

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        root = pyro.param("root", torch.eye(2), constraint=constraints.lower_cholesky)
        with pyro.plate("n", len(x)):
            pyro.sample("x", dist.MultivariateNormal(loc, scale_tril=root), obs=x)

    def objective(v: np.ndarray) -> float:
        root = np.array([[np.exp(v[2]), 0.0], [v[3], np.exp(v[4])]])
        cov, total = root @ root.T, 0.0
        for row in x.numpy():
            if (i := ~np.isnan(row)).any():
                total += stats.multivariate_normal.logpdf(row[i], v[:2][i], cov[np.ix_(i, i)])  # pyright: ignore[reportArgumentType]
        return float(total)

    result = ppl_em.fit(model, x)
    assert result.objective == pytest.approx(maximum(objective, [[1, 1, 0, 0, 0]]), abs=1e-5)
    assert result.log_prob()[4] == 0.0
    assert torch.allclose(result.impute()["x"][4], result.params["loc"])
    result.save(tmp_path / "fit")
    loaded = ppl_em.load(tmp_path / "fit", model)
    new = torch.tensor([[NAN, 1.0], [NAN, NAN], [0.0, 0.0]])
    assert torch.equal(loaded.log_prob(new), result.log_prob(new))
    assert torch.equal(loaded.impute(new)["x"], result.impute(new)["x"])


A, B = torch.tensor([1.0, 3.0, 2.0, 5.0, 0.0, 2.0]), torch.tensor([4.0, 7.0, 9.0])


def shared_rate(a: Tensor, b: Tensor) -> None:
    """One rate of counts in two plates, of twice the exposure in the second."""
    rate = pyro.sample("rate", dist.Gamma(3.0, 2.0))
    with pyro.plate("A", len(a)):
        pyro.sample("a", dist.Poisson(rate), obs=a)
    with pyro.plate("B", len(b)):
        pyro.sample("b", dist.Poisson(2 * rate), obs=b)


def test_a_rate_shared_by_two_plates() -> None:
    # Gamma(3 + 33, 2 + 6 + 2 * 3)
    result = ppl_em.fit(shared_rate, A, B)
    assert float(result.point_estimates["rate"]) == pytest.approx(35 / 14, abs=1e-8)
    assert float(result.standard_errors()["rate"]) == pytest.approx(np.sqrt(35) / 14, abs=1e-6)
    other = ppl_em.fit(shared_rate, A, B, method=ppl_em.EM(map_space="unconstrained"))
    assert float(other.point_estimates["rate"]) == pytest.approx(36 / 14, abs=1e-7)
    evidence = special.gammaln(36) - special.gammaln(3) + 3 * np.log(2) - 36 * np.log(14) + 20 * np.log(2)
    evidence -= float(torch.lgamma(torch.cat([A, B]) + 1).sum())
    assert ppl_em.fit(shared_rate, A, B, method=VARIATIONAL).objective == pytest.approx(evidence, abs=1e-8)


def test_data_of_two_plates_are_counted_together() -> None:
    result = ppl_em.fit(shared_rate, A, B)
    assert result.num_observations == 9
    assert result.log_likelihood is not None
    assert result.bic == pytest.approx(-2 * result.log_likelihood + np.log(9))


def test_a_prior_on_a_probability_and_on_its_complement() -> None:
    x, y = torch.tensor([1.0, 0, 0, 1, 1, 1, 0, 1, 1]), torch.tensor([0.0, 1, 0, 0])

    def model(x: Tensor, y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(2.0, 5.0))
        with pyro.plate("n", len(x)):
            pyro.sample("x", dist.Bernoulli(1 - p), obs=x)
        with pyro.plate("k", len(y)):
            pyro.sample("y", dist.Bernoulli(p), obs=y)

    a, b = 2 + 3 + 1, 5 + 6 + 3
    assert float(ppl_em.fit(model, x, y).point_estimates["p"]) == pytest.approx((a - 1) / (a + b - 2), abs=1e-8)
    evidence = special.betaln(a, b) - special.betaln(2, 5)
    assert ppl_em.fit(model, x, y, method=VARIATIONAL).objective == pytest.approx(evidence, abs=1e-8)


def located(x: Tensor) -> None:
    """A location under a prior that enters through a line."""
    loc = pyro.sample("loc", dist.Normal(0.5, 0.3))
    s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("n", len(x)):
        pyro.sample("x", dist.Normal(2 * loc + 1, s), obs=x)


@pytest.mark.parametrize("variant", ["batch", "incremental", "stepwise"])
def test_a_prior_counts_once_whatever_the_parts_and_weights(variant: Any) -> None:
    g = torch.Generator().manual_seed(5)
    x, weights = torch.randn(20, generator=g) + 3, 2 * torch.rand(20, generator=g)
    x[3] = torch.nan

    def objective(v: np.ndarray) -> float:
        each = stats.norm.logpdf(x.numpy(), 2 * v[0] + 1, np.exp(v[1]))
        return float(stats.norm.logpdf(v[0], 0.5, 0.3) + np.nansum(weights.numpy() * each))

    method = ppl_em.EM() if variant == "batch" else ppl_em.EM(variant=variant, batch_size=5, passes=60)
    result = ppl_em.fit(located, x, weights=weights, method=method)
    close = 1e-6 if variant != "stepwise" else 5e-3
    assert result.objective == pytest.approx(maximum(objective, [[1, 0]]), abs=close)


def test_a_normal_prior_whose_width_is_another_latent() -> None:
    x = 2 * torch.randn(30, generator=torch.Generator().manual_seed(6)) + 5

    def model(x: Tensor) -> None:
        tau = pyro.sample("tau", dist.Gamma(2.0, 2.0))
        mu = pyro.sample("mu", dist.Normal(0.0, (4 * tau).rsqrt()))
        with pyro.plate("n", len(x)):
            pyro.sample("x", dist.Normal(mu, tau.rsqrt()), obs=x)

    # Normal-Gamma: kappa 4 + 30, shape 2 + 15.
    data = x.numpy()
    kappa, shape = 34.0, 17.0
    mean = data.sum() / kappa
    rate = 2 + ((data**2).sum() - kappa * mean**2) / 2
    evidence = special.gammaln(shape) - special.gammaln(2) + 2 * np.log(2) - shape * np.log(rate)
    evidence += 0.5 * np.log(4 / kappa) - 15 * np.log(2 * np.pi)
    result = ppl_em.fit(model, x)
    assert float(result.point_estimates["mu"]) == pytest.approx(mean, abs=1e-7)
    assert float(result.point_estimates["tau"]) == pytest.approx((shape + 0.5 - 1) / rate, abs=1e-7)
    assert ppl_em.fit(model, x, method=VARIATIONAL).objective == pytest.approx(evidence, abs=1e-8)


def bayesian_mixture(x: Tensor, scale: Any = 1.0) -> None:
    """Two clusters of known width, their weights and locations under priors."""
    w = pyro.sample("w", dist.Dirichlet(torch.full((2,), 2.0)))
    with pyro.plate("k", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    with pyro.plate("n", len(x)), poutine.scale(scale=scale):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], 1.3), obs=x)


def coordinate_ascent(x: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """The bound and the weights' factor of the mixture above by coordinate ascent, written out."""
    prior, mu, v = np.full(2, 2.0), np.array([-2.0, 2.0]), np.ones(2)
    a = prior
    for _ in range(500):
        expected = special.digamma(a) - special.digamma(a.sum())
        logs = expected + stats.norm.logpdf(x[:, None], mu, 1.3) - v / 2 / 1.3**2
        log_z = np.asarray(special.logsumexp(logs, 1))
        bound = (weights * log_z).sum() + ((prior - a) * expected).sum() + special.gammaln(prior.sum())
        bound += special.gammaln(a).sum() - special.gammaln(a.sum()) - special.gammaln(prior).sum()
        bound -= (((mu**2 + v) / 25 - 1 - np.log(v / 25)) / 2).sum()
        q = weights[:, None] * np.exp(logs - log_z[:, None])
        a, v = prior + q.sum(0), 1 / (1 / 25 + q.sum(0) / 1.3**2)
        mu = v * (q * x[:, None]).sum(0) / 1.3**2
    return float(bound), np.sort(a)


def test_variational_bayes_with_scaled_data() -> None:
    x = two_clusters(holes=0.0)
    scale = torch.rand(len(x), generator=torch.Generator().manual_seed(7))
    bound, _ = coordinate_ascent(x.numpy(), scale.numpy())
    result = ppl_em.fit(bayesian_mixture, x, scale, method=VARIATIONAL)
    assert result.objective == pytest.approx(bound, abs=1e-6)
    again = ppl_em.fit(bayesian_mixture, x, scale, method=VARIATIONAL, init=result)
    assert again.objective == pytest.approx(bound, abs=1e-6)


def test_data_missing_altogether_say_nothing_to_variational_bayes() -> None:
    x = two_clusters()
    seen = x[~x.isnan()].numpy()
    bound, concentration = coordinate_ascent(seen, np.ones(len(seen)))
    result = ppl_em.fit(bayesian_mixture, torch.cat([x, torch.full((100,), NAN)]), method=VARIATIONAL)
    assert result.objective == pytest.approx(bound, abs=1e-6)
    found = result.posterior().marginal("w").concentration.sort().values
    assert np.allclose(found, concentration, atol=5e-3)
    assert torch.allclose(result.log_prob()[-100:], torch.zeros(100))
    last = result.posterior().marginal("z").probs[-1]
    assert float(last.sum()) == pytest.approx(1.0) and float(last.min()) > 0.1


def test_regression_under_a_prior_with_weights_and_holes() -> None:
    g = torch.Generator().manual_seed(8)
    design, weights = torch.randn(30, 2, generator=g), torch.rand(30, generator=g)
    y = design @ torch.tensor([1.0, -2.0]) + 0.5 + 0.3 * torch.randn(30, generator=g)
    y[4] = torch.nan

    def model(design: Tensor, y: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        c = pyro.param("c", torch.tensor(0.0))
        s = pyro.param("s", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("n", len(design)):
            pyro.sample("y", dist.Normal(design @ b + c, s), obs=y)

    def objective(v: np.ndarray) -> float:
        each = stats.norm.logpdf(y.numpy(), design.numpy() @ v[:2] + v[2], np.exp(v[3]))
        return float(stats.norm.logpdf(v[:2]).sum() + np.nansum(weights.numpy() * each))

    result = ppl_em.fit(model, design, y, weights=weights)
    assert result.objective_name == "log_posterior"
    assert result.objective == pytest.approx(maximum(objective, [[1, -2, 0.5, -1]]), abs=1e-6)
