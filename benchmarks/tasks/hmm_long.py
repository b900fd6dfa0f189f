"""One long sequence with Gaussian and with categorical outputs, against hmmlearn's scaled forward-backward."""

from __future__ import annotations

from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from benchmarks.contenders import categorical_hmm, gaussian_hmm, plain_em
from benchmarks.task import Contender, Point, Run, Target, Task

T, K, V, D = 100_000, 8, 16, 2


def states(num_steps: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Draws sticky states (num_steps,)."""
    return (np.cumsum(rng.random(num_steps) < 0.1) * 3 + np.cumsum(rng.random(num_steps) < 0.1)) % k


def data(num_steps: int = T, k: int = K) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Draws symbols (num_steps,) from an HMM with sticky states, and a start for EM."""
    rng = np.random.default_rng(0)
    emission = rng.dirichlet(np.full(V, 0.3), k)
    z = states(num_steps, k, rng)
    x = (emission.cumsum(1)[z] < rng.random((num_steps, 1))).sum(1).clip(0, V - 1)
    return x, {**moves(k), "emission": rng.dirichlet(np.full(V, 5.0), k)}


def points(num_steps: int = T, k: int = K) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Draws observations (num_steps, D) from an HMM with Gaussian outputs, and a start for EM."""
    rng = np.random.default_rng(0)
    centres = rng.normal(0.0, 2.0, (k, D))
    x = centres[states(num_steps, k, rng)] + rng.normal(size=(num_steps, D))
    return x, {**moves(k), "loc": centres + rng.normal(0.0, 0.5, (k, D)), "scale": np.full((k, D), 1.5)}


def moves(k: int) -> dict[str, np.ndarray]:
    """The start of the chain's own parameters."""
    return {"initial": np.full(k, 1 / k), "transition": 0.5 * np.eye(k) + 0.5 / k}


def model(x: torch.Tensor, k: int = K) -> None:
    """The HMM as a Pyro program over a time axis; x of shape (T,) of symbols or (T, D) of numbers."""
    import ppl_em

    initial = pyro.param("initial", torch.ones(k) / k, constraint=constraints.simplex)
    transition = pyro.param("transition", torch.ones(k, k) / k, constraint=constraints.simplex)
    if x.ndim == 1:
        emission = pyro.param("emission", torch.ones(k, V) / V, constraint=constraints.simplex)
    else:
        loc = pyro.param("loc", torch.zeros(k, D))
        scale = pyro.param("scale", torch.ones(k, D), constraint=constraints.positive)
    z = None
    for t in ppl_em.markov(len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(initial if z is None else transition[z]))
        outputs = dist.Categorical(emission[z]) if x.ndim == 1 else dist.Normal(loc[z], scale[z]).to_event(1)
        pyro.sample(f"x_{t}", outputs, obs=x[t])


def ours(kind: str, num_steps: int, k: int) -> Run:
    """The program above, fitted by plain EM."""
    x, start = data(num_steps, k) if kind == "categorical" else points(num_steps, k)
    return plain_em(partial(model, k=k), (x,), start)


def hmmlearn(kind: str, num_steps: int, k: int) -> Run:
    """The same model in hmmlearn."""
    if kind == "categorical":
        x, start = data(num_steps, k)
        return categorical_hmm(x.reshape(-1, 1), None, start)
    return gaussian_hmm(*_with_lengths(*points(num_steps, k)))


def _with_lengths(x: np.ndarray, start: dict[str, np.ndarray]) -> tuple[np.ndarray, None, dict[str, np.ndarray]]:
    return x, None, start


def task(kind: str, num_steps: int, k: int, limit: float | None, *axes: str) -> Task:
    """One size; the target is of time per step relative to hmmlearn's.

    Args:
        kind: ``"categorical"`` or ``"Gaussian"`` outputs.
        num_steps: length of the sequence.
        k: number of states.
        limit: our time over theirs, at most; None for a point of a curve.
        axes: the sizes on whose curves it lies.
    """
    size = {"T": num_steps, "K": k}
    outputs = f"{V} symbols" if kind == "categorical" else f"{D} Gaussian outputs"
    return Task(
        what=f"HMM with {k} states and {outputs}, one sequence of {num_steps:,} steps",
        contenders={
            "ppl_em": Contender(partial(ours, kind, num_steps, k)),
            "hmmlearn": Contender(partial(hmmlearn, kind, num_steps, k)),
        },
        num_steps=(2, 6 if num_steps > T else 22),
        tolerance=1e-8 * num_steps,
        max_repeats=50 if limit is not None else 2,
        threads=None if limit is not None else (1,),
        target=None if limit is None else Target("hmmlearn", limit),
        points=tuple(Point("HMM, one sequence", axis, size[axis]) for axis in axes),
    )


TASK = {
    "Gaussian": task("Gaussian", T, K, 0.3),
    "categorical": task("categorical", T, K, 0.3, "T", "K"),
    "T=10,000": task("categorical", 10_000, K, None, "T"),
    "T=1,000,000": task("categorical", 1_000_000, K, None, "T"),
    "K=2": task("categorical", T, 2, None, "K"),
    "K=32": task("categorical", T, 32, None, "K"),
}
