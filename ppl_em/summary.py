"""Estimates as a table."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pandas as pd
import torch

if TYPE_CHECKING:
    from ppl_em.result import FitResult

#: Parameters of more elements (weights of networks) are one row with their size and norm.
LARGE = 200


def summary(result: FitResult) -> pd.DataFrame:
    """One row for each element of each parameter and point estimate.

    Returns:
        Index: ``loc[0,1]``; columns: ``estimate`` (constrained scale) and ``rule`` (how it was updated).
    """
    rows, index = [], []
    for name, value in {**result.params, **result.point_estimates}.items():
        rule = _rule(result, name)
        if value.numel() > LARGE:
            index.append(f"{name}{list(value.shape)}")
            rows.append({"estimate": float(torch.linalg.vector_norm(value)), "rule": f"{rule} (Euclidean norm)"})
            continue
        for place in product(*(range(n) for n in value.shape)):
            index.append(name + (f"[{','.join(map(str, place))}]" if place else ""))
            rows.append({"estimate": float(value[place]), "rule": rule})
    return pd.DataFrame(rows, index=pd.Index(index, name="parameter"), columns=["estimate", "rule"])


def _rule(result: FitResult, name: str) -> str:
    try:
        return str(result.plan.rule_of(name))
    except (KeyError, AttributeError):
        return ""
