"""A factorial hidden Markov model: several independent chains whose contributions are seen added together.

Plan: all chains are summed out at once by the ``chain`` engine over their joint state; initial distributions and
transitions have closed forms, the chains' contributions and the noise are one least-squares problem.
Peer: hmmlearn's ``GaussianHMM`` over the joint states, whose transition matrix is the Kronecker product (Ghahramani and
Jordan, 1997, section 4.1).
"""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

FLOAT = torch.float64


def load(path=None):
    """Read one series; 300 simulated steps of a slow and a fast switch by default.

    Returns:
        The last column of the table, shape (T,), float64.
    """
    if path is not None:
        return torch.tensor(pd.read_csv(path).iloc[:, -1].to_numpy(np.float64))
    rng = np.random.default_rng(4)
    slow, fast = ((rng.random(300) < rate).cumsum() % 2 for rate in (0.04, 0.3))
    return torch.from_numpy(4.0 * slow + 1.5 * fast + rng.normal(0, 0.4, 300))


def model(x, num_states=(2, 2)):
    """Draw the series.

    Args:
        x: one series of numbers, shape (T,).
        num_states: number of states of each chain.
    """
    chains = range(len(num_states))
    init = [simplex(f"init_{i}", torch.ones(k, dtype=FLOAT)) for i, k in enumerate(num_states)]
    # Chains that begin alike would stay alike: each stays longer in its states than the one before.
    trans = [simplex(f"trans_{i}", 1 + (i + 1) * k * torch.eye(k, dtype=FLOAT)) for i, k in enumerate(num_states)]
    # A chain adds nothing in its first state, so that levels and contributions are determined.
    spread, none = x.std(correction=0), x.new_zeros(1)
    steps = [torch.arange(1, k, dtype=FLOAT) * 2.0 ** (i + 1) / k for i, k in enumerate(num_states)]
    parts = [torch.cat([none, pyro.param(f"part_{i}", spread * step)]) for i, step in enumerate(steps)]
    base = pyro.param("base", x.min())
    scale = pyro.param("scale", spread, constraint=constraints.positive)
    z = [None] * len(num_states)
    for t in pyro.markov(range(len(x))):
        z = [pyro.sample(f"z{i}_{t}", dist.Categorical(init[i] if t == 0 else trans[i][z[i]])) for i in chains]
        pyro.sample(f"x_{t}", dist.Normal(base + sum(parts[i][z[i]] for i in chains), scale), obs=x[t])


def simplex(name, weights):
    """A parameter of probabilities that begins in proportion to ``weights``."""
    return pyro.param(name, weights / weights.sum(-1, keepdim=True), constraint=constraints.simplex)
