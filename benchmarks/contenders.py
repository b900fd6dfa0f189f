"""Contenders that several tasks share: plain EM of a Pyro program, and hmmlearn's HMM of symbols."""

from __future__ import annotations

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

    args = [torch.as_tensor(a) for a in arrays]
    init = {name: torch.as_tensor(value) for name, value in start.items()}

    def run(num_steps: int) -> Finish:
        method = ppl_em.EM(max_steps=num_steps, tol=0.0, accelerate=False)
        result = ppl_em.fit(model, *args, init=init, method=method, restarts=1)
        return lambda: float(result.objective)

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
        hmm = CategoricalHMM(
            states, n_features=num_symbols, n_iter=num_steps, tol=-np.inf, init_params="", implementation="scaling"
        )
        hmm.startprob_, hmm.transmat_, hmm.emissionprob_ = (
            start[name].copy() for name in ("initial", "transition", "emission")
        )
        hmm.fit(symbols, lengths)
        return lambda: float(hmm.score(symbols, lengths))

    return run
