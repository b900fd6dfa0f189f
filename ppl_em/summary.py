"""Estimates as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd
import torch

from ppl_em.diagnostics.coordinates import element_labels
from ppl_em.errors import PplEmError

if TYPE_CHECKING:
    from ppl_em.result import FitResult

#: Parameters of more elements are one row with their size and norm; so are weights of networks that took gradient steps.
LARGE, LARGE_WEIGHTS = 200, 10


def summary(result: FitResult, level: float = 0.95) -> pd.DataFrame:
    """One row for each element of each parameter and point estimate.

    Args:
        result: a fit.
        level: confidence of the intervals.

    Returns:
        Index: ``loc[0,1]``; columns: ``estimate``, ``std_error``, ``lower``, ``upper`` (constrained scale) and ``rule``
        (how it was updated). Standard errors and intervals are missing where there are none: the fit is inexact, not
        at a maximum, has very many parameters, or its data are not at hand; an element is frozen, or on the boundary of
        its constraint.
    """
    try:
        intervals = result.conf_int(level)
    except PplEmError:
        intervals = None
    rows, index = [], []
    for name, value in {**result.params, **result.point_estimates}.items():
        rule = _rule(result, name)
        if value.numel() > (LARGE_WEIGHTS if rule == "gradient" and "$$$" in name else LARGE):
            index.append(f"{name}{list(value.shape)}")
            rows.append({"estimate": float(torch.linalg.vector_norm(value)), "rule": f"{rule} (Euclidean norm)"})
            continue
        for label, element in zip(element_labels(name, value.shape), value.reshape(-1).tolist(), strict=True):
            row = {"estimate": element, "rule": rule}
            if intervals is not None and label in intervals.index:
                row |= intervals.loc[label, ["std_error", "lower", "upper"]].to_dict()
            index.append(label)
            rows.append(row)
    columns = ["estimate", "std_error", "lower", "upper", "rule"]
    return pd.DataFrame(rows, index=pd.Index(index, name="parameter"), columns=columns)


def _rule(result: FitResult, name: str) -> str:
    try:
        return str(result.plan.rule_of(name))
    except (KeyError, AttributeError):
        return ""
