"""Model files: which function, what else they define, and one clear line for each mistake."""

import sys
from pathlib import Path

import pytest

from ppl_em.errors import FileError, ModelError
from ppl_em.model_file import read_model

SOURCE = """
from neighbour import K
from dataclasses import dataclass

@dataclass
class Config:
    k: int = K

def model(x): return ("model", x, Config().k)
def other(x): return ("other", x)
def load(path=None): return (1,)
constant = 3
"""


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "neighbour.py").write_text("K = 7\n")
    path = tmp_path / "mine.py"
    path.write_text(SOURCE)
    return path


def test_the_function_is_model_unless_named(source: Path) -> None:
    path_before = list(sys.path)
    program = read_model(str(source))
    assert program.model(5) == ("model", 5, 7)
    assert program.function == "model"
    assert program.load is not None and program.load() == (1,)
    assert program.guide is None
    assert read_model(f"{source}:other").model(5) == ("other", 5)
    assert sys.path == path_before
    sys.modules.pop("neighbour")


@pytest.mark.parametrize("name", ["absent", "constant"])
def test_a_name_that_is_no_callable_is_refused_with_those_there_are(name: str, source: Path) -> None:
    with pytest.raises(ModelError, match=f"no callable named '{name}'.*Config, load, model, other"):
        read_model(f"{source}:{name}")
    sys.modules.pop("neighbour")


def test_a_file_that_does_not_run_is_reported_with_its_reason(tmp_path: Path) -> None:
    for source, reason in (
        ("def model(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("import nope_", "nope_"),
    ):
        (tmp_path / "bad.py").write_text(source)
        with pytest.raises(ModelError, match=f"does not run.*bad.py.*{reason}"):
            read_model(str(tmp_path / "bad.py"))


def test_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="no such file"):
        read_model(str(tmp_path / "absent.py:model"))
    (tmp_path / "notes.md").write_text("")
    with pytest.raises(ModelError, match="not a Python file"):
        read_model(str(tmp_path / "notes.md"))
