"""A mixture of hidden Markov models: series of several kinds, each kind with its own dynamics.

Plan: the states of all series are summed out by the ``chain`` engine once for each class, and the class outside of them;
all parameters have closed forms.
Peer: hmmlearn, one model for each class, its scores added in proportion to the classes (Smyth, 1997).
"""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

FLOAT = torch.float64


def load(path=None):
    """Read a table with one series in each row; 40 simulated series of 30 steps by default, of two kinds.

    Returns:
        Shape (n, T), float64.
    """
    if path is not None:
        return torch.tensor(pd.read_csv(path).to_numpy(np.float64))
    rng = np.random.default_rng(2)
    fast = rng.random((40, 1)) < 0.4
    state = (rng.random((40, 30)) < np.where(fast, 0.6, 0.1)).cumsum(1) % 2
    return torch.from_numpy(np.where(fast, 1.0, 2.0) * (2 * state - 1) + rng.normal(0, 0.7, (40, 30)))


def model(x, num_classes=2, num_states=2):
    """Draw the series.

    Args:
        x: series of numbers, shape (n, T).
        num_classes: number of kinds, C.
        num_states: number of states of each, K.
    """
    share = simplex("share", torch.ones(num_classes, dtype=FLOAT))
    init = simplex("init", torch.ones(num_classes, num_states, dtype=FLOAT))
    # Classes begin with different inclinations to stay, else they would never differ.
    stay = num_states * torch.arange(num_classes, dtype=FLOAT)[:, None, None] * torch.eye(num_states, dtype=FLOAT)
    trans = simplex("trans", 1 + stay)
    levels = x.flatten().quantile((torch.arange(num_states, dtype=FLOAT) + 0.5) / num_states)
    loc = pyro.param("loc", levels.expand(num_classes, -1).clone())
    spread = x.std(correction=0)
    scale = pyro.param("scale", spread.expand(loc.shape).clone(), constraint=constraints.positive)
    with pyro.plate("series", len(x)):
        c = pyro.sample("c", dist.Categorical(share))
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(init[c] if t == 0 else trans[c, z]))
            pyro.sample(f"x_{t}", dist.Normal(loc[c, z], scale[c, z]), obs=x[:, t])


def simplex(name, weights):
    """A parameter of probabilities that begins in proportion to ``weights``."""
    return pyro.param(name, weights / weights.sum(-1, keepdim=True), constraint=constraints.simplex)
