"""Directories that the command line writes: checked before the work, written atomically."""

from __future__ import annotations

import functools
import json
import os
import tempfile
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppl_em.errors import FileError, NotAvailableYet, message

if TYPE_CHECKING:
    from ppl_em.result import FitResult

__all__ = ["RESULT", "RESULT_NAMES", "RUN", "OutputDirectory", "open_output", "read_run", "write_result"]

RESULT = "result"
RUN = "run.json"
PICTURE = "fit.png"
RESULT_NAMES = (RESULT, RUN, "plan.txt", "plan.json", "summary.csv", "posterior.nc", PICTURE)
"""All that a fit writes to its output directory."""


@dataclass(frozen=True)
class OutputDirectory:
    """A directory that exists and can be written.

    Attributes:
        path: The directory.
    """

    path: Path

    def write(self, name: str, make: Callable[[Path], object]) -> Path:
        """Makes a file or directory under a temporary name and moves it to its own.

        Args:
            name: Its name in the directory; what has this name is replaced.
            make: Writes it to the path it is given.

        Returns:
            The path written.

        Raises:
            FileError: It cannot be written.
        """
        target = self.path / name
        try:
            with tempfile.TemporaryDirectory(prefix=".partial-", dir=self.path) as staging:
                partial = Path(staging) / name
                make(partial)
                if target.is_dir() and not target.is_symlink():
                    target.rename(Path(staging) / "replaced")
                os.replace(partial, target)
        except OSError as error:
            raise FileError(message("cannot write the output", value=target, why=str(error))) from error
        return target

    def write_text(self, name: str, text: str) -> Path:
        """Writes a text file, with a newline at its end."""
        return self.write(name, lambda path: path.write_text(text.rstrip("\n") + "\n", encoding="utf-8"))

    def write_json(self, name: str, value: Any) -> Path:
        """Writes a JSON file."""
        return self.write_text(name, json.dumps(value, indent=2, default=str))


def open_output(path: Path, names: Collection[str], *, force: bool = False) -> OutputDirectory:
    """Makes the directory if need be, and checks that the outputs can be written to it.

    Args:
        path: The directory.
        names: The files and directories that will be written.
        force: Whether existing ones may be replaced.

    Returns:
        The directory.

    Raises:
        FileError: It cannot be made or written, or holds outputs already.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=path):
            pass
    except OSError as error:
        why = "it is a file" if path.is_file() else (error.strerror or str(error))
        raise FileError(
            message("cannot write to the output directory", value=path, why=why, hint="another --out")
        ) from error
    existing = [name for name in sorted(names) if (path / name).exists()]
    if existing and not force:
        raise FileError(
            message(
                "the output directory holds results already",
                value=path,
                why=", ".join(existing),
                hint="another --out, or --force to replace them",
            )
        )
    return OutputDirectory(path)


def write_result(result: FitResult, directory: OutputDirectory) -> list[str]:
    """Writes everything that a fit leaves behind, the result itself first.

    Args:
        result: What `ppl_em.fit` returned.
        directory: Where to write.

    Returns:
        Notes on what could not be written, because this version does not provide it.
    """
    directory.write(RESULT, result.save)
    directory.write_text("plan.txt", str(result.plan))
    directory.write_json("plan.json", result.plan.to_dict())
    directory.write("summary.csv", result.summary().to_csv)
    notes = []
    for name, make in (("posterior.nc", _write_netcdf), (PICTURE, _write_picture)):
        try:
            directory.write(name, functools.partial(make, result))
        except NotAvailableYet as error:
            notes.append(f"no {name}: {error}")
    return notes


def read_run(directory: Path) -> dict[str, Any]:
    """Reads how the fit in a directory was made.

    Args:
        directory: What ``ppl-em fit`` wrote to.

    Returns:
        The record, with the model file and function under ``model``.

    Raises:
        FileError: There is no such record.
    """
    try:
        return json.loads((directory / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(
            message("not the output of a fit", value=directory, why=str(error), hint="the --out of 'ppl-em fit'")
        ) from error


def _write_netcdf(result: FitResult, path: Path) -> None:
    from ppl_em import arviz_bridge

    arviz_bridge.save(result.to_arviz(), path)


def _write_picture(result: FitResult, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    result.plot("history", ax=figure.add_subplot())
    figure.savefig(path, dpi=150)
