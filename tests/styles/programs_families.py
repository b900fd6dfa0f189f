"""Discrete latents of every family, vectors of them, supports that differ or depend; bare parameters."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from tests.styles.programs_indexing import X, locs, scale, weights


def binomial(x: Tensor) -> None:
    p = pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval)
    loc, s = pyro.param("m", torch.tensor(0.5)), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Binomial(3, p))
        pyro.sample("x", dist.Normal(z * loc, s), obs=x)


def binomial_totals(x: Tensor) -> None:
    """The number of trials differs between data."""
    p = pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval)
    loc, s = pyro.param("m", torch.tensor(0.5)), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Binomial(torch.tensor([1.0, 3.0, 2.0, 0.0]), p))
        pyro.sample("x", dist.Normal(z * loc, s), obs=x)


def binomial_of_latent(x: Tensor) -> None:
    """The number of trials is a latent."""
    p = pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval)
    with pyro.plate("data", 3):
        n = pyro.sample("n", dist.Categorical(weights()))
        z = pyro.sample("z", dist.Binomial(n, p))
        pyro.sample("x", dist.Normal(z - 0.3 * n, scale()), obs=x[:3])


def beta_binomial(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.BetaBinomial(2.0, 3.0, total_count=3))
        pyro.sample("x", dist.Normal(z - 1.0, scale()), obs=x)


def one_hot(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(w))
        pyro.sample("x", dist.Normal((z * loc).sum(-1), s), obs=x)


def bernoulli_vector(x: Tensor) -> None:
    p = pyro.param("p", torch.tensor([0.3, 0.6, 0.5]), constraint=constraints.unit_interval)
    w = pyro.param("v", torch.tensor([1.0, -2.0, 0.5]))
    with pyro.plate("data", 2):
        z = pyro.sample("z", dist.Bernoulli(p).to_event(1))
        pyro.sample("x", dist.Normal(z @ w, scale()), obs=x[:2])


def bernoulli_matrix(x: Tensor) -> None:
    z = pyro.sample("z", dist.Bernoulli(torch.tensor([[0.3, 0.6], [0.5, 0.2]])).to_event(2))
    pyro.sample("x", dist.Normal(z.sum((-1, -2)), scale()), obs=x[0])


def categorical_vector(x: Tensor) -> None:
    with pyro.plate("data", 2):
        z = pyro.sample("z", dist.Categorical(weights().expand(2, 3)).to_event(1))
        pyro.sample("x", dist.Normal(locs()[z].sum(-1), scale()), obs=x[:2])


def truncated_poisson(x: Tensor) -> None:
    rate = pyro.param("rate", torch.tensor(1.4), constraint=constraints.positive)
    counts = torch.arange(5.0)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(logits=dist.Poisson(rate).log_prob(counts)))
        pyro.sample("x", dist.Normal(0.7 * z, scale()), obs=x)


def zeros(x: Tensor) -> None:
    """Probabilities of exactly zero."""
    loc, s = locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.0, 0.4, 0.6])))
        pyro.sample("x", dist.Normal(loc[z], s), obs=x)


def impossible(x: Tensor) -> None:
    """Some states cannot have produced a datum: their density is zero."""
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Categorical(weights()))
        pyro.sample("x", dist.Uniform(z - 1.5, z + 1.0), obs=torch.tensor([0.2, 0.9, -0.7]))


def dirichlet_likelihood(x: Tensor) -> None:
    """Observations with event dimensions."""
    alpha = pyro.param("alpha", torch.tensor([[1.0, 2.0, 3.0], [2.0, 2.0, 1.0]]), constraint=constraints.positive)
    data = torch.tensor([[0.2, 0.3, 0.5], [0.6, 0.2, 0.2]])
    with pyro.plate("data", 2):
        z = pyro.sample("z", dist.Categorical(weights(2)))
        pyro.sample("x", dist.Dirichlet(alpha[z]), obs=data)


def to_event(x: Tensor) -> None:
    table = pyro.param("table", torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 3.0]]))
    with pyro.plate("data", 2):
        z = pyro.sample("z", dist.Categorical(weights()))
        pyro.sample("x", dist.Normal(table[z], scale()).to_event(1), obs=x.reshape(2, 2))


def covariances(x: Tensor) -> None:
    eye = torch.eye(2).expand(3, 2, 2)
    loc = pyro.param("table", torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 3.0]]))
    tril = pyro.param("tril", eye.clone(), constraint=constraints.lower_cholesky)
    with pyro.plate("data", 2):
        z = pyro.sample("z", dist.Categorical(weights()))
        pyro.sample("x", dist.MultivariateNormal(loc[z], scale_tril=tril[z]), obs=x.reshape(2, 2))


def bare_scale(x: Tensor) -> None:
    """No constraint is declared: the domain follows from the argument."""
    s = pyro.param("s", torch.tensor([0.5, 1.0, 2.0]))
    p = pyro.param("p", torch.tensor([0.2, 0.3, 0.5]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(p))
        pyro.sample("x", dist.Normal(0.3, s[z]), obs=x)


def bare_variance(x: Tensor) -> None:
    v = pyro.param("v", torch.tensor([0.5, 1.0, 2.0]))
    q = pyro.param("q", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        y = pyro.sample("y", dist.Bernoulli(q))
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        pyro.sample("x", dist.Normal(y, v[z].sqrt()), obs=x)


def bare_weights(x: Tensor) -> None:
    """Unnormalised bare probabilities."""
    p = pyro.param("p", torch.tensor([2.0, 3.0, 5.0]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(p))
        pyro.sample("x", dist.Normal(locs()[z], scale()), obs=x)


def bare_free(x: Tensor) -> None:
    """Bare parameters that go through a transform have no domain of their own."""
    a = pyro.param("a", torch.tensor([0.1, -0.2, 0.4]))
    b = pyro.param("b", torch.tensor([0.3, -0.1, 0.2]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(a.softmax(-1)))
        pyro.sample("x", dist.Normal(0.3, b[z].exp()), obs=x)


PROGRAMS: dict[str, tuple[Any, ...]] = {
    "binomial": (binomial, (X,)),
    "binomial-totals": (binomial_totals, (X,)),
    "binomial-of-latent": (binomial_of_latent, (X,)),
    "beta-binomial": (beta_binomial, (X,)),
    "one-hot": (one_hot, (X,)),
    "bernoulli-vector": (bernoulli_vector, (X,)),
    "bernoulli-matrix": (bernoulli_matrix, (X,)),
    "categorical-vector": (categorical_vector, (X,)),
    "truncated-poisson": (truncated_poisson, (X,)),
    "zeros": (zeros, (X,)),
    "impossible": (impossible, (X,)),
    "dirichlet": (dirichlet_likelihood, (X,)),
    "to-event": (to_event, (X,)),
    "covariances": (covariances, (X,)),
    "bare-scale": (bare_scale, (X,)),
    "bare-variance": (bare_variance, (X,)),
    "bare-weights": (bare_weights, (X,)),
    "bare-free": (bare_free, (X,)),
}
