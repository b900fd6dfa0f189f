"""Many sequences of unequal length, padded and masked, against hmmlearn's scaled forward-backward."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.task import Contender, Finish, Run, Task

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
    import ppl_em

    values, sizes, start = data()
    x, lengths = torch.as_tensor(values), torch.as_tensor(sizes)
    init = {name: torch.as_tensor(value) for name, value in start.items()}

    def run(num_steps: int) -> Finish:
        method = ppl_em.EM(max_steps=num_steps, tol=0.0, accelerate=False)
        result = ppl_em.fit(model, x, lengths, init=init, method=method, restarts=1)
        return lambda: float(result.objective)

    return run


def hmmlearn() -> Run:
    """Fits CategoricalHMM of hmmlearn from the same start, in its faster implementation (scaling)."""
    from hmmlearn.hmm import CategoricalHMM

    values, lengths, start = data()
    symbols = np.concatenate([row[:n] for row, n in zip(values, lengths, strict=True)])[:, None]

    def run(num_steps: int) -> Finish:
        hmm = CategoricalHMM(K, n_features=V, n_iter=num_steps, tol=-np.inf, init_params="", implementation="scaling")
        hmm.startprob_, hmm.transmat_, hmm.emissionprob_ = (
            start[name].copy() for name in ("initial", "transition", "emission")
        )
        hmm.fit(symbols, lengths)
        return lambda: float(hmm.score(symbols, lengths))

    return run


TASK = Task(
    what=f"HMM with {K} states and {V} symbols, {N} sequences of {T // 4} to {T} steps",
    contenders={"ppl_em": Contender(ours), "hmmlearn": Contender(hmmlearn)},
    num_steps=(2, 12),
    tolerance=1e-3,
)
