"""Dawid and Skene's observers: what is the truth, and how often does each observer mistake it?

Plan: the true class ``truth`` of each item is summed out by the ``mixture`` engine; class shares and the observers'
error rates have closed forms, expected counts.
Peer: Dawid and Skene's own data, the fitness of 45 patients judged by five anaesthetists, the first of them three
times; crowd-kit's ``DawidSkene`` takes the same steps. Started from majority votes as there, EM ends with class shares 0.40,
0.42, 0.11 and 0.07.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.ops.indexing import Vindex

DATA = Path(__file__).parent / "data" / "anaesthetists.csv"
OBSERVERS = (0, 0, 0, 1, 2, 3, 4)


def load(path=None):
    """Read a table with one row per item and one column per judgement, classes counted from 1.

    Returns:
        Judgements 0, 1, ..., shape (items, judgements), and the observer of each column, shape (judgements,), int64.
        Of a table of one's own, each column is another observer.
    """
    labels = torch.from_numpy(pd.read_csv(path or DATA).to_numpy(np.int64)) - 1
    return labels, torch.tensor(OBSERVERS) if path is None else torch.arange(labels.shape[1])


def model(labels, observers):
    """Draw all judgements.

    Args:
        labels: judgements 0 ... K-1, shape (items, judgements).
        observers: who gave each column, 0 ... W-1, shape (judgements,).
    """
    num_classes, num_observers = int(labels.max()) + 1, int(observers.max()) + 1
    shares = pyro.param("shares", lambda: votes(labels).mean(0), constraint=constraints.simplex)
    errors = pyro.param("errors", lambda: agreement(labels, observers), constraint=constraints.simplex)
    assert errors.shape == (num_observers, num_classes, num_classes)
    with pyro.plate("items", len(labels), dim=-2):
        truth = pyro.sample("truth", dist.Categorical(shares))
        with pyro.plate("judgements", labels.shape[1], dim=-1):
            pyro.sample("label", dist.Categorical(Vindex(errors)[observers, truth, :]), obs=labels)


def votes(labels):
    """Return the share of votes for each class, shape (items, K)."""
    return torch.nn.functional.one_hot(labels).double().mean(1)


def agreement(labels, observers):
    """Return each observer's error rates (W, K, K) as if the votes were the truth."""
    seen = torch.nn.functional.one_hot(labels).double()
    who = torch.nn.functional.one_hot(observers).double()
    counts = torch.einsum("ik,ijl,jw->wkl", votes(labels), seen, who)
    return counts / counts.sum(-1, keepdim=True)
