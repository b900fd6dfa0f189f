"""Data files of the command line: a CSV table or a NumPy array becomes the model's argument."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_em.errors import DataError, FileError, PplEmError, message

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = ["read_arguments", "read_table"]


def read_arguments(
    path: Path | None, columns: Sequence[str] | None, load: Callable[..., Any] | None
) -> tuple[Any, ...]:
    """Returns the positional arguments of the model.

    Args:
        path: The data file, or None for what ``load()`` returns by itself.
        columns: Columns of the CSV to take, in this order; all numeric ones where None.
        load: The model file's own reader, which replaces this module's.

    Returns:
        What ``load`` returned (a tuple is unpacked), or one table or array.

    Raises:
        FileError: The file cannot be read.
        DataError: A column is missing or not numeric, or there are no rows.
    """
    if path is not None and not path.is_file():
        why = "it is a directory" if path.is_dir() else "there is no such file"
        raise FileError(message("cannot read the data file", value=path, why=why))
    if load is None:
        return () if path is None else (read_table(path, columns),)
    if columns is not None:
        raise DataError(message("columns cannot be chosen", why="the model file reads the data by its own 'load'"))
    try:
        loaded = load() if path is None else load(path)
    except PplEmError:
        raise
    except Exception as error:
        raise DataError(
            message("the model file's 'load' failed", value=path, why=f"{type(error).__name__}: {error}")
        ) from error
    return tuple(loaded) if isinstance(loaded, (tuple, list)) else (loaded,)


def read_table(path: Path, columns: Sequence[str] | None = None) -> pd.DataFrame | np.ndarray:
    """Reads a ``.csv`` file as a table of floats, a ``.npy`` file as an array.

    Args:
        path: The file.
        columns: Columns of the CSV to take, in this order; all numeric ones where None.

    Returns:
        A data frame of shape (rows, columns), or the array as it was stored.

    Raises:
        FileError: The file cannot be read or is of another kind.
        DataError: A column is missing or not numeric, or there are no rows.
    """
    kind = path.suffix.lower()
    if kind == ".npy":
        return _read_npy(path, columns)
    if kind in (".csv", ".txt"):
        return _numeric(_read_csv(path), path, columns)
    raise FileError(
        message("unknown kind of data file", value=path, hint="a .csv or .npy file, or a 'load' in the model file")
    )


def _read_csv(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        return pd.read_csv(path)
    except (OSError, ValueError) as error:  # parsing and decoding errors are ValueErrors
        raise FileError(message("cannot read the CSV file", value=path, why=str(error))) from error


def _read_npy(path: Path, columns: Sequence[str] | None) -> np.ndarray:
    import numpy as np

    if columns is not None:
        raise DataError(message("columns cannot be chosen by name", why="a .npy file has none", value=path))
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise FileError(message("cannot read the NumPy file", value=path, why=str(error))) from error
    if array.size == 0:
        raise DataError(message("no data in the file", value=path))
    return array


def _numeric(table: pd.DataFrame, path: Path, columns: Sequence[str] | None) -> pd.DataFrame:
    """Takes the columns asked for, as floats."""
    import pandas as pd

    if len(table) == 0:
        raise DataError(message("no rows in the CSV file", value=path))
    if columns is None:
        chosen = table.select_dtypes(["number", "bool"])
        if chosen.shape[1] == 0:
            raise DataError(message("no numeric column in the CSV file", value=path, why=f"it has {_names(table)}"))
    else:
        missing = [name for name in columns if name not in table.columns]
        if missing:
            raise DataError(
                message(f"no column named {', '.join(missing)}", value=path, why=f"the file has {_names(table)}")
            )
        chosen = table.loc[:, list(columns)]
        words = [name for name in chosen if not pd.api.types.is_numeric_dtype(chosen[name])]
        if words:
            raise DataError(message(f"column {', '.join(words)} is not numeric", value=path, hint="columns of numbers"))
    return pd.DataFrame(chosen.astype(float))


def _names(table: pd.DataFrame) -> str:
    return ", ".join(str(name) for name in table.columns) or "no columns"
