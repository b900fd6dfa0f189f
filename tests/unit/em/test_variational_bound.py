"""The bound is E_q[log p − log q]: both halves against draws from q, scored by Pyro."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

import ppl_em
from models.bayesian_mixture import pieces
from ppl_em.variational_em.density import log_density

DRAWS = 250


def hierarchy(x: Tensor) -> None:
    """Priors made of other latents: every factor its own."""
    centre = pyro.sample("centre", dist.Normal(0.0, 5.0))
    between = pyro.sample("between", dist.InverseGamma(3.0, 2.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    group = torch.arange(len(x)) % 3
    with pyro.plate("group", 3):
        mu = pyro.sample("mu", dist.Normal(centre, between.sqrt()))
        tau = pyro.sample("tau", dist.Gamma(2.0, rate))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu[group], tau[group].rsqrt()), obs=x[:, 0])


def independent_vectors(x: Tensor) -> None:
    """Means and precision matrices with independent priors: the means' factors have covariances of their own."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("component", 2):
        precision = pyro.sample("precision", dist.Wishart(torch.tensor(5.0), covariance_matrix=0.3 * torch.eye(2)))
        loc = pyro.sample("loc", dist.MultivariateNormal(torch.ones(2), torch.tensor([[4.0, 1.0], [1.0, 2.0]])))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(loc[z], precision_matrix=precision[z]), obs=x)


def tied(x: Tensor) -> None:
    """One precision for all components: all means share its factor."""
    breaks = pyro.sample("breaks", dist.Beta(torch.ones(2), 0.5).to_event(1))
    variance = pyro.sample("variance", dist.InverseGamma(3.0, 2.0))
    with pyro.plate("component", 3):
        mu = pyro.sample("mu", dist.Normal(1.0, (4 * variance).sqrt()))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(pieces(breaks)))
        pyro.sample("x", dist.Normal(mu[z], variance.sqrt()), obs=x[:, 0])


def chain(x: Tensor) -> None:
    """A hidden Markov model with a matrix precision in each state."""
    with pyro.plate("state", 2):
        moves = pyro.sample("moves", dist.Dirichlet(torch.full((2,), 0.8)))
        precision = pyro.sample("precision", dist.Wishart(torch.tensor(5.0), covariance_matrix=0.3 * torch.eye(2)))
        loc = pyro.sample("loc", dist.MultivariateNormal(torch.ones(2), precision_matrix=0.2 * precision))
    z: Any = 0
    for t in pyro.markov(range(10)):
        z = pyro.sample(f"z_{t}", dist.Categorical(moves[z]))
        pyro.sample(f"x_{t}", dist.MultivariateNormal(loc[z], precision_matrix=precision[z]), obs=x[3 * t])


def data() -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.cat([torch.randn(15, 2, generator=generator) + m for m in (0.0, 3.0)])


@pytest.mark.parametrize("model", [hierarchy, independent_vectors, tied, chain])
def test_both_halves_of_the_bound(model: Any) -> None:
    x = data()
    result: Any = ppl_em.fit(model, x, method=ppl_em.EM(globals="variational"), restarts=2)
    q, terms = result.posterior(), result.terms()
    drawn = q.sample(DRAWS, seed=1)
    joint = torch.zeros(DRAWS)
    for i in range(DRAWS):
        values = q.by_step({n: v[i] for n, v in drawn.items()})
        trace = poutine.trace(poutine.condition(model, data=values)).get_trace(x)
        joint[i] = trace.log_prob_sum()
    assert abs(float(joint.mean()) - terms["expected_log_joint"]) < 4 * float(joint.std()) / DRAWS**0.5
    density = log_density(q.network, q.factors, drawn)
    local = float(q.entropy()) + float(density.mean())  # what is left is the entropy of the summed latents
    exact = sum(float(e.engine.posterior(e.block, q._factors).entropy().tensor.sum()) for e in result.plan.blocks)
    assert abs(local - exact) < 4 * float(density.std()) / DRAWS**0.5
    assert terms["expected_log_joint"] + terms["entropy"] == pytest.approx(result.objective)


def test_locations_share_the_factor_of_their_precision_where_that_is_the_optimum() -> None:
    plans = {m: ppl_em.explain(m, data(), method=ppl_em.EM(globals="variational")) for m in (tied, independent_vectors)}
    assert "mu[3]) = Normal given variance (normal-gamma)" in str(plans[tied])
    assert "loc[2×2]) = MultivariateNormal, from x" in str(plans[independent_vectors])
