"""The witness of global state must itself notice each kind of change."""

import random
from collections.abc import Callable

import numpy as np
import pyro
import pytest
import torch


def _set_validation() -> None:
    pyro.enable_validation(not torch.distributions.Distribution._validate_args)


CHANGES = {
    "param store": lambda: pyro.param("added", torch.ones(2)),
    "torch RNG": lambda: torch.rand(1),
    "numpy RNG": lambda: np.random.rand(),
    "python RNG": random.random,
    "torch validation": _set_validation,
    "default dtype": lambda: torch.set_default_dtype(torch.float32),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_each_kind_of_change_is_noticed(kind: str, no_footprint: Callable) -> None:
    settings = pyro.settings.get()
    torch_flag = torch.distributions.Distribution._validate_args
    try:
        with pytest.raises(AssertionError, match=kind), no_footprint():
            CHANGES[kind]()
    finally:
        pyro.settings.set(**settings)
        torch.distributions.Distribution.set_default_validate_args(torch_flag)


def test_no_change_passes(no_footprint: Callable) -> None:
    with no_footprint():
        torch.ones(3).sum()
