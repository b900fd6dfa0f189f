"""Tensors as arrays with named dimensions; those of sites ``x_0 … x_T`` as one array over time."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from torch import Tensor

Variables = dict[str, tuple[tuple[str, ...], np.ndarray]]
"""Arrays by name, each with its dimension names."""


def labelled(value: Tensor, plates: Iterable[str], name: str) -> tuple[tuple[str, ...], np.ndarray]:
    """An array with the names of its leading dimensions; the others are numbered, ``<name>_dim_0`` and so on."""
    array = value.detach().cpu().numpy()
    named = tuple(plates)
    return (*named, *(f"{name}_dim_{i}" for i in range(array.ndim - len(named)))), array


@dataclass(frozen=True)
class _Member:
    """One of the sites ``x_0 … x_T``: its number, and its array with dimension names free of that number."""

    number: int
    dims: tuple[str, ...]
    array: np.ndarray


def stacked(variables: Variables) -> Variables:
    """Replaces variables ``x_0 … x_T`` of one shape by one variable ``x`` with the dimension ``x_time``.

    A name that is taken, a gap in the numbers or a difference in shape leaves them as they are.
    """
    families: dict[str, list[_Member]] = {}
    for name, (dims, array) in variables.items():
        if match := re.fullmatch(r"(.*[^0-9_])_?([0-9]+)", name):
            stem = match.group(1)
            free = tuple(stem + dim[len(name) :] if dim.startswith(f"{name}_") else dim for dim in dims)
            families.setdefault(stem, []).append(_Member(int(match.group(2)), free, array))
    result = dict(variables)
    for stem, members in families.items():
        members.sort(key=lambda member: member.number)
        first = members[0]
        numbers = [member.number for member in members]
        alike = {(member.dims, member.array.shape) for member in members}
        if len(members) < 3 or len(alike) > 1 or numbers != list(range(numbers[0], numbers[-1] + 1)):
            continue
        if stem in variables:
            continue
        names = [name for name in variables if re.fullmatch(rf"{re.escape(stem)}_?[0-9]+", name)]
        for name in names:
            del result[name]
        at = sum(not dim.startswith(f"{stem}_") for dim in first.dims)
        stack = np.stack([member.array for member in members], at)
        result[stem] = ((*first.dims[:at], f"{stem}_time", *first.dims[at:]), stack)
    return result
