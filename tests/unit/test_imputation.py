"""Completed data against formulas written out by hand."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import ppl_em
from ppl_em.errors import PplEmError

DATA = Path(__file__).parents[2] / "models" / "data"
NAN = math.nan


def holes(x: Tensor, share: float = 0.2, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = x.clone()
    x[torch.rand(x.shape, generator=generator) < share] = NAN
    x[7] = NAN
    return x


def faithful() -> Tensor:
    return torch.tensor(pd.read_csv(DATA / "faithful.csv").to_numpy(float))


def full(x: Tensor) -> None:
    size = x.shape[-1]
    weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([[2.0, 55.0], [4.0, 80.0]]))
    start = torch.diag(torch.tensor([0.2, 40.0])).repeat(2, 1, 1)
    covariance = pyro.param("covariance", start, constraint=constraints.positive_definite)
    assert size == 2
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(loc[z], covariance[z]), obs=x)


def diagonal(x: Tensor) -> None:
    weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([[2.0, 55.0], [4.0, 80.0]]))
    scale = pyro.param("scale", torch.tensor([[0.4, 6.0], [0.4, 6.0]]), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)


def inside(x: Tensor) -> None:
    weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([[2.0, 55.0], [4.0, 80.0]]))
    start = torch.diag(torch.tensor([0.2, 40.0])).repeat(2, 1, 1)
    covariance = pyro.param("covariance", start, constraint=constraints.positive_definite)
    with pyro.plate("data", len(x)):
        parts = dist.MultivariateNormal(loc, covariance)
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=x)


def by_hand(row: Tensor, weights: Tensor, loc: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Responsibilities, conditional means (K, D) and covariances of one datum with holes."""
    seen = ~row.isnan()
    log, means, spreads = [], [], []
    for k in range(len(weights)):
        mean, spread, score = loc[k].clone(), covariance[k].clone(), weights[k].log()
        if bool(seen.any()):
            inverse = torch.linalg.inv(covariance[k][seen][:, seen])
            gain = covariance[k][:, seen] @ inverse
            mean = mean + gain @ (row[seen] - loc[k][seen])
            spread = spread - gain @ covariance[k][seen]
            score = score + dist.MultivariateNormal(loc[k][seen], covariance[k][seen][:, seen]).log_prob(row[seen])
        log.append(score)
        means.append(torch.where(seen, row, mean))
        spreads.append(spread)
    return torch.stack(log).softmax(0), torch.stack(means), torch.stack(spreads)


@pytest.mark.parametrize("model", [full, diagonal, inside])
def test_means_are_those_of_the_formula(model: object) -> None:
    x = holes(faithful())
    result = ppl_em.fit(model, x, init="params", method=ppl_em.EM(max_steps=30))
    p = result.params
    covariance = p["covariance"] if "covariance" in p else torch.diag_embed(p["scale"].square())
    completed = result.impute()["x"]
    assert torch.equal(completed[~x.isnan()], x[~x.isnan()]) and not bool(completed.isnan().any())
    for i in x.isnan().any(1).nonzero()[:, 0].tolist():
        shares, means, _ = by_hand(x[i], p["weights"], p["loc"], covariance)
        assert torch.allclose(completed[i], shares @ means, atol=1e-8), i
    again = result.impute(x[:20])["x"]
    assert torch.allclose(again, completed[:20], atol=1e-10)


@pytest.mark.parametrize("model", [full, inside])
def test_draws_have_the_conditional_moments(model: object) -> None:
    x = faithful()[:4].clone()
    x[0, 1], x[1, 0], x[2] = NAN, NAN, NAN
    result = ppl_em.fit(model, x, init="params", method=ppl_em.EM(max_steps=0))
    p = result.params
    count = 800
    draws = result.impute(num_samples=count, seed=3)["x"]
    assert draws.shape == (count, 4, 2)
    assert torch.equal(draws[:, 3], x[3].expand(count, 2)) and torch.equal(draws[:, 0, 0], x[0, 0].expand(count))
    for i in range(3):
        shares, means, spreads = by_hand(x[i], p["weights"], p["loc"], p["covariance"])
        mean = shares @ means
        second = sum(s * (c + torch.outer(m - mean, m - mean)) for s, m, c in zip(shares, means, spreads, strict=True))
        variance = torch.as_tensor(second).diagonal().clamp(min=0)
        error = (variance / count).sqrt()
        assert bool(((draws[:, i].mean(0) - mean).abs() <= 4 * error + 1e-9).all())
        assert torch.allclose(draws[:, i].var(0), variance, rtol=0.3, atol=1e-9)


def hmm(x: Tensor) -> None:
    table = pyro.param("table", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 1.5]))
    z = None
    for t in ppl_em.markov(len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(torch.ones(2) / 2 if z is None else table[z]))
        pyro.sample(f"x_{t}", dist.Normal(loc[z], 0.8), obs=x[t])


def test_a_step_of_a_chain_by_enumeration() -> None:
    x = torch.tensor([-1.2, NAN, 0.3, 1.8, NAN, NAN, -0.4, 1.1, NAN])
    result = ppl_em.fit(hmm, x, init="params", method=ppl_em.EM(max_steps=0))
    table, loc = result.params["table"], result.params["loc"]
    scores, paths = [], list(itertools.product(range(2), repeat=len(x)))
    for path in paths:
        score = torch.tensor(0.5).log()
        for t, z in enumerate(path):
            score = score + (table[path[t - 1], z].log() if t else 0.0)
            score = score + (0.0 if bool(x[t].isnan()) else dist.Normal(loc[z], 0.8).log_prob(x[t]))
        scores.append(score)
    shares = torch.stack(scores).softmax(0)
    completed = result.impute()
    for t in range(len(x)):
        expected = (shares * loc[torch.tensor([p[t] for p in paths])]).sum() if bool(x[t].isnan()) else x[t]
        assert float(completed[f"x_{t}"]) == pytest.approx(float(expected), abs=1e-9)
    draws = result.impute(num_samples=300, seed=0)
    assert draws["x_1"].shape == (300,) and bool((draws["x_0"] == x[0]).all()) and float(draws["x_1"].std()) > 0.5


def categories(x: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    probs = pyro.param("probs", torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]]), constraint=constraints.simplex)
    rate = pyro.param("rate", torch.tensor([1.3, 6.4]), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("a", dist.Categorical(probs[z]), obs=x[:, 0])
        pyro.sample("b", dist.Poisson(rate[z]), obs=x[:, 1])


def test_whole_numbers_get_their_most_probable_value() -> None:
    x = torch.tensor([[0.0, NAN], [2.0, NAN], [NAN, 0.0], [NAN, 9.0], [NAN, NAN], [1.0, 3.0]])
    result = ppl_em.fit(categories, x, init="params", method=ppl_em.EM(max_steps=0))
    p, completed = result.params, result.impute()
    for i, row in enumerate(x):
        scores = p["weights"].log()
        scores = scores if bool(row[0].isnan()) else scores + p["probs"][:, int(row[0])].log()
        scores = scores if bool(row[1].isnan()) else scores + dist.Poisson(p["rate"]).log_prob(row[1])
        shares = scores.softmax(0)
        a = row[0] if not bool(row[0].isnan()) else (shares @ p["probs"]).argmax()
        grid = torch.arange(30.0)[:, None]
        b = row[1] if not bool(row[1].isnan()) else (dist.Poisson(p["rate"]).log_prob(grid).exp() @ shares).argmax()
        assert float(completed["a"][i]) == float(a) and float(completed["b"][i]) == float(b)


def test_what_has_no_mean_says_so() -> None:
    def heavy(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Cauchy(loc, 1.0), obs=x)

    result = ppl_em.fit(heavy, torch.tensor([0.3, NAN, 1.0]))
    with pytest.raises(PplEmError, match="no conditional mean at site 'x'.*num_samples"):
        result.impute()
    assert bool(result.impute(num_samples=5, seed=0)["x"].isfinite().all())


def test_complete_data_stay_what_they_are() -> None:
    x = faithful()[:30]
    result = ppl_em.fit(diagonal, x, init="params", method=ppl_em.EM(max_steps=0))
    assert torch.equal(result.impute()["x"], x)
    assert torch.equal(result.impute(num_samples=2, seed=0)["x"], x.expand(2, *x.shape))
