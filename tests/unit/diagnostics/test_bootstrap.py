"""Refits to new data spread as much as theory says, and say where components have no identity."""

from __future__ import annotations

import pytest
import torch

import ppl_em
from ppl_em.diagnostics.bootstrap import Bootstrap
from ppl_em.errors import PplEmError
from tests.unit.diagnostics import programs

SAME = 0.15
"""Relative difference between a bootstrap's standard error and theory's that its own noise explains."""


@pytest.mark.parametrize(("kind", "form"), [("parametric", "observed"), ("case", "sandwich")])
def test_a_normal_sample(kind: str, form: str) -> None:
    x = programs.mixture_data(60, share=0.0)
    result = ppl_em.fit(programs.normal, x)
    found = result.bootstrap(150, kind)
    assert (found.num, found.num_failed, found.num_ambiguous) == (150, 0, 0)
    for name, error in result.standard_errors(form).items():
        assert float(found.standard_errors()[name]) == pytest.approx(float(error), rel=2 * SAME)
    interval = found.conf_int(0.9).loc["loc"]
    width = 1.645 * float(result.standard_errors()["loc"])
    assert interval["upper"] - interval["lower"] == pytest.approx(2 * width, rel=2 * SAME)


@pytest.mark.parametrize("kind", ["parametric", "case"])
def test_it_is_repeatable_and_leaves_the_fit_alone(faithful, kind: str) -> None:
    before = {n: v.clone() for n, v in faithful.params.items()}
    first, second = faithful.bootstrap(4, kind, seed=1), faithful.bootstrap(4, kind, seed=1)
    assert all(torch.equal(first.estimates[n], second.estimates[n]) for n in before)
    assert not torch.equal(first.estimates["loc"], faithful.bootstrap(4, kind, seed=2).estimates["loc"])
    assert all(torch.equal(before[n], faithful.params[n]) for n in before)
    # Warm-started and aligned: the long eruptions stay where they are.
    assert bool(((first.estimates["loc"] - faithful.params["loc"]).abs() < 5 * faithful.standard_errors()["loc"]).all())


def test_a_series_is_simulated_and_not_resampled(earthquakes) -> None:
    found = earthquakes.bootstrap(4, "parametric")
    assert found.estimates["rate"].shape[1:] == (2,)
    with pytest.raises(PplEmError, match="independent data"):
        earthquakes.bootstrap(4, "case")


def test_components_without_identity_have_no_errors() -> None:
    found = Bootstrap("case", {"loc": torch.randn(20, 2)}, 0, 7)
    with pytest.raises(PplEmError, match="cannot be aligned"):
        found.standard_errors()
    with pytest.raises(PplEmError, match="7 of 20"):
        found.conf_int()


def test_overlapping_components_are_found_ambiguous() -> None:
    x = programs.mixture_data(80, gap=0.6)
    result = ppl_em.fit(programs.two_normals, x, freeze=["scale"], restarts=3)
    found = result.bootstrap(25, "case")
    assert found.num_ambiguous > 1
    with pytest.raises(PplEmError, match="cannot be aligned"):
        found.standard_errors()


def test_bad_requests_are_refused(faithful) -> None:
    with pytest.raises(PplEmError, match="unknown kind"):
        faithful.bootstrap(10, "wild")
    with pytest.raises(PplEmError, match="at least 2"):
        faithful.bootstrap(1)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["faithful", "experts"])
@pytest.mark.parametrize(("kind", "form"), [("parametric", "observed"), ("case", "sandwich")])
def test_standard_errors_agree_with_refits(which: str, kind: str, form: str, request: pytest.FixtureRequest) -> None:
    result = request.getfixturevalue(which)
    found = result.bootstrap(1000, kind)
    assert found.num_failed == 0
    for name, error in result.standard_errors(form).items():
        assert torch.allclose(found.standard_errors()[name], error, rtol=SAME), name
