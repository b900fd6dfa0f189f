"""A mixture with more components than needed: a truncated Dirichlet process leaves the rest of them empty.

The weights are the pieces of a stick broken again and again, as in Pyro's tutorial on Dirichlet process mixtures; each
component has a mean and a precision matrix under their conjugate prior.

Plan: with ``EM(globals="variational")`` the component ``z`` of each datum is summed out by the ``mixture`` engine under
expected log-densities; the breaks have beta factors, means and precisions a normal-Wishart factor for each component.
Peer: scikit-learn's ``BayesianGaussianMixture`` (the same responsibilities at every step, the same bound up to a constant
that depends on hyperparameters and sizes alone); Old Faithful keeps two of ten components.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch.nn.functional import pad

DATA = Path(__file__).parent / "data" / "faithful.csv"


def load(path=None):
    """Read a table of numbers; Old Faithful's eruptions by default (length and waiting time, minutes).

    Returns:
        Data, shape (n, d), float64.
    """
    return torch.from_numpy(pd.read_csv(path or DATA).to_numpy(np.float64))


def pieces(breaks):
    """Return the lengths of the pieces of a stick of length one that is broken at the given fractions of what is left.

    Args:
        breaks: shape (k - 1,).

    Returns:
        Lengths, shape (k,).
    """
    left = (1 - breaks).cumprod(-1)
    return pad(breaks, (0, 1), value=1.0) * pad(left, (1, 0), value=1.0)


def model(x, num_components=10, concentration=0.1, relative_precision=0.1):
    """Draw each row of ``x`` from one of the components.

    Args:
        x: data, shape (n, d).
        num_components: number of pieces at which the stick is broken off, K.
        concentration: of the Dirichlet process: the smaller, the fewer components.
        relative_precision: of a component's mean under the prior, in units of the precision of a datum.
    """
    n, d = x.shape
    with pyro.plate("break", num_components - 1):
        breaks = pyro.sample("breaks", dist.Beta(1.0, concentration))
    with pyro.plate("component", num_components):
        precision = pyro.sample("precision", dist.Wishart(x.new_tensor(d + 2.0), precision_matrix=x.T.cov()))
        loc = pyro.sample("loc", dist.MultivariateNormal(x.mean(0), precision_matrix=relative_precision * precision))
    with pyro.plate("data", n):
        z = pyro.sample("z", dist.Categorical(pieces(breaks)))
        pyro.sample("x", dist.MultivariateNormal(loc[z], precision_matrix=precision[z]), obs=x)
