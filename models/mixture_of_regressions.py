"""A mixture of linear regressions: each datum follows one of a few regression lines, and which one is not known.

Plan: the class ``z`` of each datum is summed out by the ``mixture`` engine; the coefficients are weighted least
squares, weights and residual scales have closed forms.
Peer: R's flexmix on its own NPreg data, two quadratic regressions. Free maximum likelihood reaches -642.532014
(flexmix, which corrects the residual scales for degrees of freedom, stops at -642.545).
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

DATA = Path(__file__).parent / "data" / "npreg.csv"


def load(path=None):
    """Read a table whose first two columns are a covariate and a response; flexmix's NPreg by default.

    Returns:
        Design of a quadratic regression (1, x, x²), shape (n, 3), and response, shape (n,), float64.
    """
    x, y = pd.read_csv(path or DATA).iloc[:, :2].to_numpy(np.float64).T
    return torch.from_numpy(np.stack([np.ones_like(x), x, x**2], 1)), torch.from_numpy(y.copy())


def model(x, y, num_components=2):
    """Draw each response from one of the regressions.

    Args:
        x: design, shape (n, d); a column of ones is the intercept.
        y: response, shape (n,).
        num_components: number of regressions, K.
    """
    weights = pyro.param("weights", x.new_ones(num_components) / num_components, constraint=constraints.simplex)
    coef = pyro.param("coef", lambda: spread(x, y, num_components))
    scale = pyro.param("scale", y.std().repeat(num_components), constraint=constraints.positive)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("y", dist.Normal((x * coef[z]).sum(-1), scale[z]), obs=y)


def spread(x, y, num_components):
    """Return coefficients (K, d) around the common regression, to start from."""
    common = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    steps = torch.linspace(-0.5, 0.5, num_components, dtype=x.dtype)
    return common * (1 + steps[:, None])
