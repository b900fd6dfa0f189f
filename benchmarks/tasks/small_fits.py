"""Whole fits of small data, from one start to convergence: what the general machinery costs.

A step is a whole call. Each library stops by its own rule, so that the log-likelihoods tell who stopped early.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

import numpy as np

from benchmarks.task import Contender, Finish, Run, Target, Task
from models import gmm, hmm


def ours(program: ModuleType) -> Run:
    """``fit`` with one start, everything else as it is by default."""
    import ppl_em

    x = program.load()

    def run(num_steps: int) -> Finish:
        result = None
        for _ in range(num_steps):
            result = ppl_em.fit(program.model, x, restarts=1)
        return lambda: np.nan if result is None else result.log_likelihood

    return run


def peers(make: Callable[[], object], x: np.ndarray, total: float) -> Run:
    """The estimator's ``fit`` with its own defaults."""

    def run(num_steps: int) -> Finish:
        fitted = None
        for _ in range(num_steps):
            fitted = make().fit(x)
        return lambda: np.nan if fitted is None else float(fitted.score(x) * total)

    return run


def sklearn() -> Run:
    """GaussianMixture with two full covariances."""
    from sklearn.mixture import GaussianMixture

    x = gmm.load().numpy()
    return peers(partial(GaussianMixture, 2, random_state=0), x, len(x))


def hmmlearn() -> Run:
    """PoissonHMM with two states."""
    from hmmlearn.hmm import PoissonHMM

    x = hmm.load().numpy().astype(int)[:, None]
    return peers(partial(PoissonHMM, 2, random_state=0), x, 1.0)


def task(what: str, program: ModuleType, name: str, peer: Callable[[], Run]) -> Task:
    """Ours beside one peer."""
    return Task(
        what=f"whole fit of {what}, one start, to convergence",
        contenders={
            "ppl_em": Contender(partial(ours, program), same_algorithm=False),
            name: Contender(peer, same_algorithm=False),
        },
        num_steps=(1, 4),
        target=Target(name, start_steps=None),
    )


TASK = {
    "faithful": task("two Gaussians to Old Faithful's eruptions", gmm, "scikit-learn", sklearn),
    "earthquakes": task("a Poisson HMM with two states to the yearly earthquakes", hmm, "hmmlearn", hmmlearn),
}
