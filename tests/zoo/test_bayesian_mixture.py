"""A truncated Dirichlet process mixture on Old Faithful keeps two of ten components."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pytest
import torch
import torch.nn.functional as F
from pyro.distributions import Beta, Categorical, Gamma, MultivariateNormal, Poisson

import ppl_em
from models import bayesian_mixture, gmm
from tests.tolerances import ASCENT

VARIATIONAL = ppl_em.EM(globals="variational")


@pytest.fixture(scope="module")
def result() -> ppl_em.FitResult:
    return ppl_em.fit(bayesian_mixture.model, bayesian_mixture.load(), method=VARIATIONAL, restarts=4)


def test_plan(golden_plan: Callable) -> None:
    plan = ppl_em.explain(bayesian_mixture.model, bayesian_mixture.load(), method=VARIATIONAL)
    assert plan.engine_of("z") == "mixture"
    for name in ("breaks", "precision", "loc"):
        assert plan.engine_of(name) == "variational"
        assert plan.rule_of(name) == "conjugate update"
    assert not plan.exact
    golden_plan("bayesian_mixture", plan)


def test_old_faithful_keeps_two_components(result: ppl_em.FitResult) -> None:
    probs = result.posterior().marginal("z").probs
    data = probs.sum(0).sort(descending=True).values
    assert data[1] > 90
    assert float(data[2:].sum()) < 1e-3
    assert result.converged
    falls = (result.history[:-1] - result.history[1:]).max()
    assert float(falls) <= ASCENT * (1 + abs(result.objective))
    labels = ppl_em.fit(gmm.model, gmm.load()).posterior().marginal("z").probs.argmax(-1)
    mine = probs[:, probs.sum(0).argsort(descending=True)[:2]].argmax(-1)
    agreement = float((mine == labels).double().mean())
    assert max(agreement, 1 - agreement) > 0.98


def test_empty_components_have_their_priors(result: ppl_em.FitResult) -> None:
    empty = result.posterior().marginal("z").probs.sum(0) < 1e-6
    assert int(empty.sum()) >= 7
    assert torch.allclose(result.guide_params["precision.df"][empty], torch.tensor(4.0, dtype=torch.float64))
    centre = bayesian_mixture.load().mean(0)
    torch.testing.assert_close(result.point_estimates["loc"][empty], centre.expand(int(empty.sum()), 2))


def test_eight_empty_components_cost_a_nat(result: ppl_em.FitResult) -> None:
    options = {"num_components": 2}
    two = ppl_em.fit(
        bayesian_mixture.model, bayesian_mixture.load(), method=VARIATIONAL, model_kwargs=options, restarts=2
    )
    assert result.objective < two.objective < result.objective + 2.0


# The two programs of Pyro's tutorial on Dirichlet process mixtures, as they stand there -------------------------

T, alpha = 6, 0.1


def mix_weights(beta):
    beta1m_cumprod = (1 - beta).cumprod(-1)
    return F.pad(beta, (0, 1), value=1) * F.pad(beta1m_cumprod, (1, 0), value=1)


def planar(data):
    with pyro.plate("beta_plate", T - 1):
        beta = pyro.sample("beta", Beta(1, alpha))

    with pyro.plate("mu_plate", T):
        mu = pyro.sample("mu", MultivariateNormal(torch.zeros(2), 5 * torch.eye(2)))

    with pyro.plate("data", len(data)):
        z = pyro.sample("z", Categorical(mix_weights(beta)))
        pyro.sample("obs", MultivariateNormal(mu[z], torch.eye(2)), obs=data)


def counts(data):
    with pyro.plate("beta_plate", T - 1):
        beta = pyro.sample("beta", Beta(1, 1.1))

    with pyro.plate("lambda_plate", T):
        lmbda = pyro.sample("lambda", Gamma(3, 0.05))

    with pyro.plate("data", len(data)):
        z = pyro.sample("z", Categorical(mix_weights(beta)))
        pyro.sample("obs", Poisson(lmbda[z]), obs=data)


def test_the_tutorials_planar_mixture_keeps_its_four_clusters() -> None:
    torch.manual_seed(0)
    centres = torch.tensor([[-8.0, -8.0], [8.0, 8.0], [1.5, 2.0], [-0.5, 1.0]])
    data = torch.cat([MultivariateNormal(c, torch.eye(2)).sample((50,)) for c in centres])
    result = ppl_em.fit(planar, data, method=VARIATIONAL, restarts=4)
    sizes, order = result.posterior().marginal("z").probs.sum(0).sort(descending=True)
    assert float(sizes[4:].sum()) < 1e-3
    found = result.point_estimates["mu"][order[:4]]
    assert float(torch.cdist(centres, found).amin(1).max()) < 0.6


def test_the_tutorials_mixture_of_counts_prunes_itself() -> None:
    torch.manual_seed(0)
    data = Poisson(torch.tensor([5.0, 40.0, 120.0])[torch.arange(150) % 3]).sample()
    result = ppl_em.fit(counts, data, method=VARIATIONAL, restarts=4)
    sizes, order = result.posterior().marginal("z").probs.sum(0).sort(descending=True)
    assert float(sizes[3:].sum()) < 0.1
    rates = result.point_estimates["lambda"][order[:3]].sort().values
    means = torch.stack([data[i::3].mean() for i in range(3)])
    torch.testing.assert_close(rates, means, rtol=0.02, atol=0.0)
