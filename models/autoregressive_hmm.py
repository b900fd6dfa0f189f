"""An autoregressive hidden Markov model: regimes of a series, each with its own level, persistence and noise.

Plan: the regimes are summed out by the ``chain`` engine; initial distribution and transitions have closed forms, each
regime's regression on the steps before is weighted least squares. With ``deviations=True`` the regression is on the
steps before *less their own regimes' levels* (Hamilton's model): a chain that remembers ``order`` steps.
Peers: statsmodels' ``MarkovRegression`` with lags and ``MarkovAutoregression``. For the growth of the American gross
national product, 1951-1984, Hamilton (1989) has two levels, 1.164 and -0.359, four common coefficients and the
log-likelihood -181.263.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

DATA = Path(__file__).parent / "data" / "gnp.csv"
FLOAT = torch.float64


def load(path=None):
    """Read one series; the quarterly growth of the American gross national product in percent by default.

    Returns:
        The last column of the table, shape (T,), float64.
    """
    return torch.tensor(pd.read_csv(path or DATA).iloc[:, -1].to_numpy(np.float64))


def model(x, num_states=2, order=1, deviations=False):
    """Draw the series from its first ``order`` values on, which are not explained.

    Args:
        x: one series of numbers, shape (T,).
        num_states: number of regimes, K.
        order: how many steps back a regression looks.
        deviations: whether it looks at deviations from the levels of the regimes that held then; coefficients and noise
            are then common to all regimes.
    """
    trans = pyro.param("trans", sticky(num_states), constraint=constraints.simplex)
    init = pyro.param("init", torch.full((num_states,), 1 / num_states, dtype=FLOAT), constraint=constraints.simplex)
    levels = x.quantile((torch.arange(num_states, dtype=FLOAT) + 0.5) / num_states)
    loc = pyro.param("loc", levels)
    own = () if deviations else (num_states,)
    coef = pyro.param("coef", torch.zeros(*own, order, dtype=FLOAT))
    scale = pyro.param("scale", x.std(correction=0).expand(own).clone(), constraint=constraints.positive)
    z = []
    first = 0 if deviations else order
    for t in pyro.markov(range(first, len(x)), history=order if deviations else 1):
        z.append(pyro.sample(f"z_{t}", dist.Categorical(init if t == first else trans[z[-1]])))
        if t < order:
            continue
        if deviations:
            lagged = [x[t - lag] - loc[z[-1 - lag]] for lag in range(1, order + 1)]
            mean = loc[z[-1]] + sum(coef[lag] * value for lag, value in enumerate(lagged))
            pyro.sample(f"x_{t}", dist.Normal(mean, scale), obs=x[t])
        else:
            mean = loc[z[-1]] + (coef[z[-1]] * x[t - order : t].flip(0)).sum(-1)
            pyro.sample(f"x_{t}", dist.Normal(mean, scale[z[-1]]), obs=x[t])


def sticky(num_states):
    """A transition matrix that prefers to stay, rows from, columns to, (K, K)."""
    counts = torch.ones(num_states, num_states, dtype=FLOAT) + num_states * torch.eye(num_states, dtype=FLOAT)
    return counts / counts.sum(-1, keepdim=True)
