"""A model's arguments as JSON and named tensors, so that a result can be stored with its data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ppl_em.errors import FileError, message


def pack(value: Any, where: str, tensors: dict[str, Tensor]) -> Any:
    """Plain JSON for a value; its tensors are put into ``tensors`` under names that begin with ``where``.

    Args:
        value: tensors, numbers, text, None, and lists, tuples and dicts of these.
        where: place of the value, e.g. ``"args/0"``.
        tensors: is added to.

    Raises:
        FileError: something else is among them; its place is named.
    """
    if isinstance(value, Tensor):
        tensors[where] = value.detach().cpu().clone().contiguous()
        return {"tensor": where}
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [pack(v, f"{where}/{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: pack(v, f"{where}/{k}", tensors) for k, v in value.items()}}
    place = where.replace("args/", "argument ").replace("kwargs/", "keyword argument ")
    why = "only tensors, numbers, text and containers of these are stored"
    raise FileError(
        message(f"{place} cannot be stored", value=type(value).__name__, why=why, hint="save(path) without data")
    )


def unpack(packed: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    """The value that :func:`pack` was given."""
    (kind, content), *_ = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "value":
        return content
    if kind == "dict":
        return {k: unpack(v, tensors) for k, v in content.items()}
    items = [unpack(v, tensors) for v in content]
    return tuple(items) if kind == "tuple" else items
