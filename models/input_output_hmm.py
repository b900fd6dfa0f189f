"""An input-output hidden Markov model: an input moves the state and acts on what the state emits.

Plan: the states are summed out by the ``chain`` engine with a transition of its own at each step; the transition's
coefficients are a multinomial regression of the expected moves (Newton's method), each state's emission a weighted
least-squares regression with its own noise.
Peer: statsmodels' ``MarkovRegression`` with ``exog_tvtp`` (Filardo, 1994); the model is Bengio and Frasconi's (1995).
"""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

FLOAT = torch.float64


def load(path=None):
    """Read a table of inputs and, in the last column, the output; 250 simulated steps of one input by default.

    Returns:
        Inputs with an intercept, shape (T, d), and the output, shape (T,), float64.
    """
    if path is not None:
        table = pd.read_csv(path).to_numpy(np.float64)
        u, x = table[:, :-1], table[:, -1]
    else:
        rng = np.random.default_rng(1)
        u, x, state = rng.normal(size=(250, 1)), np.zeros(250), 0
        for t in range(250):
            go = 1 / (1 + np.exp(1.5 - 2.0 * u[t, 0] * (1 if state == 0 else -1)))
            state = state ^ int(rng.random() < go)
            x[t] = (1.0 + 0.8 * u[t, 0] if state == 0 else -1.0 - 0.5 * u[t, 0]) + rng.normal(0, 0.5)
    return torch.from_numpy(np.column_stack([np.ones(len(u)), u])), torch.from_numpy(x.copy())


def model(u, x, num_states=2):
    """Draw the outputs.

    Args:
        u: inputs, shape (T, d).
        x: outputs, shape (T,).
        num_states: number of hidden states, K.
    """
    init = pyro.param("init", torch.full((num_states,), 1 / num_states, dtype=FLOAT), constraint=constraints.simplex)
    # The last state is the reference: the logits of the others are linear in the input, by the state one comes from.
    move = pyro.param("move", torch.zeros(num_states, num_states - 1, u.shape[1], dtype=FLOAT))
    levels = x.quantile((torch.arange(num_states, dtype=FLOAT) + 0.5) / num_states)
    coef = pyro.param("coef", torch.cat([levels[:, None], torch.zeros(num_states, u.shape[1] - 1, dtype=FLOAT)], 1))
    scale = pyro.param("scale", x.std(correction=0).expand(num_states).clone(), constraint=constraints.positive)
    z = None
    for t in pyro.markov(range(len(x))):
        if t == 0:
            z = pyro.sample("z_0", dist.Categorical(init))
        else:
            logits = (move[z] * u[t]).sum(-1)
            logits = torch.cat([logits, torch.zeros_like(logits[..., :1])], -1)
            z = pyro.sample(f"z_{t}", dist.Categorical(logits=logits))
        pyro.sample(f"x_{t}", dist.Normal((coef[z] * u[t]).sum(-1), scale[z]), obs=x[t])
