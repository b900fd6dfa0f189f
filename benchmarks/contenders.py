"""Contenders that several tasks share: plain EM of a Pyro program, and hmmlearn's hidden Markov models."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.task import Finish, Run


def plain_em(model: Callable[..., None], arrays: tuple[Any, ...], start: Mapping[str, Any]) -> Run:
    """The program fitted by plain EM from one start.

    Args:
        model: the program.
        arrays: its arguments.
        start: values of all parameters.
    """
    import ppl_em

    args = [torch.as_tensor(a, device=torch.get_default_device()) for a in arrays]
    init = {name: torch.as_tensor(value, device=torch.get_default_device()) for name, value in start.items()}

    def run(num_steps: int) -> Finish:
        marks: list[float] = []
        method = ppl_em.EM(
            max_steps=num_steps, tol=0.0, accelerate=False, callback=lambda _: marks.append(time.perf_counter())
        )
        result = ppl_em.fit(model, *args, init=init, method=method, restarts=1)

        def finish() -> float:
            return float(result.objective)

        finish.marks = marks  # type: ignore[attr-defined]
        return finish

    return run


def categorical_hmm(symbols: np.ndarray, lengths: Any, start: Mapping[str, np.ndarray]) -> Run:
    """Fits CategoricalHMM of hmmlearn from the same start, in its faster implementation (scaling).

    Args:
        symbols: (steps, 1), sequences one after the other.
        lengths: number of steps of each sequence, None for one sequence.
        start: ``initial`` (K,), ``transition`` (K, K) and ``emission`` (K, V).
    """
    from hmmlearn.hmm import CategoricalHMM

    states, num_symbols = start["emission"].shape

    def run(num_steps: int) -> Finish:
        hmm = CategoricalHMM(states, n_features=num_symbols, **_settings(num_steps))
        hmm.emissionprob_ = start["emission"].copy()
        return _fitted(hmm, symbols, lengths, start)

    return run


def gaussian_hmm(x: np.ndarray, lengths: Any, start: Mapping[str, np.ndarray]) -> Run:
    """Fits GaussianHMM of hmmlearn with diagonal covariances from the same start, without its priors.

    Args:
        x: (steps, D), sequences one after the other.
        lengths: number of steps of each sequence, None for one sequence.
        start: ``initial`` (K,), ``transition`` (K, K), ``loc`` and ``scale`` (K, D).
    """
    from hmmlearn.hmm import GaussianHMM

    def run(num_steps: int) -> Finish:
        hmm = GaussianHMM(
            len(start["loc"]),
            covariance_type="diag",
            min_covar=0.0,
            covars_prior=0.0,
            covars_weight=1.0,
            **_settings(num_steps),
        )
        hmm.means_, hmm.covars_ = start["loc"].copy(), start["scale"] ** 2
        return _fitted(hmm, x, lengths, start)

    return run


def _settings(num_steps: int) -> dict[str, Any]:
    return {"n_iter": num_steps, "tol": -np.inf, "init_params": "", "implementation": "scaling"}


def _fitted(hmm: Any, x: np.ndarray, lengths: Any, start: Mapping[str, np.ndarray]) -> Finish:
    hmm.startprob_, hmm.transmat_ = start["initial"].copy(), start["transition"].copy()
    hmm.fit(x, lengths)
    return lambda: float(hmm.score(x, lengths))
