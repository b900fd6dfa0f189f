"""A mixture of experts: a gate sends each datum to one of a few regressions, by its covariates.

Plan: the expert ``z`` of each datum is summed out by the ``mixture`` engine. A linear gate (``hidden=0``) takes Newton
steps whose Hessian is assembled from its design, a neural gate gradient steps; linear experts are weighted least
squares, neural experts gradient steps (generalised EM); the residual scales have a closed form whatever computes the
means. All of it is one program, and no step lowers the likelihood.
Peer: each piece has its own. The gate alone is scikit-learn's ``LogisticRegression`` without penalty, an expert alone
``LinearRegression``; with constant gates it is ``mixture_of_regressions``.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import nn

DATA = Path(__file__).parent / "data" / "npreg.csv"


def load(path=None):
    """Read a table whose first two columns are a covariate and a response; flexmix's NPreg by default.

    Returns:
        Covariate (standardised), shape (n, 1), and response, shape (n,), float64.
    """
    x, y = pd.read_csv(path or DATA).iloc[:, :2].to_numpy(np.float64).T
    return torch.from_numpy((x - x.mean()) / x.std())[:, None], torch.from_numpy(y.copy())


class Experts(nn.Module):
    """Gate and experts.

    Args:
        num_features: number of covariates, d.
        num_experts: number of experts, K.
        gate_units: hidden units of the gate; 0 makes it linear.
        expert_units: hidden units of each expert; 0 makes them linear.
        seed: of the initial weights.
    """

    def __init__(self, num_features=1, num_experts=2, gate_units=0, expert_units=0, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.gate = network(num_features, gate_units, num_experts)
            self.experts = nn.ModuleList(network(num_features, expert_units, 1) for _ in range(num_experts))
        self.double()

    def forward(self, x, y):
        """Draw each response (n,) from an expert chosen by the covariates (n, d)."""
        pyro.module("experts", self)
        scale = pyro.param("scale", y.std().repeat(len(self.experts)), constraint=constraints.positive)
        means = torch.cat([expert(x) for expert in self.experts], -1)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(logits=self.gate(x)))
            mean = sum(torch.where(z == k, means[:, k], 0.0) for k in range(len(self.experts)))
            pyro.sample("y", dist.Normal(mean, scale[z]), obs=y)


def network(num_inputs, units, num_outputs):
    """Return a linear map, or a network of one hidden layer."""
    if not units:
        return nn.Linear(num_inputs, num_outputs)
    return nn.Sequential(nn.Linear(num_inputs, units), nn.Tanh(), nn.Linear(units, num_outputs))


def model(x, y):
    """A linear gate over two linear experts."""
    return LINEAR(x, y)


LINEAR = Experts()
