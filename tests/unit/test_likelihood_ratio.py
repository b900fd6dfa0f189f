"""Is one component more needed? By simulation."""

from __future__ import annotations

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ppl_em
from ppl_em.errors import ConvergenceError, DataError, PlanError


def mixture(x: Tensor, num_components: int) -> None:
    weights = pyro.param("weights", torch.ones(num_components) / num_components, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.linspace(-1, 1, num_components))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale), obs=x)


def fits(x: Tensor, *sizes: int) -> list[ppl_em.FitResult]:
    return [ppl_em.fit(partial(mixture, num_components=k), x, restarts=3) for k in sizes]


def noise(count: int = 60) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(11))


def test_two_clusters_need_two_components() -> None:
    x = noise() + torch.tensor([-3.0, 3.0]).repeat(30)
    one, two = fits(x, 1, 2)
    test = ppl_em.likelihood_ratio_test(one, two, num_samples=9, restarts=1)
    assert test.statistic == pytest.approx(2 * (two.log_likelihood - one.log_likelihood))  # type: ignore[operator]
    assert test.p_value == 0.1
    assert test.draws.shape == (9,) and bool((test.draws >= 0).all())
    assert str(test).startswith("likelihood ratio") and "p = 0.1" in str(test)


def test_one_cluster_needs_one() -> None:
    one, two = fits(noise(), 1, 2)
    test = ppl_em.likelihood_ratio_test(one, two, num_samples=9, restarts=1, seed=3)
    assert test.p_value > 0.1
    few = {"num_samples": 2, "restarts": 1}
    again, same, other = (ppl_em.likelihood_ratio_test(one, two, seed=s, **few) for s in (3, 3, 4))
    assert torch.equal(again.draws, same.draws)
    assert not torch.equal(again.draws, other.draws)


@pytest.mark.slow
def test_p_values_are_uniform_under_the_smaller_program() -> None:
    """Where the data come from it, p ≤ 0.2 in a fifth of cases (a few more or less)."""
    small = 0
    for seed in range(40):
        x = torch.randn(30, generator=torch.Generator().manual_seed(100 + seed))
        test = ppl_em.likelihood_ratio_test(*fits(x, 1, 2), num_samples=9, restarts=2, seed=seed)
        small += test.p_value <= 0.2 + 1e-9
    assert 2 <= small <= 16  # binomial(40, 0.2): outside with probability below 1 %


def test_what_cannot_be_tested_is_refused() -> None:
    one, two = fits(noise(), 1, 2)
    with pytest.raises(PlanError, match="more parameters"):
        ppl_em.likelihood_ratio_test(two, one)
    with pytest.raises(PlanError, match="num_samples"):
        ppl_em.likelihood_ratio_test(one, two, num_samples=0)
    with pytest.raises(DataError, match="different data"):
        ppl_em.likelihood_ratio_test(one, fits(noise(50), 2)[0])


def test_a_larger_fit_that_lies_lower_is_no_optimum() -> None:
    x = noise() + torch.tensor([-3.0, 3.0]).repeat(30)
    one = fits(x, 1)[0]
    low = ppl_em.fit(partial(mixture, num_components=2), x, init={"loc": [40.0, 50.0]}, method=ppl_em.EM(max_steps=0))
    with pytest.raises(ConvergenceError, match="not at its optimum"):
        ppl_em.likelihood_ratio_test(one, low)
