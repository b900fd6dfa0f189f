"""Small programs that many tests fit."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor


def mixture(x: Tensor, num_components: int = 2) -> None:
    """Normals on the line with weights, means and scales of their own; x (n,)."""
    k = num_components
    weights = pyro.param("weights", torch.ones(k) / k, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.linspace(-1, 1, k))
    scale = pyro.param("scale", torch.ones(k), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def chain(x: Tensor, mask: Tensor | None = None) -> None:
    """Two states with normal emissions; x (T,)."""
    init = pyro.param("init", torch.tensor([0.6, 0.4]), constraint=constraints.simplex)
    trans = pyro.param("trans", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    z = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
        with poutine.mask(mask=True if mask is None else mask[t]):
            pyro.sample(f"x_{t}", dist.Normal(loc[z], 1.0), obs=x[t])


def two_kinds(n: int = 60, seed: int = 0) -> Tensor:
    """Draws from two overlapping normals, (n,)."""
    generator = torch.Generator().manual_seed(seed)
    shift = 3.0 * (torch.rand(n, generator=generator, dtype=torch.float64) < 0.4)
    return torch.randn(n, generator=generator, dtype=torch.float64) + shift
