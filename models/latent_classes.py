"""Latent classes: yes-or-no answers that are independent within a few hidden groups of people.

Plan: the class ``z`` of each person is summed out by the ``mixture`` engine; class sizes and answer probabilities have
closed forms, expected shares.
Peer: stepmix and pomegranate (the same numbers in every iteration); the default data are simulated, 400 people with
three classes and eight questions.
"""

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints


def load(path=None):
    """Read a table of zeros and ones, one row per person; simulated answers by default.

    Returns:
        Answers, shape (n, d), float64.
    """
    if path is not None:
        return torch.from_numpy(pd.read_csv(path).to_numpy(np.float64))
    rng = np.random.default_rng(0)
    probs = np.array([[0.9] * 8, [0.9] * 4 + [0.1] * 4, [0.1] * 8])
    classes = rng.choice(3, size=400, p=[0.5, 0.3, 0.2])
    return torch.from_numpy((rng.random((400, 8)) < probs[classes]).astype(np.float64))


def model(x, num_classes=3):
    """Draw each row of ``x`` from one of the classes.

    Args:
        x: answers 0 or 1, shape (n, d).
        num_classes: number of classes, K.
    """
    weights = pyro.param("weights", x.new_ones(num_classes) / num_classes, constraint=constraints.simplex)
    levels = torch.linspace(0.25, 0.75, num_classes, dtype=x.dtype)
    probs = pyro.param("probs", levels[:, None].repeat(1, x.shape[1]), constraint=constraints.unit_interval)
    with pyro.plate("people", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Bernoulli(probs[z]).to_event(1), obs=x)
