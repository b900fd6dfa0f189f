"""Small programs with known answers."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor


def normal(x: Tensor) -> None:
    """A normal sample: estimates, information and profile are known in closed form."""
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def two_normals(x: Tensor) -> None:
    """A mixture of two normals on the line."""
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def unknown_share(x: Tensor) -> None:
    """Two known normals in an unknown proportion: the EM map has one dimension."""
    share = pyro.param("share", torch.tensor(0.5), constraint=constraints.unit_interval)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(share))
        pyro.sample("x", dist.Normal(2.0 * z, 1.0), obs=x)


def softmax_counts(x: Tensor) -> None:
    """Categories with unnormalised log-probabilities: one direction is not identified."""
    logits = pyro.param("logits", torch.zeros(3))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Categorical(logits=logits), obs=x)


def experts(x: Tensor, y: Tensor) -> None:
    """A logistic mixture of two straight lines."""
    gate = pyro.param("gate", torch.tensor([0.0, 0.5]))
    intercept = pyro.param("intercept", torch.tensor([2.0, -2.0]))
    slope = pyro.param("slope", torch.tensor([1.0, -1.0]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(logits=gate[0] + gate[1] * x)).long()
        pyro.sample("y", dist.Normal(intercept[z] + slope[z] * x, scale[z]), obs=y)


def expert_data(n: int = 300, seed: int = 3) -> tuple[Tensor, Tensor]:
    """Draws from `experts` with two well separated lines."""
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.rand(n, generator=generator, dtype=torch.float64) - 2
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    second = torch.rand(n, generator=generator, dtype=torch.float64) < torch.sigmoid(0.3 + 1.2 * x)
    return x, torch.where(second, -2.0 - 0.7 * x + 0.6 * noise, 2.0 + 1.0 * x + 0.9 * noise)


def mixture_data(n: int = 300, seed: int = 0, share: float = 0.4, gap: float = 4.0) -> Tensor:
    """Draws from two normals of scale 1 and 0.7."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, generator=generator, dtype=torch.float64)
    second = torch.rand(n, generator=generator, dtype=torch.float64) < share
    return torch.where(second, gap + 0.7 * noise, noise)
