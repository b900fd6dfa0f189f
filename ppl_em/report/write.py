"""From a result to two files."""

from __future__ import annotations

import base64
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ppl_em.errors import FileError, message
from ppl_em.report.content import Content, collect

if TYPE_CHECKING:
    from ppl_em.result import FitResult


def write_report(
    result: FitResult, path: Path, checks: Sequence[Callable[[Any], Any]] | None = None, title: str = ""
) -> Path:
    """Write the report of a fit.

    Args:
        result: a fit.
        path: the HTML file; ``<stem>.json`` beside it holds the same values. Existing files are replaced.
        checks: as for :meth:`FitResult.diagnose`.
        title: of the page; the model's name by default.

    Returns:
        The path of the HTML file.

    Raises:
        FileError: it cannot be written.
    """
    content = collect(result, checks, title)
    _replace(path.with_suffix(".json"), json.dumps(plain(content.values), indent=2, ensure_ascii=False) + "\n")
    _replace(path, render(content))
    return path


def render(content: Content) -> str:
    """The page as text. Names that users chose are escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    environment.filters["heads"] = lambda row: [(key, key) for key in row]
    environment.filters["image"] = lambda svg: f"data:image/svg+xml;base64,{base64.b64encode(svg).decode()}"
    page = environment.get_template("report.html.jinja")
    return page.render(c=content.values, figures=content.figures, sections=content.sections)


def number(value: Any, digits: int = 4) -> str:
    """A number for people: four significant digits, and words for what is not a number."""
    if value is None:
        return "–"
    if isinstance(value, (str, bool)):
        return str(value)
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "not identified" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e6:
        return f"{int(value)}".replace("-", "−")
    return f"{value:.{digits}g}".replace("-", "−")


def plain(value: Any) -> Any:
    """JSON values: numbers that JSON does not have become null."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)


def _replace(path: Path, text: str) -> None:
    """Write a file under a temporary name and move it to its own: an interruption leaves no half-written one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(partial, 0o644)
            os.replace(partial, path)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        raise FileError(message("cannot write the report", value=path, why=str(error))) from error
