"""Profile likelihoods against closed forms and against fits with the parameter held."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import ppl_em
from ppl_em.errors import PplEmError
from tests.unit.diagnostics import programs

HALF_CHI = 1.959963984540054**2 / 2


def test_a_normal_mean_has_a_known_profile() -> None:
    x = programs.mixture_data(30, share=0.0)
    result = ppl_em.fit(programs.normal, x)
    found = result.profile("loc")
    mean, variance, n = float(x.mean()), float(x.var(correction=0)), len(x)
    expected = result.objective - n / 2 * np.log1p((found.values.numpy() - mean) ** 2 / variance)
    assert np.allclose(found.objective, expected, atol=1e-7)
    half = math.sqrt(variance * math.expm1(2 * HALF_CHI / n))
    assert found.lower == pytest.approx(mean - half, abs=1e-4)
    assert found.upper == pytest.approx(mean + half, abs=1e-4)
    assert found.label == "loc" and found.estimate == pytest.approx(mean)


def test_one_weight_of_a_mixture_is_what_fits_with_it_held_give(faithful) -> None:
    found = faithful.profile("weights", (0,))
    from models import gmm

    x = gmm.load()
    for i in (1, len(found.values) - 2):
        p = float(found.values[i])
        start = {**faithful.params, "weights": torch.tensor([p, 1 - p])}
        held = ppl_em.fit(gmm.model, x, init=start, freeze=["weights"])
        assert held.objective == pytest.approx(float(found.objective[i]), abs=1e-5)
    assert 0 < found.lower < found.estimate < found.upper < 1
    wald = faithful.conf_int().loc["weights[0]"]
    assert found.lower == pytest.approx(wald["lower"], abs=0.005)


def test_an_element_of_a_covariance_matrix_can_be_held(faithful) -> None:
    found = faithful.profile("cov", (1, 0, 0))
    assert float(found.objective.max()) == pytest.approx(faithful.objective, abs=1e-8)
    wald = faithful.conf_int().loc["cov[1,0,0]"]
    assert 0 < found.lower < found.estimate < found.upper
    assert found.lower == pytest.approx(wald["lower"], rel=0.05)
    assert found.upper == pytest.approx(wald["upper"], rel=0.05)


def test_what_has_no_profile_is_named(faithful, earthquakes) -> None:
    with pytest.raises(PplEmError, match="not a free parameter"):
        faithful.profile("mean")
    with pytest.raises(PplEmError, match="no such element"):
        faithful.profile("loc", (5, 5))
    with pytest.raises(PplEmError, match="fixed or not identified"):
        earthquakes.profile("init", (0,))
