"""One sequence of 100,000 steps, against hmmlearn's scaled forward-backward."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.contenders import categorical_hmm, plain_em
from benchmarks.task import Contender, Run, Task

T, K, V = 100_000, 8, 16


def data(num_steps: int = T) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Draws symbols (num_steps,) from an HMM with sticky states, and a start for EM."""
    rng = np.random.default_rng(0)
    emission = rng.dirichlet(np.full(V, 0.3), K)
    z = (np.cumsum(rng.random(num_steps) < 0.1) * 3 + np.cumsum(rng.random(num_steps) < 0.1)) % K
    x = (emission.cumsum(1)[z] < rng.random((num_steps, 1))).sum(1).clip(0, V - 1)
    start = {
        "initial": np.full(K, 1 / K),
        "transition": 0.5 * np.eye(K) + 0.5 / K,
        "emission": rng.dirichlet(np.full(V, 5.0), K),
    }
    return x, start


def model(x: torch.Tensor) -> None:
    """The HMM as a Pyro program over a time axis; x of shape (T,)."""
    import ppl_em

    initial = pyro.param("initial", torch.ones(K) / K, constraint=constraints.simplex)
    transition = pyro.param("transition", torch.ones(K, K) / K, constraint=constraints.simplex)
    emission = pyro.param("emission", torch.ones(K, V) / V, constraint=constraints.simplex)
    z = None
    for t in ppl_em.markov(len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(initial if z is None else transition[z]))
        pyro.sample(f"x_{t}", dist.Categorical(emission[z]), obs=x[t])


def ours() -> Run:
    """The program above, fitted by plain EM."""
    x, start = data()
    return plain_em(model, (x,), start)


def hmmlearn() -> Run:
    """The same model in hmmlearn."""
    x, start = data()
    return categorical_hmm(x.reshape(-1, 1), None, start)


TASK = Task(
    what=f"HMM with {K} states and {V} symbols, one sequence of {T} steps",
    contenders={"ppl_em": Contender(ours), "hmmlearn": Contender(hmmlearn)},
    num_steps=(2, 12),
    tolerance=1e-3,
)
