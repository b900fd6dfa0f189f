"""Who may import what: import-linter's contracts between our modules; the rest is read off the syntax."""

from __future__ import annotations

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ppl_em"

# The runtime (handlers, inference, parameter store) is spoken where programs are run, and where a fitted one
# is handed back; the demonstration and the test kit hold programs of their own.
SPEAKS_PYRO = ("trace", "svi", "fitted_model.py", "demo.py", "machine_speed.py", "testing")
# Families are values, not runtime: rules are registered for them, and marginals are returned as such.
KNOWS_DISTRIBUTIONS = (*SPEAKS_PYRO, "mstep", "distributions", "variational_em", "posterior.py", "series.py")


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yields each module imported in a file, as deep as the statement names it, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def inside(path: Path, rooms: tuple[str, ...]) -> bool:
    return path.relative_to(PACKAGE).parts[0] in rooms


def under(module: str, *parents: str) -> bool:
    return any(module == parent or module.startswith(f"{parent}.") for parent in parents)


def package_imports() -> list[tuple[Path, str, int]]:
    return [(path, module, line) for path in sorted(PACKAGE.rglob("*.py")) for module, line in imports(path)]


def listed(breaches: list[tuple[Path, str, int]]) -> str:
    return "\n".join(f"{path.relative_to(ROOT)}:{line} imports {module}" for path, module, line in breaches)


def test_contracts_between_modules() -> None:
    command = shutil.which("lint-imports", path=str(Path(sys.executable).parent)) or "lint-imports"
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_only_trace_and_svi_speak_pyros_runtime() -> None:
    breaches = [
        (path, module, line)
        for path, module, line in package_imports()
        if under(module, "pyro") and not under(module, "pyro.distributions") and not inside(path, SPEAKS_PYRO)
    ]
    assert not breaches, listed(breaches)


def test_only_rules_and_families_know_pyros_distributions() -> None:
    breaches = [
        (path, module, line)
        for path, module, line in package_imports()
        if under(module, "pyro.distributions") and not inside(path, KNOWS_DISTRIBUTIONS)
    ]
    assert not breaches, listed(breaches)


def test_only_the_bridge_imports_arviz() -> None:
    # It imports it by name at run time, so that no statement may.
    breaches = [found for found in package_imports() if under(found[1], "arviz", "arviz_base", "arviz_stats")]
    assert not breaches, listed(breaches)
    assert 'import_module("arviz")' in (PACKAGE / "arviz_bridge.py").read_text(encoding="utf-8")


def test_the_bridge_knows_no_torch() -> None:
    modules = [module for module, _ in imports(PACKAGE / "arviz_bridge.py")]
    assert not [module for module in modules if under(module, "torch", "pyro")]


def test_models_are_ordinary_pyro_programs() -> None:
    allowed = ("torch", "pyro", "numpy", "pandas", "ppl_em.distributions", "ppl_em.markov")
    breaches = [
        (path, module, line)
        for path in sorted((ROOT / "models").rglob("*.py"))
        for module, line in imports(path)
        if module.split(".")[0] not in sys.stdlib_module_names and not under(module, *allowed)
    ]
    assert not breaches, listed(breaches)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pyro.poutine as poutine", ["pyro.poutine"]),
        ("from pyro import poutine", ["pyro.poutine"]),
        ("def f():\n    from arviz import loo", ["arviz.loo"]),
        ("from . import neighbour", []),
    ],
)
def test_the_reader_sees_every_spelling(source: str, found: list[str], tmp_path: Path) -> None:
    path = tmp_path / "module.py"
    path.write_text(source)
    assert [module for module, _ in imports(path)] == found
