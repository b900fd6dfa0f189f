"""Many sequences, of equal and of unequal length, against hmmlearn's scaled forward-backward.

Sequences of unequal length are padded and masked.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.contenders import categorical_hmm, plain_em
from benchmarks.task import Contender, Point, Run, Target, Task

N, T, K, V = 1000, 200, 16, 32
SHORTEST, LONGEST = 20, 400


def data(n: int = N, ragged: bool = False) -> tuple[np.ndarray, np.ndarray | None, dict[str, np.ndarray]]:
    """Draws padded symbols (n, T) from an HMM with sticky states, lengths (n,) if ragged, and a start for EM."""
    rng = np.random.default_rng(0)
    steps = LONGEST if ragged else T
    emission = rng.dirichlet(np.full(V, 0.3), K)
    z = ((rng.random((n, steps)) < 0.2).cumsum(1) * 3 + (rng.random((n, steps)) < 0.2).cumsum(1)) % K
    x = (emission.cumsum(1)[z] < rng.random((n, steps, 1))).sum(-1).clip(0, V - 1)
    start = {
        "initial": np.full(K, 1 / K),
        "transition": 0.5 * np.eye(K) + 0.5 / K,
        "emission": rng.dirichlet(np.full(V, 5.0), K),
    }
    return x, rng.integers(SHORTEST, LONGEST + 1, n) if ragged else None, start


def model(x: torch.Tensor, lengths: torch.Tensor | None = None) -> None:
    """The HMM as a Pyro program; x of shape (N, T), of which sequence n holds lengths[n] steps."""
    import ppl_em

    initial = pyro.param("initial", torch.ones(K) / K, constraint=constraints.simplex)
    transition = pyro.param("transition", torch.ones(K, K) / K, constraint=constraints.simplex)
    emission = pyro.param("emission", torch.ones(K, V) / V, constraint=constraints.simplex)
    with pyro.plate("sequences", len(x)):
        z = None
        for t in ppl_em.markov(x.shape[1]):
            with pyro.poutine.mask(mask=True if lengths is None else t < lengths):
                z = pyro.sample(f"z_{t}", dist.Categorical(initial if z is None else transition[z]))
                pyro.sample(f"x_{t}", dist.Categorical(emission[z]), obs=x[:, t])


def ours(n: int, ragged: bool) -> Run:
    """The program above, fitted by plain EM."""
    x, lengths, start = data(n, ragged)
    return plain_em(model, (x,) if lengths is None else (x, lengths), start)


def hmmlearn(n: int, ragged: bool) -> Run:
    """The same model in hmmlearn."""
    x, lengths, start = data(n, ragged)
    if lengths is None:
        return categorical_hmm(x.reshape(-1, 1), [T] * n, start)
    symbols = np.concatenate([row[:m] for row, m in zip(x, lengths, strict=True)])[:, None]
    return categorical_hmm(symbols, lengths, start)


def task(n: int, ragged: bool, limit: float | None, *axes: str) -> Task:
    """One size; the target is of time per step relative to hmmlearn's.

    Args:
        n: number of sequences.
        ragged: whether their lengths differ.
        limit: our time over theirs, at most; None for a point of a curve.
        axes: the sizes on whose curves it lies.
    """
    steps = f"{SHORTEST} to {LONGEST}" if ragged else f"{T}"
    return Task(
        what=f"HMM with {K} states and {V} symbols, {n:,} sequences of {steps} steps",
        contenders={
            "ppl_em": Contender(partial(ours, n, ragged)),
            "hmmlearn": Contender(partial(hmmlearn, n, ragged)),
        },
        num_steps=(2, 12),
        tolerance=1e-3,
        max_repeats=50 if limit is not None else 2,
        threads=None if limit is not None else (1,),
        target=None if limit is None else Target("hmmlearn", limit),
        points=tuple(Point("HMM, many sequences", axis, n) for axis in axes),
    )


TASK = {
    "even": task(N, False, 0.35, "N"),
    "ragged": task(N, True, 0.35),
    "N=10": task(10, False, None, "N"),
    "N=100": task(100, False, None, "N"),
}
