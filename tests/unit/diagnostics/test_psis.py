"""Pareto smoothing against ArviZ's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from ppl_em.arviz_bridge import arviz
from ppl_em.diagnostics.psis import fit_generalised_pareto, psis, threshold
from tests.tolerances import EXACT


@pytest.mark.parametrize("spread", [0.01, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("draws", [60, 1000])
def test_weights_and_shape_are_arvizs(spread: float, draws: int) -> None:
    ratios = spread * torch.randn(draws, 3)
    found, k = psis(ratios)
    az = arviz()
    if not hasattr(az, "psislw"):
        pytest.skip("this ArviZ keeps its smoothing to itself")
    expected, k_expected = az.psislw(ratios.T.numpy())
    assert np.allclose(found.T, expected, atol=EXACT)
    assert np.allclose(k, k_expected, atol=EXACT)


def test_the_shape_of_a_generalised_pareto_sample_is_found() -> None:
    for shape in (0.1, 0.5, 0.9):
        sample = np.sort(stats.genpareto(shape, scale=2.0).rvs(4000, random_state=1))
        k, scale = fit_generalised_pareto(torch.as_tensor(sample))
        assert k == pytest.approx(shape, abs=0.07)
        assert scale == pytest.approx(2.0, rel=0.1)


def test_equal_weights_are_perfect() -> None:
    weights, k = psis(torch.zeros(500))
    assert torch.allclose(weights.exp(), torch.full((500,), 1 / 500))
    assert float(k) < threshold(500)
    weights, k = psis(torch.full((500,), -torch.inf))
    assert float(k) == np.inf


def test_the_threshold_falls_with_few_draws() -> None:
    assert threshold(100) == pytest.approx(0.5)
    assert threshold(10**6) == 0.7
