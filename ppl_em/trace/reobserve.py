"""A program whose observations are replaced: for refits to data drawn from the fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor


class _Replace(Messenger):
    """Observed sites return other values."""

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] and msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


class Reobserved:
    """A program with other observed values; its arguments stay what they are.

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
