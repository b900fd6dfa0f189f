"""A mixture of linear regressions, against the same steps written by hand in NumPy."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.contenders import plain_em
from benchmarks.task import Contender, Finish, Run, Target, Task

N, D, K = 100_000, 10, 5


def data() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Draws designs (N, D) with an intercept, responses (N,), and a start for EM."""
    rng = np.random.default_rng(0)
    x = np.column_stack([np.ones(N), rng.normal(size=(N, D - 1))])
    coef = rng.normal(0.0, 2.0, (K, D))
    y = (x * coef[rng.integers(K, size=N)]).sum(1) + rng.normal(size=N)
    start = {"w": np.full(K, 1 / K), "coef": coef + rng.normal(0.0, 0.5, (K, D)), "scale": np.full(K, 2.0)}
    return x, y, start


def model(x: torch.Tensor, y: torch.Tensor) -> None:
    """The mixture as a Pyro program; x of shape (N, D), y of shape (N,)."""
    w = pyro.param("w", torch.ones(K) / K, constraint=constraints.simplex)
    coef = pyro.param("coef", torch.zeros(K, D))
    scale = pyro.param("scale", torch.ones(K), constraint=constraints.positive)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("y", dist.Normal((x * coef[z]).sum(-1), scale[z]), obs=y)


def ours() -> Run:
    """The program above, fitted by plain EM."""
    x, y, start = data()
    return plain_em(model, (x, y), start)


def by_hand() -> Run:
    """Responsibilities, normal equations and residual variances in NumPy."""
    x, y, start = data()

    def log_joint(w: np.ndarray, coef: np.ndarray, scale: np.ndarray) -> np.ndarray:
        residual = (y[:, None] - x @ coef.T) / scale
        return np.log(w) - 0.5 * np.log(2 * np.pi) - np.log(scale) - 0.5 * residual**2

    def run(num_steps: int) -> Finish:
        w, coef, scale = (start[name].copy() for name in ("w", "coef", "scale"))
        for _ in range(num_steps):
            joint = log_joint(w, coef, scale)
            top = joint.max(1, keepdims=True)
            r = np.exp(joint - top)
            r /= r.sum(1, keepdims=True)
            mass = r.sum(0)
            for k in range(K):
                weighted = x * r[:, k : k + 1]
                coef[k] = np.linalg.solve(weighted.T @ x, weighted.T @ y)
                scale[k] = np.sqrt(r[:, k] @ (y - x @ coef[k]) ** 2 / mass[k])
            w = mass / N
        return lambda: float(np.logaddexp.reduce(log_joint(w, coef, scale), axis=1).sum())

    return run


TASK = Task(
    what=f"mixture of {K} linear regressions, {N} × {D} design",
    contenders={"ppl_em": Contender(ours), "NumPy by hand": Contender(by_hand)},
    tolerance=1e-3,
    target=Target("NumPy by hand", 1.0),
)
