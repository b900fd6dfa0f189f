"""Loaders among the arguments of a query: gone through batch by batch, or gathered into tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_em.arguments import as_tensors
from ppl_em.errors import DataError, message
from ppl_em.trace.footprint import isolated


def batches(args: Sequence[Any], position: int) -> Iterator[tuple[Any, ...]]:
    """The model's positional arguments for each batch of a loader.

    Args:
        args: positional arguments, a loader among them.
        position: where it stands.

    Raises:
        DataError: the loader yields keyword arguments, or nothing.
    """
    empty, end = True, object()
    with isolated(0):  # an iterator of a loader draws from the global random state
        iterator = iter(args[position])
    while True:
        with isolated(0):
            item = next(iterator, end)
        if item is end:
            break
        empty = False
        item = as_tensors(item)
        if isinstance(item, Mapping):
            hint = "one query for each batch"
            raise DataError(message("batches that are keyword arguments are not gathered", hint=hint))
        given = tuple(item) if isinstance(item, (tuple, list)) else (item,)
        yield (*args[:position], *given, *args[position + 1 :])
    if empty:
        raise DataError(message("the loader yields no batches"))


def gathered(args: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments with the batches of a loader among them joined along their first dimension.

    Raises:
        DataError: batches cannot be joined.
    """
    from ppl_em.problem import find_loader

    position = find_loader(args)
    if position is None:
        return tuple(args)
    before, after = position, len(args) - position - 1
    found = [call[before : len(call) - after] for call in batches(args, position)]
    joined = [_joined(values) for values in zip(*found, strict=True)]
    return (*args[:before], *joined, *args[before + 1 :])


def _joined(values: Sequence[Any]) -> Any:
    """Tensors one after the other; what is no tensor must be the same in all batches."""
    if all(isinstance(v, Tensor) and v.dim() for v in values):
        shapes = {tuple(v.shape[1:]) for v in values}
        if len(shapes) == 1:
            return torch.cat(list(values))
        why = f"their data have shapes {sorted(shapes)}"
        raise DataError(message("batches cannot be joined", why=why, hint="one query for each batch"))
    if all(not isinstance(v, Tensor) and v == values[0] for v in values):
        return values[0]
    raise DataError(
        message("batches cannot be joined", value=type(values[0]).__name__, hint="one query for each batch")
    )
