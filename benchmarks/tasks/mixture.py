"""Mixtures of Gaussians with diagonal and with full covariances, against scikit-learn."""

from __future__ import annotations

import warnings
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.contenders import plain_em
from benchmarks.task import Contender, Finish, Point, Run, Target, Task


def data(n: int, d: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws observations (n, d) from a mixture, and a start for its means (k, d)."""
    rng = np.random.default_rng(0)
    centres = rng.normal(0.0, 2.0, (k, d))
    x = rng.normal(size=(n, d))
    x += centres[rng.integers(k, size=n)]
    return x, x[:k].copy()


def diagonal(x: torch.Tensor, k: int) -> None:
    """The mixture with diagonal covariances as a Pyro program; x of shape (N, D)."""
    weights = pyro.param("weights", torch.ones(k) / k, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.zeros(k, x.shape[1]))
    scale = pyro.param("scale", torch.ones(k, x.shape[1]), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)


def full(x: torch.Tensor, k: int) -> None:
    """The mixture with full covariances as a Pyro program; x of shape (N, D)."""
    weights = pyro.param("weights", torch.ones(k) / k, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.zeros(k, x.shape[1]))
    cov = pyro.param("cov", torch.eye(x.shape[1]).repeat(k, 1, 1), constraint=constraints.positive_definite)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(loc[z], covariance_matrix=cov[z]), obs=x)


def ours(covariance: str, n: int, d: int, k: int) -> Run:
    """The programs above, fitted by plain EM."""
    x, loc = data(n, d, k)
    start = {"weights": np.full(k, 1 / k), "loc": loc}
    if covariance == "diag":
        return plain_em(partial(diagonal, k=k), (x,), {**start, "scale": np.full((k, d), 1.5)})
    return plain_em(partial(full, k=k), (x,), {**start, "cov": np.tile(1.5**2 * np.eye(d), (k, 1, 1))})


def sklearn(covariance: str, n: int, d: int, k: int) -> Run:
    """scikit-learn's GaussianMixture from the same start, without its regularisation."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.mixture import GaussianMixture

    x, loc = data(n, d, k)
    precisions = np.full((k, d), 1.5**-2) if covariance == "diag" else np.tile(1.5**-2 * np.eye(d), (k, 1, 1))

    def run(num_steps: int) -> Finish:
        mixture = GaussianMixture(
            k,
            covariance_type=covariance,
            tol=0.0,
            reg_covar=0.0,
            max_iter=num_steps,
            weights_init=np.full(k, 1 / k),
            means_init=loc,
            precisions_init=precisions,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            mixture.fit(x)
        return lambda: float(mixture.score(x) * n)

    return run


def task(covariance: str, n: int, d: int, k: int, limit: float | None, *axes: str) -> Task:
    """One size; the target is of time per step relative to scikit-learn's.

    Args:
        covariance: ``"diag"`` or ``"full"``.
        n, d, k: observations, columns, components.
        limit: our time over theirs, at most; None for a point of a curve.
        axes: the sizes on whose curves it lies.
    """
    kind = "diagonal" if covariance == "diag" else "full"
    size = {"N": n, "D": d, "K": k}
    elements = n * d * k
    long = 5 if elements > 2e7 else 22
    return Task(
        what=f"mixture of {k} Gaussians with {kind} covariances, {n:,} × {d} observations",
        contenders={
            "ppl_em": Contender(partial(ours, covariance, n, d, k)),
            "scikit-learn": Contender(partial(sklearn, covariance, n, d, k)),
        },
        num_steps=(2, long),
        tolerance=1e-9 * n * d,
        max_repeats=50 if limit is not None else 2,
        threads=None if limit is not None else (1,),
        target=None if limit is None else Target("scikit-learn", limit),
        memory=8 * n * d if n >= 1_000_000 else None,
        memory_limit=1.5 if n >= 1_000_000 else None,
        points=tuple(Point(f"{kind} mixture", axis, size[axis]) for axis in axes),
    )


TASK = {
    "diagonal": task("diag", 1_000_000, 8, 8, 0.30, "N"),
    "full": task("full", 1_000_000, 8, 8, 0.35, "N"),
    "full_16": task("full", 100_000, 16, 16, 0.6),
    "diagonal_N=10,000": task("diag", 10_000, 8, 8, None, "N"),
    "diagonal_N=100,000": task("diag", 100_000, 8, 8, None, "N", "K", "D"),
    "diagonal_K=2": task("diag", 100_000, 8, 2, None, "K"),
    "diagonal_K=32": task("diag", 100_000, 8, 32, None, "K"),
    "diagonal_D=2": task("diag", 100_000, 2, 8, None, "D"),
    "diagonal_D=32": task("diag", 100_000, 32, 8, None, "D"),
    "full_N=10,000": task("full", 10_000, 8, 8, None, "N"),
    "full_N=100,000": task("full", 100_000, 8, 8, None, "N", "K", "D"),
    "full_K=2": task("full", 100_000, 8, 2, None, "K"),
    "full_K=32": task("full", 100_000, 8, 32, None, "K"),
    "full_D=2": task("full", 100_000, 2, 8, None, "D"),
    "full_D=32": task("full", 100_000, 32, 8, None, "D"),
}
