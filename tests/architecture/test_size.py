"""Ceilings on the length of files and functions: when one is hit, a concept wants a file of its own."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAX_FILE = 370
MAX_FUNCTION = 60  # docstring not counted
SOURCES = sorted(path for room in ("ppl_em", "models", "benchmarks") for path in (ROOT / room).rglob("*.py"))


def body_length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from its signature to its end, without the docstring."""
    length = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
        length -= (first.end_lineno or first.lineno) - first.lineno + 1
    return length


def test_there_are_sources() -> None:
    assert len(SOURCES) > 10


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_lengths(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    too_long = [
        f"{node.name}: {body_length(node)} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and body_length(node) > MAX_FUNCTION
    ]
    if (lines := text.count("\n")) > MAX_FILE:
        too_long.append(f"the file: {lines} lines")
    assert not too_long, too_long
