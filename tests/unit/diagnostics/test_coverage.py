"""Intervals cover the truth as often as they promise."""

from __future__ import annotations

import pytest
import torch

import ppl_em
from tests.unit.diagnostics import programs

TRUTH = {"weights": torch.tensor([0.6, 0.4]), "loc": torch.tensor([0.0, 4.0]), "scale": torch.tensor([1.0, 0.7])}


def covered(num: int, size: int, level: float = 0.95) -> torch.Tensor:
    """Which intervals of how many simulated mixtures hold the truth, (num, elements)."""
    truth = torch.cat([v.reshape(-1) for v in TRUTH.values()])
    rows = []
    for seed in range(num):
        x = programs.mixture_data(size, seed=seed)
        table = ppl_em.fit(programs.two_normals, x, init=TRUTH).conf_int(level)
        low, high = torch.as_tensor(table["lower"].to_numpy().copy()), torch.as_tensor(table["upper"].to_numpy().copy())
        rows.append((low <= truth) & (truth <= high))
    return torch.stack(rows)


@pytest.mark.slow
def test_pooled_coverage_over_a_thousand_mixtures() -> None:
    found = covered(1000, 250)
    # One of the two weights says nothing new.
    pooled = float(found[:, 1:].double().mean())
    assert 0.93 <= pooled <= 0.97, pooled
    assert bool((found.double().mean(0) > 0.92).all()), found.double().mean(0)


def test_coverage_of_a_few() -> None:
    # Forty mixtures with five numbers each: 0.95 give or take four standard errors of 200 (correlated) intervals.
    assert float(covered(40, 200)[:, 1:].double().mean()) > 0.95 - 4 * (0.95 * 0.05 / 200) ** 0.5
