"""A classifier: plain maximum likelihood, nothing is latent.

Plan: no latents to sum. Linear logits (``hidden=0``, multinomial logistic regression) take Newton steps whose Hessian
is assembled from their design (iteratively reweighted least squares); a network takes gradient steps. The objective is the
log-likelihood, and no step lowers it.
Peer: scikit-learn's ``LogisticRegression`` without penalty, the same maximum. The default data are the 32 cars of
Motor Trend 1974: number of gears by weight and horsepower.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from torch import nn

DATA = Path(__file__).parent / "data" / "mtcars.csv"


def load(path=None):
    """Read a table with columns ``wt``, ``hp`` and ``gear``; Motor Trend's cars by default.

    Returns:
        Standardised covariates, shape (n, 2), float64, and classes 0, 1, ..., shape (n,), int64.
    """
    table = pd.read_csv(path or DATA)
    x = table[["wt", "hp"]].to_numpy(np.float64)
    _, classes = np.unique(table["gear"], return_inverse=True)
    return torch.from_numpy((x - x.mean(0)) / x.std(0)), torch.from_numpy(classes)


class Classifier(nn.Module):
    """Class probabilities from covariates.

    Args:
        num_features: number of covariates, d.
        num_classes: number of classes, K.
        hidden: hidden units; 0 makes the logits linear.
        seed: of the initial weights.
    """

    def __init__(self, num_features=2, num_classes=3, hidden=0, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            inner = [nn.Linear(num_features, hidden), nn.Tanh()] if hidden else []
            self.logits = nn.Sequential(*inner, nn.Linear(hidden or num_features, num_classes))
        self.double()

    def forward(self, x, y):
        """Draw the classes (n,) given the covariates (n, d)."""
        pyro.module("classifier", self)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Categorical(logits=self.logits(x)), obs=y)


def model(x, y):
    """Multinomial logistic regression of three classes on two covariates."""
    return LINEAR(x, y)


LINEAR = Classifier()
