"""Programs whose parameters have every kind of M-step rule, and data for them."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

K = 3


def three_kinds(count: int, seed: int = 0) -> Tensor:
    """Draws from a mixture of three normals, (count,)."""
    generator = torch.Generator().manual_seed(seed)
    kind = torch.multinomial(torch.tensor([0.4, 0.5, 0.1]), count, True, generator=generator)
    noise = torch.randn(count, generator=generator, dtype=torch.float64)
    return torch.tensor([-3.0, 1.0, 4.0])[kind] + torch.tensor([1.0, 0.7, 2.0])[kind] * noise


def covariate(count: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """A covariate and an outcome on one of two lines, both (count,)."""
    generator = torch.Generator().manual_seed(seed)
    u, noise = torch.randn(2, count, generator=generator, dtype=torch.float64)
    first = torch.rand(count, generator=generator) < 0.5
    return u, torch.where(first, 2 * u + 1, -u) + 0.3 * noise


def normals(x: Tensor) -> None:
    """Closed forms: three normals."""
    weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-3.0, 0.5, 2.0]))
    scale = pyro.param("scale", torch.ones(K), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def vectors(x: Tensor) -> None:
    """Closed forms with full covariances; x (n,) becomes pairs."""
    weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([[-3.0, 0.0], [0.5, 1.0], [2.0, 2.0]]))
    covariance = pyro.param("covariance", torch.eye(2).repeat(K, 1, 1), constraint=constraints.positive_definite)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pairs = torch.stack([x, x.sin() + 0.2 * x], 1)
        pyro.sample("x", dist.MultivariateNormal(loc[z], covariance[z]), obs=pairs)


def priors(x: Tensor) -> None:
    """Modes under conjugate priors, and one under a prior that is not."""
    weights = pyro.sample("weights", dist.Dirichlet(2 * torch.ones(K)))
    with pyro.plate("components", K):
        loc = pyro.sample("loc", dist.Normal(torch.tensor([-3.0, 0.5, 2.0]), 10.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def precisions(x: Tensor) -> None:
    """Gamma priors of precisions beside known means."""
    weights = pyro.sample("weights", dist.Dirichlet(2 * torch.ones(K)))
    with pyro.plate("components", K):
        precision = pyro.sample("precision", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(torch.tensor([-3.0, 1.0, 4.0])[z], precision[z].rsqrt()), obs=x)


def with_holes(x: Tensor) -> None:
    """Missing entries: two measurements of each datum, some of them NaN."""
    weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([[-3.0, 0.0], [0.5, 1.0], [2.0, 2.0]]))
    scale = pyro.param("scale", torch.ones(K, 2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pairs = torch.stack([x, x.sin() + 0.2 * x], 1)
        pairs = torch.where((100 * pairs).round().long() % 5 == 0, torch.nan, pairs)
        pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=pairs)


def lines(u: Tensor, y: Tensor) -> None:
    """Least squares and residual scales: a mixture of two regressions."""
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    shift = pyro.param("shift", torch.tensor([0.0, 1.0]))
    slope = pyro.param("slope", torch.tensor([1.0, -1.0]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(u)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal(shift[z] + slope[z] * u, scale[z]), obs=y)


def gate(u: Tensor, y: Tensor) -> None:
    """Newton's method: a logistic gate between two normals."""
    gate = pyro.param("gate", torch.tensor([0.1, 0.5]))
    loc = pyro.param("loc", torch.tensor([0.0, 1.0]))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(u)):
        z = pyro.sample("z", dist.Bernoulli(logits=gate[0] + gate[1] * u))
        pyro.sample("y", dist.Normal(loc[z.long()], scale), obs=y)


def heavy_tails(x: Tensor) -> None:
    """A rule that goes through the data one by one."""
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.StudentT(4.0, loc[z], scale[z]), obs=x)


def exposures(u: Tensor, y: Tensor) -> None:
    """An argument that varies with the data: rates per unit of exposure."""
    rate = pyro.param("rate", torch.tensor([1.0, 3.0]), constraint=constraints.positive)
    weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    with pyro.plate("data", len(u)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("n", dist.Poisson(rate[z] * (u.abs() + 0.5)), obs=(y * y).round())


def chains(x: Tensor) -> None:
    """Hidden Markov chains of symbols; x (n, T)."""
    init = pyro.param("init", torch.tensor([0.5, 0.3, 0.2]), constraint=constraints.simplex)
    trans = pyro.param("trans", 0.5 * torch.eye(K) + 0.5 / K, constraint=constraints.simplex)
    table = torch.tensor([[3.0, 1.0, 1.0, 1.0], [1.0, 3.0, 1.0, 2.0], [1.0, 1.0, 4.0, 1.0]])
    emit = pyro.param("emit", table / table.sum(-1, True), constraint=constraints.simplex)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z_0", dist.Categorical(init))
        for t in range(x.shape[1]):
            if t:
                z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
            pyro.sample(f"x_{t}", dist.Categorical(emit[z]), obs=x[:, t])


def symbols(count: int, steps: int, seed: int = 2) -> Tensor:
    """Sequences of four symbols from a sticky chain of three states, (count, steps)."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.6, 0.1, 0.2], [0.1, 0.1, 0.7, 0.1]])
    z = torch.randint(K, (count,), generator=generator)
    found = []
    for _ in range(steps):
        found.append(torch.multinomial(table[z], 1, generator=generator)[:, 0])
        moves = torch.rand(count, generator=generator) < 0.2
        z = torch.where(moves, torch.randint(K, (count,), generator=generator), z)
    return torch.stack(found, 1)


class Curve(torch.nn.Module):
    """Gradient steps: a network bends the mean of two branches."""

    def __init__(self) -> None:
        super().__init__()
        self.net = torch.nn.Linear(1, 1)
        with torch.no_grad():
            self.net.weight.fill_(0.5)
            self.net.bias.fill_(0.1)

    def forward(self, u: Tensor, y: Tensor) -> None:
        """Scores outcomes y (n,) given covariates u (n,)."""
        net = pyro.module("net", self.net)
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        weights = pyro.param("weights", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        with pyro.plate("data", len(u)):
            z = pyro.sample("z", dist.Categorical(weights))
            mean = net(u[:, None]).tanh()[:, 0]
            pyro.sample("y", dist.Normal(mean * (2.0 * z - 1), scale), obs=y)


class Subsampled:
    """A plate that stands for more data than a batch holds, under a prior that is counted once.

    Args:
        total: number of all data.
    """

    def __init__(self, total: int) -> None:
        self.total = total

    def __call__(self, x: Tensor) -> None:
        """Scores a batch x (n,)."""
        loc = pyro.param("loc", torch.tensor([-3.0, 0.5, 2.0]))
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", self.total, subsample_size=len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(K) / K))
            pyro.sample("x", dist.Normal(loc[z] + shift, 1.0), obs=x)
