"""Data files: what becomes of a table, and one clear line for each mistake."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ppl_em.data_file import read_arguments, read_table
from ppl_em.errors import DataError, FileError, PlanError


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.csv"
    path.write_text("name,a,b,flag\nu,1,2.5,True\nv,3,4.5,False\n")
    return path


def test_numeric_columns_become_floats(table: Path) -> None:
    read = read_table(table)
    assert isinstance(read, pd.DataFrame)
    assert list(read.columns) == ["a", "b", "flag"]
    assert read.to_numpy().tolist() == [[1.0, 2.5, 1.0], [3.0, 4.5, 0.0]]


def test_columns_are_taken_in_the_order_given(table: Path) -> None:
    assert np.asarray(read_table(table, ["b", "a"])).tolist() == [[2.5, 1.0], [4.5, 3.0]]


def test_missing_values_stay_for_the_model_to_name(tmp_path: Path) -> None:
    path = tmp_path / "gaps.csv"
    path.write_text("a,b\n1,\n2,3\n")
    assert np.isnan(np.asarray(read_table(path))).tolist() == [[False, True], [False, False]]


def test_numpy_arrays_keep_shape_and_type(tmp_path: Path) -> None:
    array = np.arange(6).reshape(2, 3)
    np.save(tmp_path / "array.npy", array)
    read = read_table(tmp_path / "array.npy")
    assert isinstance(read, np.ndarray)
    assert read.dtype == array.dtype
    assert np.array_equal(read, array)


def test_a_missing_column_is_named_with_those_there_are(table: Path) -> None:
    with pytest.raises(DataError, match=r"no column named c \(value .*table.csv\): the file has name, a, b, flag"):
        read_table(table, ["a", "c"])


def test_a_column_of_words_is_named(table: Path) -> None:
    with pytest.raises(DataError, match="column name is not numeric"):
        read_table(table, ["a", "name"])


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("empty.csv", b"", "cannot read the CSV file"),
        ("ragged.csv", b"a,b\n1,2\n1,2,3\n", "cannot read the CSV file"),
        ("binary.csv", b"\xff\xfe\x00\x80", "cannot read the CSV file"),
        ("words.csv", b"a,b\nx,y\n", "no numeric column"),
        ("header.csv", b"a,b\n", "no rows"),
        ("array.npy", b"not an array", "cannot read the NumPy file"),
        ("table.xlsx", b"", "unknown kind of data file"),
    ],
)
def test_an_unreadable_file_is_one_clear_error(name: str, content: bytes, error: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=error):
        read_table(tmp_path / name)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    with pytest.raises(FileError, match="cannot read the NumPy file"):
        read_table(tmp_path / "objects.npy")


def test_no_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"absent.csv\): there is no such file"):
        read_arguments(tmp_path / "absent.csv", None, None)
    with pytest.raises(FileError, match="it is a directory"):
        read_arguments(tmp_path, None, None)


def test_the_models_own_reader_comes_first(table: Path) -> None:
    assert read_arguments(table, None, lambda path: (path.name, 2)) == ("table.csv", 2)
    assert read_arguments(None, None, lambda path=None: "own") == ("own",)
    assert read_arguments(None, None, None) == ()
    with pytest.raises(DataError, match="columns cannot be chosen"):
        read_arguments(table, ["a"], lambda path: path)


def test_a_failing_reader_is_reported_with_its_reason(table: Path) -> None:
    def load(path: Path) -> None:
        raise KeyError("column q")

    def refuse(path: Path) -> None:
        raise PlanError("as it is")

    with pytest.raises(DataError, match="'load' failed.*KeyError: 'column q'"):
        read_arguments(table, None, load)
    with pytest.raises(PlanError, match="as it is"):
        read_arguments(table, None, refuse)
