"""The default dtype of tests and of the examples in docstrings, whatever ran before them in the same process."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from _pytest.doctest import DoctestItem


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Runs a test and all its fixtures in float64, an example in torch's own float32. Restored afterwards.

    A test about another dtype sets it itself.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32 if isinstance(item, DoctestItem) else torch.float64)
    try:
        return (yield)
    finally:
        torch.set_default_dtype(before)
