"""The programs of `programs` with their data, and what the plan should make of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from tests.chains import programs as p


class Case(NamedTuple):
    """A program on small data.

    Attributes:
        model: The program.
        args: Its data.
        families: Families of latents, the first one's steps are those of the data.
        scale: Of the whole density.
        rows: Whether the series of the data are independent of each other: each is enumerated by itself.
    """

    model: Callable[..., Any]
    args: tuple[Any, ...]
    families: tuple[str, ...] = ("z",)
    scale: float = 1.0
    rows: bool = False


SINGLE = {
    "first order": Case(p.first_order, (p.X,)),
    "second order": Case(p.second_order, (p.X,)),
    "third order": Case(p.third_order, (p.X,)),
    "factorial": Case(p.factorial, (p.X[:3],), ("z", "w")),
    "factorial, numbered": Case(p.factorial_numbered, (p.X[:3],), ("z_0", "z_1", "z_2")),
    "coupled": Case(p.coupled, (p.X[:3],), ("z", "w")),
    "hierarchical": Case(p.hierarchical, (p.X[:3],), ("z", "w")),
    "orders two and one": Case(p.longer_and_shorter, (p.X,), ("z", "w")),
    "mixture emission": Case(p.mixture_emission, (p.X[:3],), ("z", "m")),
    "semi-Markov": Case(p.semi_markov, (p.X[:3],), ("z", "left")),
    "class of a series": Case(p.class_of_series, (p.X,)),
}
"""One series, transitions that do not change: they can be continued beyond the data."""

CASES = {
    **SINGLE,
    "time-varying": Case(p.time_varying, (p.X,)),
    "input-driven": Case(p.input_driven, (p.X,)),
    "autoregressive": Case(p.autoregressive, (torch.cat([p.X, p.X[:1]]),)),
    "edge emission": Case(p.edge_emission, (p.X,)),
    "impossible moves": Case(p.impossible_moves, (p.X[:3],), ("z", "w")),
    "network emission": Case(p.network_emission, (p.X,)),
    "class of many": Case(p.class_of_many, (p.MANY,), rows=True),
    "class of many, ragged": Case(p.class_of_many, (p.MANY, p.LENGTHS), rows=True),
    "class of all": Case(p.class_of_all, (p.MANY,)),
    "ragged": Case(p.ragged, (p.MANY, p.LENGTHS), rows=True),
    "ragged, second order": Case(p.ragged_second_order, (p.MANY, p.LENGTHS), rows=True),
    "ragged, factorial": Case(p.ragged_factorial, (p.MANY, p.LENGTHS), ("z", "w"), rows=True),
    "ragged, time-varying": Case(p.ragged_time_varying, (p.MANY, p.LENGTHS), rows=True),
    "Python slices": Case(p.python_slices, (p.MANY, torch.tensor([3, 2])), ("z_0",)),
    "scaled": Case(p.scaled, (p.X[:3],), ("z", "w"), 2.5),
}
