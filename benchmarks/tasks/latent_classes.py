"""Latent classes of many yes-or-no answers, against stepmix."""

from __future__ import annotations

import warnings

import numpy as np
import torch

from benchmarks.contenders import plain_em
from benchmarks.task import Contender, Finish, Run, Target, Task
from models import latent_classes

N, D, K = 200_000, 50, 10


def data() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Draws answers (N, D) of people in hidden classes, and a start for EM."""
    rng = np.random.default_rng(0)
    probs = rng.uniform(0.1, 0.9, (K, D))
    x = (rng.random((N, D)) < probs[rng.integers(K, size=N)]).astype(float)
    return x, {"weights": np.full(K, 1 / K), "probs": 0.5 * probs + 0.5 * rng.uniform(0.1, 0.9, (K, D))}


def program(x: torch.Tensor) -> None:
    """The model of `models.latent_classes` with ten classes."""
    latent_classes.model(x, num_classes=K)


def ours() -> Run:
    """The program above, fitted by plain EM."""
    x, start = data()
    return plain_em(program, (x,), start)


def stepmix() -> Run:
    """StepMix with a Bernoulli measurement model, from the same start."""
    from stepmix.stepmix import StepMix

    x, start = data()

    class Started(StepMix):
        """StepMix whose first parameters are given, where it would draw responsibilities."""

        def _initialize_parameters(self, X, random_state):  # noqa: N803 - its name for the data
            super()._initialize_parameters(X, random_state)
            self.weights_ = start["weights"].copy()
            self._mm.set_parameters({"pis": start["probs"].copy()})

    def run(num_steps: int) -> Finish:
        classes = Started(
            n_components=K,
            measurement="binary",
            max_iter=num_steps,
            abs_tol=0.0,
            rel_tol=0.0,
            progress_bar=0,
            verbose=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            classes.fit(x)
        return lambda: float(classes.score(x) * N)

    return run


TASK = Task(
    what=f"{K} latent classes, {N:,} people, {D} answers each",
    contenders={"ppl_em": Contender(ours), "stepmix": Contender(stepmix, needs="stepmix")},
    num_steps=(2, 12),
    tolerance=1e-3,
    target=Target("stepmix", 0.4),
    memory=8 * N * D,
)
