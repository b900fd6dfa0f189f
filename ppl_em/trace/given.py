"""Which arguments a distribution was given, and their event dimensions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
from torch import Tensor

#: Which of several equivalent arguments was given shows in the instance's dictionary.
_ALTERNATIVES = (("probs", "logits"), ("gate", "gate_logits"), ("covariance_matrix", "precision_matrix", "scale_tril"))

#: Event dimensions of arguments whose constraints do not tell: states, and time with rows and columns.
_UNDECLARED: Mapping[type, Mapping[str, int]] = {dist.DiscreteHMM: {"initial_logits": 1, "transition_logits": 3}}


def given_arguments(fn: Any, constraints: dict[str, Any]) -> list[str]:
    """Names of the arguments in the parametrisation that the user chose."""
    names = list(constraints)
    for group in _ALTERNATIVES:
        present = [n for n in group if n in names]
        if len(present) > 1:
            given = [n for n in present if n in fn.__dict__]
            parameter = fn.__dict__.get("_param")
            if len(given) > 1 and parameter is not None:
                given = [n for n in given if fn.__dict__[n] is parameter] or given
            keep = (given or present)[0]
            names = [n for n in names if n not in present or n == keep]
    return names


def event_dim_of(constraint: Any, value: Tensor, fn: Any) -> int:
    """Number of event dimensions of an argument."""
    for name, event_dim in _UNDECLARED.get(type(fn), {}).items():
        if fn.__dict__.get(name) is value:
            return min(event_dim, value.dim())
    declared = getattr(constraint, "event_dim", 0)
    # Some families declare elementwise constraints on vector arguments (LowRank's cov_diag, logits of a Categorical):
    # what exceeds the batch shape is the argument's own.
    return max(declared, value.dim() - len(fn.batch_shape))
