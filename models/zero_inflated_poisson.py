"""Zero-inflated counts: some units never have an event, the others have Poisson many.

Plan: whether a unit is ``idle`` is summed out by the ``mixture`` engine; gate and rate are regressions on covariates,
updated by Newton steps whose Hessians are assembled from their designs. With ``latent=False`` the same density is one
site (``ZeroInflatedPoisson``), nothing is summed and Newton's method works on it directly.
Peer: ``statsmodels.discrete.count_model.ZeroInflatedPoisson``, the same maximum.
"""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch


def load(path=None):
    """Read a table whose last column is the count; simulated counts by default (300 units, one covariate).

    Returns:
        Design with an intercept, shape (n, d), and counts, shape (n,), float64.
    """
    if path is not None:
        table = pd.read_csv(path).to_numpy(np.float64)
        x, y = table[:, :-1], table[:, -1]
    else:
        rng = np.random.default_rng(0)
        x = rng.normal(size=(300, 1))
        idle = rng.random(300) < 1 / (1 + np.exp(0.5 - x[:, 0]))
        y = np.where(idle, 0.0, rng.poisson(np.exp(0.8 + 0.5 * x[:, 0])))
    return torch.from_numpy(np.column_stack([np.ones(len(x)), x])), torch.from_numpy(y.copy())


def model(x, y, latent=True):
    """Draw the counts.

    Args:
        x: design, shape (n, d).
        y: counts, shape (n,).
        latent: whether a unit is idle is a site of its own, not part of the counts' distribution.
    """
    gate = pyro.param("gate", x.new_zeros(x.shape[1]))
    coef = pyro.param("coef", x.new_zeros(x.shape[1]))
    with pyro.plate("units", len(y)):
        if latent:
            idle = pyro.sample("idle", dist.Bernoulli(logits=x @ gate))
            rate = torch.where(idle == 1, 0.0, (x @ coef).exp())
            pyro.sample("y", dist.Poisson(rate), obs=y)
        else:
            pyro.sample("y", dist.ZeroInflatedPoisson((x @ coef).exp(), gate_logits=x @ gate), obs=y)
