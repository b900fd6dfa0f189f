"""The only importer of ArviZ: labelled arrays in, the native ArviZ object out; netCDF files; LOO.

ArviZ 0.23 (Python 3.11) holds results in an `InferenceData`, ArviZ 1.x in an xarray `DataTree`. Both are
trees of datasets, and their netCDF files are interchangeable. This module hides the difference. It knows no
torch: callers hand it NumPy arrays.

ArviZ is imported on first use, because the import takes seconds.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import xarray as xr

from ppl_em.arviz_datasets import SAMPLE_DIMS, dataset, dimension_name, encode, variable_name
from ppl_em.errors import FileError, message

__all__ = [
    "SAMPLE_DIMS",
    "Loo",
    "arviz",
    "dataset",
    "dimension_name",
    "group_names",
    "load",
    "loo",
    "save",
    "to_native",
    "variable_name",
]

_ENGINE = "h5netcdf"


def arviz() -> ModuleType:
    """Imports ArviZ: quietly, and also where the user's cache directory cannot be written."""
    with warnings.catch_warnings():
        # Version 0.23 announces version 1 once a day, by a FutureWarning at import.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            return importlib.import_module("arviz")
        except OSError:
            # It keeps the date of that announcement in the cache directory.
            with tempfile.TemporaryDirectory() as directory, _environment("XDG_CACHE_HOME", directory):
                return importlib.import_module("arviz")


def to_native(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any] | None = None) -> Any:
    """Puts datasets together as ArviZ's own object.

    Args:
        groups: Group name to dataset. Empty groups are left out.
        attrs: Attributes of the whole, of any type that JSON can hold.

    Returns:
        An ``arviz.InferenceData`` (ArviZ 0.23) or an ``xarray.DataTree`` (ArviZ 1.x).
    """
    az = arviz()
    filled = {name: group for name, group in groups.items() if group.data_vars}
    encoded = encode(attrs or {})
    if _is_inference_data(az):
        return az.InferenceData(attrs=encoded, warn_on_custom_groups=False, **filled)
    return xr.DataTree.from_dict({"/": xr.Dataset(attrs=encoded), **filled})


def group_names(native: Any) -> tuple[str, ...]:
    """Returns the names of the groups in ArviZ's object, in order."""
    if isinstance(native, xr.DataTree):
        return tuple(native.children)
    return tuple(native.groups())


def save(native: Any, path: str | os.PathLike[str]) -> Path:
    """Writes ArviZ's object to a netCDF file, atomically: an interruption leaves no half-written file.

    Args:
        native: What `to_native` returned.
        path: The file to write; an existing one is replaced.

    Returns:
        The path.

    Raises:
        FileError: The directory does not exist or cannot be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        native.to_netcdf(str(partial), engine=_ENGINE)
        os.replace(partial, target)
    except OSError as error:
        raise FileError(message("cannot write the netCDF file", value=target, why=str(error))) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def load(path: str | os.PathLike[str]) -> Any:
    """Reads a netCDF file written by `save`, or by ArviZ, into memory.

    Args:
        path: The file.

    Returns:
        An ``arviz.InferenceData`` (ArviZ 0.23) or an ``xarray.DataTree`` (ArviZ 1.x).

    Raises:
        FileError: There is no such file, or it is no netCDF file.
    """
    az = arviz()
    try:
        if _is_inference_data(az):
            with az.rc_context({"data.load": "eager"}), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=".*not defined in the InferenceData scheme.*")
                return az.InferenceData.from_netcdf(str(path), engine=_ENGINE)
        with xr.open_datatree(path, engine=_ENGINE) as tree:
            return tree.load()
    except (OSError, ValueError) as error:
        raise FileError(message("cannot read the netCDF file", value=path, why=str(error))) from error


@dataclass(frozen=True)
class Loo:
    """Leave-one-out cross-validation by Pareto-smoothed importance sampling.

    Attributes:
        elpd: Expected log pointwise predictive density, in nats, summed over data.
        se: Its standard error.
        p: Effective number of parameters.
        elpd_i: The terms of `elpd`, shaped as the data.
        pareto_k: Shape of the importance weights' tail per datum; above 0.7 the term cannot be trusted.
        num_copies: Number of data that the distinct ones stand for, where their weights are counts: `elpd`, `se` and
            `p` are sums over all of them, `elpd_i` and `pareto_k` are those of one copy.

    Reference:
        Vehtari, Gelman and Gabry (2017), Practical Bayesian model evaluation using leave-one-out
        cross-validation and WAIC.
    """

    elpd: float
    se: float
    p: float
    elpd_i: np.ndarray
    pareto_k: np.ndarray
    num_copies: int | None = None


def loo(native: Any, var_name: str) -> Loo:
    """Estimates leave-one-out predictive accuracy from the group ``log_likelihood``.

    Args:
        native: ArviZ's object, with groups ``posterior`` and ``log_likelihood``.
        var_name: The variable of ``log_likelihood``, with dimensions (chain, draw, data...).

    Returns:
        The estimate, under the same names for every version of ArviZ.
    """
    az = arviz()
    with warnings.catch_warnings():
        # A large Pareto k is reported in the result, not on the side.
        warnings.simplefilter("ignore", UserWarning)
        found = az.loo(native, pointwise=True, var_name=variable_name(var_name))
    old = _is_inference_data(az)
    return Loo(
        elpd=float(found.elpd_loo if old else found.elpd),
        se=float(found.se),
        p=float(found.p_loo if old else found.p),
        elpd_i=np.asarray(found.loo_i if old else found.elpd_i),
        pareto_k=np.asarray(found.pareto_k),
    )


def _is_inference_data(az: ModuleType) -> bool:
    """Tells ArviZ 0.23 from 1.x, where the name `InferenceData` still resolves, to a placeholder."""
    return int(az.__version__.split(".")[0]) == 0


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """Sets an environment variable for the time of the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
