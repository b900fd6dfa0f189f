"""The texts of the repository agree with each other and with the package."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def names(requirements: list[str]) -> set[str]:
    return {re.split(r"[\[<>=;~! ]", requirement)[0].lower().replace("_", "-") for requirement in requirements}


def pinned() -> dict[str, str]:
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s;]+)", read("constraints.txt"), flags=re.MULTILINE)
    return {name.lower().replace("_", "-"): version for name, version in found}


def test_the_readme_has_one_command_for_each_job() -> None:
    commands = [line for line in read("README.md").splitlines() if line.startswith("python -m pip install")]
    assert commands == [
        "python -m pip install -c constraints.txt . && ppl-em demo",
        "python -m pip install -c constraints.txt -e '.[test]' && python -m pytest",
    ]


def test_ci_runs_the_readmes_test_command() -> None:
    script = read(".ci/run")
    pattern = re.search(r"grep -E '([^']+)' README.md", script)
    assert pattern is not None
    matches = [line for line in read("README.md").splitlines() if re.search(pattern.group(1), line)]
    assert matches == ["python -m pip install -c constraints.txt -e '.[test]' && python -m pytest"]
    assert 'bash -c "${commands[0]}"' in script
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_every_marker_of_the_readme_exists() -> None:
    tool = tomllib.loads(read("pyproject.toml"))["tool"]["pytest"]["ini_options"]
    declared = {marker.split(":")[0] for marker in tool["markers"]}
    assert set(re.findall(r"pytest -m (\w+)", read("README.md"))) <= declared


def test_every_dependency_is_pinned_and_justified() -> None:
    runtime = names(PROJECT["dependencies"])
    every = runtime | names([name for extra in PROJECT["optional-dependencies"].values() for name in extra])
    assert every <= set(pinned()), every - set(pinned())
    assert pinned()["torch"] == "2.13.0"
    text = read("CONTRIBUTING.md").lower().replace("_", "-")
    table = {cell for row in re.findall(r"^\| ([a-z0-9, -]+) \|", text, flags=re.MULTILINE) for cell in row.split(", ")}
    assert runtime <= table, runtime - table


def test_the_package_carries_its_data() -> None:
    with resources.files("ppl_em").joinpath("data/faithful.csv").open(encoding="utf-8") as file:
        assert pd.read_csv(file).shape == (272, 2)
    assert read("ppl_em/data/faithful.csv") == read("models/data/faithful.csv")


def test_every_data_set_has_its_source_noted() -> None:
    table = read("models/data/README.md")
    for path in (ROOT / "models" / "data").glob("*.csv"):
        assert f"| {path.name} |" in table
    table = read("tests/golden/README.md")
    for path in (ROOT / "tests" / "golden").glob("*.npz"):
        assert f"| {path.stem} |" in table


def test_the_changelog_knows_the_version() -> None:
    assert re.search(rf"^## \[(Unreleased|{re.escape(PROJECT['version'])})\]", read("CHANGELOG.md"), re.MULTILINE)
