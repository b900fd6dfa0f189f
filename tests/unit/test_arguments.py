"""What users pass as data becomes tensors, and nothing else changes."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch

from ppl_em.arguments import as_tensors, column_names


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_floats_take_the_default_dtype(dtype: torch.dtype) -> None:
    torch.set_default_dtype(dtype)
    for value in (np.ones(3), np.ones(3, np.float32), pd.Series([1.0, 1.0, 1.0]), pd.DataFrame({"a": [1.0, 1.0, 1.0]})):
        assert as_tensors(value).dtype == dtype


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64, np.uint16])
def test_integers_become_int64(dtype: type) -> None:
    assert as_tensors(np.ones(3, dtype)).dtype == torch.int64
    assert as_tensors(pd.Series(np.ones(3, dtype))).dtype == torch.int64


def test_truth_values_stay_truth_values() -> None:
    assert as_tensors(np.array([True, False])).dtype == torch.bool


def test_tensors_and_others_are_left_alone() -> None:
    class Point(NamedTuple):
        x: int

    tensor, point = torch.ones(2, dtype=torch.float32), Point(1)
    for value in (tensor, point, "text", 3, None, [1, 2]):
        assert as_tensors(value) is value


def test_containers_are_gone_through() -> None:
    found = as_tensors({"a": (np.ones(1), [np.ones(2, int)], "text")})
    assert isinstance(found["a"][0], torch.Tensor) and found["a"][1][0].dtype == torch.int64
    assert found["a"][2] == "text"


def test_the_data_are_not_changed_through_the_tensor() -> None:
    array = np.ones(3)
    as_tensors(array)[0] = 5.0
    assert array[0] == 1.0


def test_column_names() -> None:
    table = pd.DataFrame({"a": [1.0], 2: [2.0]})
    assert column_names((table, 3), {"more": table[["a"]]}) == [["a", "2"], ["a"]]
