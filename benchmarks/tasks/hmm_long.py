"""One sequence of 100,000 steps, against hmmlearn's scaled forward-backward."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.task import Contender, Finish, Run, Task

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


def ours(num_steps_of_data: int = T) -> Run:
    """The program above, fitted by plain EM."""
    import ppl_em

    values, start = data(num_steps_of_data)
    x = torch.as_tensor(values)
    init = {name: torch.as_tensor(value) for name, value in start.items()}

    def run(num_steps: int) -> Finish:
        method = ppl_em.EM(max_steps=num_steps, tol=0.0, accelerate=False)
        result = ppl_em.fit(model, x, init=init, method=method, restarts=1)
        return lambda: float(result.objective)

    return run


def hmmlearn() -> Run:
    """Fits CategoricalHMM of hmmlearn from the same start, in its faster implementation (scaling)."""
    from hmmlearn.hmm import CategoricalHMM

    values, start = data()
    symbols = values.reshape(-1, 1)

    def run(num_steps: int) -> Finish:
        hmm = CategoricalHMM(K, n_features=V, n_iter=num_steps, tol=-np.inf, init_params="", implementation="scaling")
        hmm.startprob_, hmm.transmat_, hmm.emissionprob_ = (
            start[name].copy() for name in ("initial", "transition", "emission")
        )
        hmm.fit(symbols)
        return lambda: float(hmm.score(symbols))

    return run


TASK = Task(
    what=f"HMM with {K} states and {V} symbols, one sequence of {T} steps",
    contenders={"ppl_em": Contender(ours), "hmmlearn": Contender(hmmlearn)},
    num_steps=(2, 12),
    tolerance=1e-3,
)
