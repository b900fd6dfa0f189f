"""Output directories: refused before the work, never half written, never overwritten unasked."""

import os
from pathlib import Path

import pytest

from ppl_em.errors import FileError
from ppl_em.output import open_output, read_run


def test_the_directory_is_made(tmp_path: Path) -> None:
    directory = open_output(tmp_path / "a" / "b", ["plan.txt"])
    assert directory.write_text("plan.txt", "plan").read_text() == "plan\n"
    assert os.listdir(directory.path) == ["plan.txt"]


def test_existing_results_are_kept_unless_forced(tmp_path: Path) -> None:
    (tmp_path / "plan.txt").write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileError, match=r"holds results already.*plan\.txt.*--force"):
        open_output(tmp_path, ["plan.txt", "summary.csv"])
    open_output(tmp_path, ["plan.txt"], force=True).write_text("plan.txt", "new")
    assert (tmp_path / "plan.txt").read_text() == "new\n"
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_directory_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"cannot write to the output directory.*it is a file"):
        open_output(tmp_path / "file", [])
    with pytest.raises(FileError, match="cannot write to the output directory"):
        open_output(tmp_path / "file" / "below", [])


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(FileError, match="cannot write to the output directory"):
        open_output(tmp_path, [])


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path) -> None:
    directory = open_output(tmp_path, [])
    directory.write_text("plan.txt", "old")

    def half(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        directory.write("plan.txt", half)
    assert (tmp_path / "plan.txt").read_text() == "old\n"
    assert os.listdir(tmp_path) == ["plan.txt"]


def test_a_directory_is_replaced_as_a_whole(tmp_path: Path) -> None:
    directory = open_output(tmp_path, [])

    def make(name: str):
        def write(path: Path) -> None:
            path.mkdir()
            (path / name).write_text(name)

        return write

    directory.write("result", make("old"))
    directory.write("result", make("new"))
    assert os.listdir(tmp_path / "result") == ["new"]
    assert os.listdir(tmp_path) == ["result"]


def test_a_directory_without_a_fit_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="not the output of a fit"):
        read_run(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(FileError, match="not the output of a fit"):
        read_run(tmp_path)
