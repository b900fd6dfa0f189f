"""What users pass as data, as tensors: NumPy arrays, pandas objects, nested containers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from ppl_em.errors import DataError, message


def as_tensors(value: Any) -> Any:
    """Convert arrays and tables to tensors, inside tuples, lists and dicts too.

    Args:
        value: anything; floats become torch's default dtype, integers int64, booleans bool. What is not an array or a
            table is returned as it is.

    Raises:
        DataError: a column that is not numeric.
    """
    if isinstance(value, pd.DataFrame):
        bad = [str(c) for c in value.columns if not pd.api.types.is_numeric_dtype(value[c])]
        if bad:
            raise DataError(message("columns are not numeric", value=", ".join(bad), hint="df.select_dtypes('number')"))
        return _tensor(value.to_numpy())
    if isinstance(value, (pd.Series, pd.Index)):
        if not pd.api.types.is_numeric_dtype(value):
            raise DataError(message("a series is not numeric", value=value.name, hint="its category codes"))
        return _tensor(value.to_numpy())
    if isinstance(value, np.ndarray):
        return _tensor(value)
    if isinstance(value, np.generic):
        return _tensor(np.asarray(value))
    if isinstance(value, tuple) and not hasattr(value, "_fields"):
        return tuple(as_tensors(v) for v in value)
    if isinstance(value, list) and any(isinstance(v, (np.ndarray, pd.DataFrame, pd.Series)) for v in value):
        return [as_tensors(v) for v in value]
    if isinstance(value, dict):
        return {k: as_tensors(v) for k, v in value.items()}
    return value


def _tensor(array: np.ndarray) -> Tensor:
    if array.dtype == object:
        raise DataError(
            message("an array of Python objects is not data", value=array.dtype, hint="array.astype(float)")
        )
    if array.dtype.kind == "b":
        return torch.tensor(array)
    if array.dtype.kind in "iu":
        return torch.tensor(array.astype(np.int64))
    if array.dtype.kind == "f":
        return torch.tensor(array, dtype=torch.get_default_dtype())
    raise DataError(message("an array is not numeric", value=array.dtype))


def column_names(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[list[str]]:
    """Column names of the tables among the arguments, in order."""
    return [[str(c) for c in v.columns] for v in (*args, *kwargs.values()) if isinstance(v, pd.DataFrame)]
