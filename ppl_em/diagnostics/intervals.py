"""Confidence intervals that respect constraints: symmetric on a scale where the parameter is unbounded, then mapped back."""

from __future__ import annotations

import pandas as pd
import torch
from torch import Tensor

from ppl_em.diagnostics.information import Information, elements
from ppl_em.errors import PplEmError, message


def normal_quantile(level: float) -> float:
    """Half-width, in standard errors, of a central interval of a normal distribution.

    Raises:
        PplEmError: the level is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise PplEmError(message("a confidence level lies between 0 and 1", value=level))
    return float(torch.special.ndtri(torch.tensor(0.5 + level / 2, dtype=torch.float64)))


def interval(estimate: Tensor, error: Tensor, lower: Tensor, upper: Tensor, level: float) -> tuple[Tensor, Tensor]:
    """Wald intervals on the log scale (one bound), the logit scale (two bounds) or the plain one.

    Args:
        estimate, error: value and standard error, any shape.
        lower, upper: bounds of each element, infinite where there are none.
        level: confidence.
    """
    width = normal_quantile(level) * error
    below, above = estimate - lower, upper - estimate
    has_lower, has_upper = torch.isfinite(lower), torch.isfinite(upper)
    ends = []
    for sign in (-1.0, 1.0):
        plain = estimate + sign * width
        low = torch.where(has_lower, lower, 0.0) + below * torch.exp(sign * width / below)
        high = torch.where(has_upper, upper, 0.0) - above * torch.exp(-sign * width / above)
        span = torch.where(has_lower & has_upper, upper - lower, 1.0)
        p = (below / span).clamp(1e-300, 1 - 1e-16)
        logit = torch.logit(p) + sign * width / (span * p * (1 - p))
        both = torch.where(has_lower, lower, 0.0) + span * torch.sigmoid(logit)
        one = torch.where(has_lower, low, torch.where(has_upper, high, plain))
        ends.append(torch.where(has_lower & has_upper, both, one))
    return ends[0], ends[1]


def conf_int(information: Information, level: float = 0.95, kind: str = "observed") -> pd.DataFrame:
    """Confidence intervals of all elements.

    Args:
        information: observed information.
        level: confidence.
        kind: ``"observed"`` or ``"sandwich"``.

    Returns:
        Index: ``loc[0,1]``; columns ``estimate``, ``std_error``, ``lower``, ``upper``, on the constrained scale.
    """
    coordinates = information.coordinates
    _, errors = elements(information, kind)
    estimate = coordinates.flatten({c.name: c.origin for c in coordinates.charts})
    lower = torch.cat([c.lower.reshape(-1).double() for c in coordinates.charts])
    upper = torch.cat([c.upper.reshape(-1).double() for c in coordinates.charts])
    low, high = interval(estimate, errors, lower, upper, level)
    columns = {"estimate": estimate, "std_error": errors, "lower": low, "upper": high}
    index = pd.Index(coordinates.labels, name="parameter")
    return pd.DataFrame({n: v.numpy() for n, v in columns.items()}, index=index)
