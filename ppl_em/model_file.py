"""The model file of the command line: ``MODEL.py[:function]``."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from ppl_em.errors import FileError, ModelError, message

__all__ = ["ModelFile", "read_model"]


@dataclass(frozen=True)
class ModelFile:
    """What a model file defines.

    Attributes:
        path: The file.
        function: Name of the program in it.
        model: The Pyro program.
        guide: The callable named ``guide``, if there is one.
        load: The callable named ``load``, if there is one: path (or nothing) to the model's arguments.
    """

    path: Path
    function: str
    model: Callable[..., Any]
    guide: Callable[..., Any] | None
    load: Callable[..., Any] | None


def read_model(spec: str) -> ModelFile:
    """Runs a model file and returns the program it defines.

    Args:
        spec: ``path/to/file.py`` or ``path/to/file.py:function``; the function is ``model`` unless named.

    Returns:
        The program, with ``guide`` and ``load`` where the file defines them.

    Raises:
        FileError: There is no such file.
        ModelError: The file cannot be run, or has no callable of that name.
    """
    path, function = _split(spec)
    module = _run(path)
    model = getattr(module, function, None)
    if not callable(model):
        found = sorted(
            name
            for name, value in vars(module).items()
            if callable(value) and getattr(value, "__module__", None) == module.__name__
        )
        raise ModelError(
            message(
                f"no callable named '{function}' in {path}",
                why=f"it defines {', '.join(found) or 'none'}",
                hint=f"'{path}:NAME'",
            )
        )
    return ModelFile(path, function, model, _callable(module, "guide"), _callable(module, "load"))


def _split(spec: str) -> tuple[Path, str]:
    """Splits ``file.py:function``; a colon in the directory part (a Windows drive) stays."""
    head, colon, tail = spec.rpartition(":")
    named = bool(colon) and tail.isidentifier() and not Path(spec).exists()
    path, function = (Path(head), tail) if named else (Path(spec), "model")
    if not path.is_file():
        raise FileError(message("cannot read the model file", value=path, why="there is no such file"))
    return path, function


def _run(path: Path) -> ModuleType:
    """Imports the file under a name of its own, so that two files named alike do not meet."""
    name = f"_ppl_em_model_{abs(hash(path.resolve()))}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(message("not a Python file", value=path, hint="a file whose name ends in .py"))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look the module up here
    try:
        with _importable(path.resolve().parent):
            spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ModelError(
            message("the model file does not run", value=path, why=f"{type(error).__name__}: {error}")
        ) from error
    return module


@contextlib.contextmanager
def _importable(directory: Path) -> Iterator[None]:
    """Lets the file import its neighbours, as it could if it were run as a script."""
    sys.path.insert(0, str(directory))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(directory))


def _callable(module: ModuleType, name: str) -> Callable[..., Any] | None:
    value = getattr(module, name, None)
    return value if callable(value) else None
