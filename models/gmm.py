"""A mixture of Gaussians: each datum comes from one of a few components, and which one is not known.

Plan: the component ``z`` of each datum is summed out by the ``mixture`` engine (one logsumexp per datum); weights,
means and covariances have closed forms, the expected counts and moments.
Peer: scikit-learn's ``GaussianMixture`` (the same numbers in every iteration) and R's mclust, which reaches
-1130.264 with two full and -1147.806 with two diagonal covariances on the eruptions of Old Faithful.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

DATA = Path(__file__).parent / "data" / "faithful.csv"


def load(path=None):
    """Read a table of numbers; Old Faithful's eruptions by default (length and waiting time, minutes).

    Returns:
        Data, shape (n, d), float64.
    """
    return torch.from_numpy(pd.read_csv(path or DATA).to_numpy(np.float64))


def model(x, num_components=2, covariance="full"):
    """Draw each row of ``x`` from one of the components.

    Args:
        x: data, shape (n, d).
        num_components: number of components, K.
        covariance: ``"full"`` (one matrix per component), ``"diagonal"`` (one scale per component and column) or
            ``"tied"`` (one matrix for all components).
    """
    n, d = x.shape
    weights = pyro.param("weights", x.new_ones(num_components) / num_components, constraint=constraints.simplex)
    loc = pyro.param("loc", x[torch.linspace(0, n - 1, num_components).long()].clone())
    component = COVARIANCES[covariance](x, num_components, loc)
    with pyro.plate("data", n):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", component(z), obs=x)


def full(x, num_components, loc):
    """Return the distribution of a component, by its number."""
    cov = pyro.param("cov", x.T.cov().repeat(num_components, 1, 1), constraint=constraints.positive_definite)
    return lambda z: dist.MultivariateNormal(loc[z], covariance_matrix=cov[z])


def tied(x, num_components, loc):
    """As ``full``, the components differing in their means only."""
    cov = pyro.param("cov", x.T.cov(), constraint=constraints.positive_definite)
    return lambda z: dist.MultivariateNormal(loc[z], covariance_matrix=cov)


def diagonal(x, num_components, loc):
    """As ``full``, the columns independent within a component."""
    scale = pyro.param("scale", x.std(0).repeat(num_components, 1), constraint=constraints.positive)
    return lambda z: dist.Normal(loc[z], scale[z]).to_event(1)


COVARIANCES = {"full": full, "tied": tied, "diagonal": diagonal}
