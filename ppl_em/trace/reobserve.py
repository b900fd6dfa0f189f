"""A program whose observations are replaced: for refits to data drawn from the fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor


class _Replace(Messenger):
    """Observed sites return other values."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and msg["name"] in self.values:
            msg["value"] = _with_holes(self.values[msg["name"]], msg["value"])


def _with_holes(value: Tensor, before: Any) -> Tensor:
    """Other values with elements missing (NaN) where they were missing before."""
    if not isinstance(before, Tensor) or not before.is_floating_point() or before.shape != value.shape:
        return value
    gone = before.isnan()
    return torch.where(gone, torch.nan, value) if bool(gone.any()) else value


class Reobserved:
    """A program with other observed values; its arguments stay what they are, and what was missing stays missing.

    Args:
        model: the program.
        values: by observed site.
    """

    def __init__(self, model: Any, values: Mapping[str, Tensor]) -> None:
        self.model, self.values = model, values

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the thing that it stands for."""
        with _Replace(self.values):
            return self.model(*args, **kwargs)
