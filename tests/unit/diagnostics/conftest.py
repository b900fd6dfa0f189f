"""Fits that many tests look at, made once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

import ppl_em
from models import gmm, hmm
from ppl_em import FitResult
from tests.unit.diagnostics import programs


@contextmanager
def double() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture(scope="session")
def faithful() -> FitResult:
    """Two full Gaussians on Old Faithful's eruptions."""
    with double():
        return ppl_em.fit(gmm.model, gmm.load(), restarts=3)


@pytest.fixture(scope="session")
def earthquakes() -> FitResult:
    """Two Poisson states on the yearly numbers of earthquakes."""
    with double():
        return ppl_em.fit(hmm.model, hmm.load(), restarts=2)


@pytest.fixture(scope="session")
def experts() -> FitResult:
    """A logistic mixture of two regressions on simulated data."""
    with double():
        x, y = programs.expert_data()
        return ppl_em.fit(programs.experts, x, y, restarts=3)
