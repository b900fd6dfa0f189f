"""A mixture of Gaussians with diagonal covariances, against scikit-learn."""

from __future__ import annotations

import warnings

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.contenders import plain_em
from benchmarks.task import Contender, Finish, Run, Task

N, D, K = 50_000, 8, 16


def data() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Draws observations (N, D) from a mixture, and a start for EM."""
    rng = np.random.default_rng(0)
    centres = rng.normal(0.0, 2.0, (K, D))
    x = centres[rng.integers(K, size=N)] + rng.normal(size=(N, D))
    start = {"weights": np.full(K, 1 / K), "loc": x[:K].copy(), "scale": np.full((K, D), 1.5)}
    return x, start


def model(x: torch.Tensor) -> None:
    """The mixture as a Pyro program; x of shape (N, D)."""
    weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.zeros(K, D))
    scale = pyro.param("scale", torch.ones(K, D), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)


def ours() -> Run:
    """The program above, fitted by plain EM."""
    x, start = data()
    return plain_em(model, (x,), start)


def sklearn() -> Run:
    """scikit-learn's GaussianMixture from the same start, without its regularisation."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    x, start = data()

    def run(num_steps: int) -> Finish:
        mixture = GaussianMixture(
            K,
            covariance_type="diag",
            tol=0.0,
            reg_covar=0.0,
            max_iter=num_steps,
            weights_init=start["weights"],
            means_init=start["loc"],
            precisions_init=start["scale"] ** -2,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(x)
        return lambda: float(mixture.score(x) * N)

    return run


TASK = Task(
    what=f"mixture of {K} diagonal Gaussians, {N} × {D} observations",
    contenders={"ppl_em": Contender(ours), "scikit-learn": Contender(sklearn)},
)
