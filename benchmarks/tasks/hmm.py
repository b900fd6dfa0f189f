"""A hidden Markov model with categorical outputs, against hmmlearn."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.contenders import categorical_hmm, plain_em
from benchmarks.task import Contender, Run, Task

N, T, K, V = 100, 100, 8, 16


def data() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Draws sequences (N, T) of symbols from an HMM with sticky states, and a start for EM."""
    rng = np.random.default_rng(0)
    transition = 0.8 * np.eye(K) + 0.2 / K
    emission = rng.dirichlet(np.full(V, 0.3), K)
    z = np.zeros((N, T), dtype=int)
    z[:, 0] = rng.integers(K, size=N)
    for t in range(1, T):
        z[:, t] = [rng.choice(K, p=transition[state]) for state in z[:, t - 1]]
    x = np.array([[rng.choice(V, p=emission[state]) for state in row] for row in z])
    start = {
        "initial": np.full(K, 1 / K),
        "transition": 0.5 * np.eye(K) + 0.5 / K,
        "emission": rng.dirichlet(np.full(V, 5.0), K),
    }
    return x, start


def model(x: torch.Tensor) -> None:
    """The HMM as a Pyro program, unrolled over time; x of shape (N, T)."""
    initial = pyro.param("initial", torch.ones(K) / K, constraint=constraints.simplex)
    transition = pyro.param("transition", torch.ones(K, K) / K, constraint=constraints.simplex)
    emission = pyro.param("emission", torch.ones(K, V) / V, constraint=constraints.simplex)
    with pyro.plate("sequences", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(initial if z is None else transition[z]))
            pyro.sample(f"x_{t}", dist.Categorical(emission[z]), obs=x[:, t])


def ours() -> Run:
    """The program above, fitted by plain EM."""
    x, start = data()
    return plain_em(model, (x,), start)


def hmmlearn() -> Run:
    """The same model in hmmlearn."""
    x, start = data()
    return categorical_hmm(x.reshape(-1, 1), [T] * N, start)


TASK = Task(
    what=f"HMM with {K} states and {V} symbols, {N} sequences of {T} steps",
    contenders={"ppl_em": Contender(ours), "hmmlearn": Contender(hmmlearn)},
)
