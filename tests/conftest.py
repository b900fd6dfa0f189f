"""What every test gets: a fixed seed, an empty parameter store; a witness of global state."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)
# The same examples on every machine and no clock in the verdict.
settings.register_profile(
    "ppl_em", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow], print_blob=True
)
settings.load_profile("ppl_em")

SEED = 20240229


PLANS = Path(__file__).parent / "plans"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds ``--update-plans``: write the golden plan texts anew instead of comparing with them."""
    parser.addoption("--update-plans", action="store_true", help="rewrite tests/plans/*.txt")


@pytest.fixture
def golden_plan(request: pytest.FixtureRequest) -> Callable[[str, Any], None]:
    """Returns a function that compares ``str(plan)`` with ``tests/plans/NAME.txt``, exactly."""

    def check(name: str, plan: Any) -> None:
        path, text = PLANS / f"{name}.txt", f"{plan}\n"
        if request.config.getoption("--update-plans"):
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"{path.name} differs; --update-plans rewrites it"

    return check


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips the tests that need a CUDA device where there is none."""
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def seed() -> Iterator[int]:
    """Seeds Python, NumPy and torch, gives an empty parameter store, and restores the store's content."""
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    with pyro.get_param_store().scope():
        yield SEED


def global_state() -> dict[str, Any]:
    """Returns everything that a public call must leave as it found it, as comparable values."""
    store = pyro.get_param_store()
    numpy_state = np.random.get_state()
    return {
        "param store": {name: value.detach().clone() for name, value in store.items()},
        "param constraints": {name: str(constraint) for name, constraint in store._constraints.items()},
        "torch RNG": torch.get_rng_state(),
        "numpy RNG": (numpy_state[1].tolist(), numpy_state[2]),  # type: ignore[index]
        "python RNG": random.getstate(),
        "pyro settings": pyro.settings.get(),
        "torch validation": torch.distributions.Distribution._validate_args,
        "default dtype": torch.get_default_dtype(),
        "grad mode": torch.is_grad_enabled(),
        "threads": torch.get_num_threads(),
    }


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)


@pytest.fixture
def no_footprint() -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Returns a context manager that fails when its body changes global state."""

    @contextlib.contextmanager
    def check() -> Iterator[None]:
        before = global_state()
        yield
        after = global_state()
        changed = [name for name in before if not _same(before[name], after[name])]
        assert not changed, f"changed by the call: {', '.join(changed)}"

    return check
