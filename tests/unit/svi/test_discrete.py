"""Discrete latents that no exact engine sums: their variational family, and gradients by the score function."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ppl_em
from ppl_em.errors import PlanError
from ppl_em.fitting import ENGINES
from ppl_em.problem import pose
from ppl_em.svi.discrete import Finite
from ppl_em.svi.setup import prepare
from ppl_em.svi.trainer import Trainer

#: A budget in which no pair of latents is summed.
POOR = 10.0
X = torch.tensor([0.2, 1.9, 3.1, -0.4])


def pairs(x: Tensor) -> None:
    """Two latents for each datum, coupled by what is observed, and one for all data."""
    rate = pyro.param("rate", torch.tensor(0.3), constraint=constraints.unit_interval)
    shift = pyro.sample("shift", dist.Categorical(torch.tensor([0.5, 0.3, 0.2])))
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
        b = pyro.sample("b", dist.Bernoulli(rate))
        pyro.sample("x", dist.Normal(a + 1.5 * b + 0.5 * shift, 0.7), obs=x)


def trainer_of(model: Callable[..., Any], *args: Any, **options: Any) -> tuple[Trainer, Any]:
    problem = pose(model, args, ENGINES, method=ppl_em.Auto(max_flops=POOR), **options)
    assert problem.plan.method == "svi"
    setup = prepare(problem.source, problem.plan, problem.svi, None, problem.values, problem.weights)
    return setup.trainer, next(iter(setup.train.all()))[1]


def exact_bound(q: dict[str, Tensor], rate: Tensor, weights: Tensor) -> Tensor:
    """E_q[log p − log q] of `pairs` with all values written out; q holds probabilities by latent."""
    prior = {
        "a": torch.tensor([0.2, 0.5, 0.3]),
        "shift": torch.tensor([0.5, 0.3, 0.2]),
        "b": torch.stack([1 - rate, rate]),
    }
    total = (q["shift"] * (prior["shift"].log() - q["shift"].log())).sum()
    for n in range(len(X)):
        for z in ("a", "b"):
            total = total + weights[n] * (q[z][n] * (prior[z].log() - q[z][n].log())).sum()
        for s, a, b in itertools.product(range(3), range(3), range(2)):
            log_prob = dist.Normal(torch.tensor(a + 1.5 * b + 0.5 * s), 0.7).log_prob(X[n])
            total = total + weights[n] * q["shift"][s] * q["a"][n, a] * q["b"][n, b] * log_prob
    return total


def test_the_gradient_is_that_of_the_bound_written_out() -> None:
    weights = torch.tensor([1.0, 3.0, 0.5, 2.0])
    trainer, batch = trainer_of(pairs, X, weights=weights)
    torch.manual_seed(1)
    for leaf in trainer.variables.trained:  # away from the symmetric start
        leaf.data.add_(0.3 * torch.randn_like(leaf))
    parameters = trainer.variables.constrained()
    drawn = {s.name: s.fn for s in trainer.guide.draw(batch, parameters)}
    q = {
        "a": drawn["a"].probs,
        "shift": drawn["shift"].probs,
        "b": torch.stack([1 - drawn["b"].probs, drawn["b"].probs], -1),
    }
    leaves = trainer.variables.trained
    exact = exact_bound(q, parameters["rate"], weights)
    wanted = torch.autograd.grad(exact, leaves, allow_unused=True)
    runs = 150
    sums = [torch.zeros_like(leaf) for leaf in leaves]
    squares = [torch.zeros_like(leaf) for leaf in leaves]
    value = 0.0
    for _ in range(runs):
        estimate, _ = trainer.estimate(batch, 8)
        value += float(estimate.detach()) / runs
        for total, square, g in zip(
            sums, squares, torch.autograd.grad(estimate, leaves, allow_unused=True), strict=True
        ):
            if g is not None:
                total += g / runs
                square += g.square() / runs
    assert value == pytest.approx(float(exact.detach()), abs=0.2)
    known = [torch.zeros_like(m) if k is None else k for m, k in zip(sums, wanted, strict=True)]
    off = sum(float((m - k).square().sum()) for m, k in zip(sums, known, strict=True))
    noise = sum(float((s - m.square()).sum()) / runs for m, s in zip(sums, squares, strict=True))
    assert off < 4 * noise
    assert noise < 0.05 * sum(float(k.square().sum()) for k in known)


def best_mean_field(rate: Tensor) -> float:
    """The highest bound of independent latents, by gradient ascent from several starts."""
    best = -torch.inf
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        free = [torch.randn(s, generator=generator).requires_grad_() for s in ((4, 3), (4, 2), (3,))]
        optimiser = torch.optim.LBFGS(free, max_iter=60, line_search_fn="strong_wolfe")

        def loss(free: list[Tensor] = free, optimiser: Any = optimiser) -> Tensor:
            optimiser.zero_grad()
            q = {n: f.softmax(-1) for n, f in zip(("a", "b", "shift"), free, strict=True)}
            value = -exact_bound(q, rate, torch.ones(4))
            value.backward()
            return value

        best = max(best, -float(optimiser.step(loss).detach()), -float(loss().detach()))
    return best


def test_the_fallback_says_why_and_bounds_the_likelihood() -> None:
    exact = ppl_em.fit(pairs, X, method="em")
    method = ppl_em.Auto(max_flops=POOR, svi=ppl_em.SVI(max_steps=400, lr=0.01))
    result = ppl_em.fit(pairs, X, method=method)
    assert not result.exact
    assert result.plan.engine_of("a") == "amortised"
    assert result.plan.engine_of("shift") == "variational"
    assert "the budget is 1.0e+01 operations" in dict(result.plan.rejected["a"])["exact"]
    assert exact.log_likelihood is not None
    value, error = result.estimate_log_likelihood(500)
    assert result.objective < exact.log_likelihood + 0.05
    assert value < exact.log_likelihood + 5 * error + 0.05
    assert result.objective > best_mean_field(result.params["rate"]) - 0.5
    draws = result.posterior().sample(7, seed=0)
    assert {n: tuple(v.shape) for n, v in draws.items()} == {"shift": (7,), "a": (7, 4), "b": (7, 4)}
    assert set(draws["b"].unique().tolist()) <= {0.0, 1.0}


def test_listed_values_have_their_probabilities() -> None:
    values, logits = torch.tensor([0.0, 1.0, 2.0]), torch.randn(4, 3)
    found = Finite(values, logits)
    assert torch.allclose(found.log_prob(values[:, None]), logits.log_softmax(-1).mT)
    assert float(found.log_prob(torch.tensor([5.0, 0.0, 1.0, 2.0]))[0]) == -torch.inf
    torch.manual_seed(0)
    share = (found.sample((20_000,)) == 1.0).double().mean(0)
    assert torch.allclose(share, found.probs[:, 1], atol=0.02)
    assert found.expand([2, 4]).sample().shape == (2, 4)


def counts(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Poisson(3.0))
        pyro.sample("x", dist.Normal(k, 1.0), obs=x)


def test_an_infinite_support_without_guide_is_named() -> None:
    with pytest.raises(PlanError, match=r"infinite.*site 'k'.*truncated"):
        ppl_em.fit(counts, X)


def test_a_guide_that_draws_counts_is_trained_by_the_score() -> None:
    def guide(x: Tensor) -> None:
        rate = pyro.param("rate", torch.ones(4), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Poisson(rate))

    result = ppl_em.fit(counts, X + 4, guide=guide, method=ppl_em.SVI(max_steps=600, lr=0.03))
    rates = torch.linspace(0.3, 12.0, 400)[:, None, None]
    k = torch.arange(60.0)
    q, p = dist.Poisson(rates), dist.Poisson(3.0)
    inside = p.log_prob(k) + dist.Normal(k, 1.0).log_prob((X + 4)[:, None]) - q.log_prob(k)
    best = (q.log_prob(k).exp() * inside).sum(-1).max(0)
    assert result.guide_params["rate"].tolist() == pytest.approx(rates[best.indices, 0, 0].tolist(), rel=0.15)
    with pytest.raises(PlanError, match="no derivative"):
        ppl_em.fit(counts, X + 4, guide=guide, method=ppl_em.SVI(max_steps=5, loss="iwae", num_particles=4))
