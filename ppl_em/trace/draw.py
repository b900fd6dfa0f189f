"""Drawing a latent from its distribution."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor


def draw(fn: Any) -> Tensor:
    """A draw from a distribution, without the warning that torch gives with every draw from a Wishart distribution.

    Args:
        fn: the distribution, wrappers included.
    """
    inner = fn
    while hasattr(inner, "base_dist"):
        inner = inner.base_dist
    if not isinstance(inner, torch.distributions.Wishart):
        return fn.sample()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Singular sample detected")
        return fn.sample()
