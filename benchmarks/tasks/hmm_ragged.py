"""Many sequences of unequal length, padded and masked, against hmmlearn's scaled forward-backward."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.contenders import categorical_hmm, plain_em
from benchmarks.task import Contender, Run, Task

N, T, K, V = 1000, 200, 16, 32


def data() -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Draws padded symbols (N, T) from an HMM with sticky states, lengths (N,), and a start for EM."""
    rng = np.random.default_rng(0)
    emission = rng.dirichlet(np.full(V, 0.3), K)
    z = ((rng.random((N, T)) < 0.2).cumsum(1) * 3 + (rng.random((N, T)) < 0.2).cumsum(1)) % K
    x = (emission.cumsum(1)[z] < rng.random((N, T, 1))).sum(-1).clip(0, V - 1)
    start = {
        "initial": np.full(K, 1 / K),
        "transition": 0.5 * np.eye(K) + 0.5 / K,
        "emission": rng.dirichlet(np.full(V, 5.0), K),
    }
    return x, rng.integers(T // 4, T + 1, N), start


def model(x: torch.Tensor, lengths: torch.Tensor) -> None:
    """The HMM as a Pyro program; x of shape (N, T), of which sequence n holds lengths[n] steps."""
    import ppl_em

    initial = pyro.param("initial", torch.ones(K) / K, constraint=constraints.simplex)
    transition = pyro.param("transition", torch.ones(K, K) / K, constraint=constraints.simplex)
    emission = pyro.param("emission", torch.ones(K, V) / V, constraint=constraints.simplex)
    with pyro.plate("sequences", len(x)):
        z = None
        for t in ppl_em.markov(x.shape[1]):
            with pyro.poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Categorical(initial if z is None else transition[z]))
                pyro.sample(f"x_{t}", dist.Categorical(emission[z]), obs=x[:, t])


def ours() -> Run:
    """The program above, fitted by plain EM."""
    x, lengths, start = data()
    return plain_em(model, (x, lengths), start)


def hmmlearn() -> Run:
    """The same model in hmmlearn."""
    x, lengths, start = data()
    symbols = np.concatenate([row[:n] for row, n in zip(x, lengths, strict=True)])[:, None]
    return categorical_hmm(symbols, lengths, start)


TASK = Task(
    what=f"HMM with {K} states and {V} symbols, {N} sequences of {T // 4} to {T} steps",
    contenders={"ppl_em": Contender(ours), "hmmlearn": Contender(hmmlearn)},
    num_steps=(2, 12),
    tolerance=1e-3,
)
