"""Stick breaking: weights of a truncated Dirichlet process as a function of beta variables.

Reference:
    Blei, D. & Jordan, M. (2006). Variational inference for Dirichlet process mixtures. Bayesian Analysis 1(1).
"""

from __future__ import annotations

import torch
from torch import Tensor


def expected_log_weights(log: Tensor, complement: Tensor) -> Tensor:
    """E[log π] of the K pieces, (…, K), from E[log v] and E[log (1 − v)] of the K − 1 breaks.

    Args:
        log, complement: (…, K − 1).
    """
    zero = log.new_zeros((*log.shape[:-1], 1))
    return torch.cat([log, zero], -1) + torch.cat([zero, complement.cumsum(-1)], -1)


def break_counts(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Counts of the K pieces as successes and failures (…, K − 1) of the breaks.

    Args:
        counts: (…, K) expected number of data in each piece.
    """
    later = counts.flip(-1).cumsum(-1).flip(-1)
    return counts[..., :-1], later[..., 1:]
