"""Named arrays as xarray datasets, with names, labels and attributes that netCDF files can hold.

No torch here, and no ArviZ: callers hand in NumPy arrays.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from ppl_em.errors import DataError, message

__all__ = ["SAMPLE_DIMS", "dataset", "dimension_name", "encode", "variable_name"]

SAMPLE_DIMS = ("chain", "draw")
"""The dimensions that ArviZ reduces over; no plate may have one of these names."""


def variable_name(name: str) -> str:
    """Returns a site's or parameter's name as a netCDF variable name ("/" separates groups there)."""
    return name.replace("/", "_").strip() or "_"


def dimension_name(plate: str, taken: Collection[str]) -> str:
    """Returns the dimension name of a plate.

    A dimension named as a variable would turn that variable into a coordinate, and it would vanish from every
    table; a dimension named ``chain`` or ``draw`` would be averaged over.

    Args:
        plate: The plate's name.
        taken: Names of all variables of all groups.

    Returns:
        The name, with ``_plate`` appended where it would collide.
    """
    name = variable_name(plate)
    forbidden = {variable_name(other) for other in taken} | {*SAMPLE_DIMS, "sample"}
    while name in forbidden:
        name += "_plate"
    return name


def dataset(
    variables: Mapping[str, tuple[Sequence[str], Any]],
    coords: Mapping[str, Any] | None = None,
    *,
    taken: Collection[str] = (),
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Builds one group from named arrays.

    Args:
        variables: Name to (dimension names, array). Dimensions are plate names, ``chain``, ``draw`` or
            ``<site>_dim_0``.
        coords: Labels by dimension name; those of dimensions that do not occur are left out.
        taken: Names of variables in other groups, so that a plate is renamed alike in all of them.
        attrs: Attributes of the group, of any type that JSON can hold.

    Returns:
        The dataset, with names and attributes that netCDF can store.

    Raises:
        DataError: The number of dimension names or of labels does not fit an array.

    Example:
        >>> group = dataset({"x": (("x",), np.zeros(3))}, {"x": ["a", "b", "c"]})
        >>> list(group.data_vars), dict(group.sizes)
        (['x'], {'x_plate': 3})
    """
    names = _unique(variables)
    every = {*names.values(), *(variable_name(name) for name in taken)}
    rename = {
        dim: dim if dim in SAMPLE_DIMS and dim not in every else dimension_name(dim, every)
        for dims, _ in variables.values()
        for dim in dims
    }
    arrays = {}
    for name, (dims, value) in variables.items():
        array = np.asarray(value)
        if array.ndim != len(dims):
            raise DataError(message("dimension names do not fit the array", site=name, value=f"{dims}, {array.shape}"))
        arrays[names[name]] = (tuple(rename[dim] for dim in dims), array)
    sizes = {dim: size for dims, array in arrays.values() for dim, size in zip(dims, array.shape, strict=True)}
    labels = {
        rename[dim]: _labels(dim, value, sizes[rename[dim]]) for dim, value in (coords or {}).items() if dim in rename
    }
    return xr.Dataset(arrays, coords=labels, attrs=encode(attrs or {}))


def encode(attrs: Mapping[str, Any]) -> dict[str, str | int | float]:
    """Encodes what netCDF attributes cannot hold (bool, None, lists, dicts) as JSON text."""
    encoded: dict[str, str | int | float] = {}
    for name, value in attrs.items():
        plain = value.item() if isinstance(value, np.generic) else value
        storable = isinstance(plain, (str, int, float)) and not isinstance(plain, bool)
        encoded[variable_name(str(name))] = plain if storable else json.dumps(plain, default=str)
    return encoded


def _unique(names: Collection[str]) -> dict[str, str]:
    """Maps each name to a storable one, different names to different ones (``a/b`` beside ``a_b``)."""
    result: dict[str, str] = {}
    for name in names:
        stored = variable_name(name)
        while stored in result.values() or (stored != name and stored in names):
            stored += "_"
        result[name] = stored
    return result


def _labels(dim: str, value: Any, size: int) -> np.ndarray:
    """Returns one label per element; text as plain strings, which every netCDF engine can store."""
    array = np.asarray(value)
    if array.shape != (size,):
        raise DataError(
            message("coordinates do not fit the dimension", site=dim, value=f"shape {array.shape}, size {size}")
        )
    return np.asarray([str(label) for label in array]) if array.dtype.kind in "OUT" else array
