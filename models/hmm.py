"""A hidden Markov model: a state that changes now and then, seen only through what it emits.

Plan: the states ``z_0`` ... ``z_T`` are summed out by the ``chain`` engine (forward-backward, linear in T); the initial
distribution, the transition matrix and the emissions have closed forms, the expected counts and moments.
Peer: hmmlearn (the same numbers in every iteration). For the yearly numbers of major earthquakes 1900-2006, Zucchini,
MacDonald and Langrock fit Poisson emissions: -341.8787 with two states, -328.5275 with three, whose means are 13.13,
19.71 and 29.71.
"""

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints

DATA = Path(__file__).parent / "data" / "earthquakes.csv"


def load(path=None):
    """Read one series; the numbers of earthquakes of magnitude 7 or more per year by default.

    Returns:
        The last column of the table, shape (T,), float64.
    """
    return torch.from_numpy(pd.read_csv(path or DATA).iloc[:, -1].to_numpy(np.float64))


def model(x, lengths=None, num_states=2, emission="poisson"):
    """Draw one series, or many of unequal length.

    Args:
        x: one series of numbers (T,) or of vectors (T, d); with ``lengths``, many of them, (n, T) or (n, T, d).
        lengths: number of steps of each series, (n,); what follows in its row of ``x`` is padding. None for a single
            series.
        num_states: number of hidden states, K.
        emission: ``"poisson"``, ``"gaussian"`` or ``"categorical"`` (symbols 0, 1, ... of dtype int64).
    """
    single = lengths is None
    steps = x.unbind(0 if single else 1)
    shape = (num_states, num_states)
    init = pyro.param("init", torch.full(shape[:1], 1 / num_states, dtype=FLOAT), constraint=constraints.simplex)
    trans = pyro.param("trans", sticky(num_states), constraint=constraints.simplex)
    emit = EMISSIONS[emission](x.flatten(0, 0 if single else 1), num_states)
    z = None
    with nullcontext() if single else pyro.plate("series", len(x)):
        for t in pyro.markov(range(len(steps))):
            with poutine.mask(mask=True if single else t < lengths):
                z = pyro.sample(f"z_{t}", dist.Categorical(init if t == 0 else trans[z]))
                pyro.sample(f"x_{t}", emit(z), obs=steps[t])


def poisson(x, num_states):
    """Return the distribution of what a state emits, by its number; ``x`` holds all steps, (steps,)."""
    rate = pyro.param("rate", spread(x, num_states), constraint=constraints.positive)
    return lambda z: dist.Poisson(rate[z])


def gaussian(x, num_states):
    """As ``poisson``, for numbers (steps,) or vectors (steps, d) with independent columns."""
    loc = pyro.param("loc", spread(x, num_states))
    scale = pyro.param("scale", x.std(0, correction=0).expand(loc.shape).clone(), constraint=constraints.positive)
    return lambda z: dist.Normal(loc[z], scale[z]).to_event(x.dim() - 1)


def categorical(x, num_states):
    """As ``poisson``, for symbols (steps,)."""
    symbols = int(x.max()) + 1
    tilt = 1 + (torch.arange(num_states)[:, None] == torch.arange(symbols) % num_states).to(FLOAT)
    probs = pyro.param("probs", tilt / tilt.sum(-1, keepdim=True), constraint=constraints.simplex)
    return lambda z: dist.Categorical(probs[z])


EMISSIONS = {"poisson": poisson, "gaussian": gaussian, "categorical": categorical}
FLOAT = torch.float64


def sticky(num_states):
    """A transition matrix that prefers to stay, rows from, columns to, (K, K)."""
    counts = torch.ones(num_states, num_states, dtype=FLOAT) + num_states * torch.eye(num_states, dtype=FLOAT)
    return counts / counts.sum(-1, keepdim=True)


def spread(x, num_states):
    """Quantiles of the data, in increasing order, so that no two states begin alike: (K,) or (K, d)."""
    return x.quantile((torch.arange(num_states, dtype=x.dtype) + 0.5) / num_states, dim=0)
