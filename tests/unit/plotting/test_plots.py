"""Figures: each kind draws what its title says, on the axis it is given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from scipy import stats

import ppl_em
from models import gmm, hmm
from ppl_em.errors import PplEmError
from ppl_em.plotting import KINDS
from ppl_em.plotting.components import densities, find_components, moments
from ppl_em.plotting.data import contour
from ppl_em.plotting.estimates import panels


@pytest.fixture(scope="module")
def fits() -> dict[str, ppl_em.FitResult]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return {
            "mixture": ppl_em.fit(gmm.model, gmm.load(), restarts=2),
            "chain": ppl_em.fit(hmm.model, hmm.load()[:40], restarts=2),
        }
    finally:
        torch.set_default_dtype(before)


AMORTISED = {"codes", "divergence", "images"}
STRUCTURED = {"trees", "alignments"}  # in tests/structured
MISSING = {"mixture": {"series", *AMORTISED, *STRUCTURED}, "chain": {"loo", "pit", *AMORTISED, *STRUCTURED}}
OPTIONS = {"profile": {"mixture": {"name": "weights", "place": (0,)}, "chain": {"name": "rate", "place": (0,)}}}


@pytest.mark.parametrize("which", ["mixture", "chain"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind(kind: str, which: str, fits: dict[str, ppl_em.FitResult], no_footprint) -> None:
    result = fits[which]
    options = OPTIONS.get(kind, {}).get(which, {})
    ax = Figure().add_subplot()
    if kind in MISSING[which]:
        with pytest.raises(PplEmError):
            result.plot(kind, ax, **options)
        return
    with no_footprint():
        assert result.plot(kind, ax, **options) is ax
    assert ax.has_data() and ax.get_title(loc="left")


def test_what_the_titles_say(fits: dict[str, ppl_em.FitResult]) -> None:
    title = fits["mixture"].plot("data").get_title(loc="left")
    assert title == "2 components: 64%, 36%; contours hold 50% and 95%"
    assert fits["mixture"].plot("restarts").get_title(loc="left") == "2 of 2 starts reached the best optimum"
    title = fits["chain"].plot("series").get_title(loc="left")
    path = fits["chain"].posterior().mode_path()
    assert title == f"2 states on the most probable path, {int((path.diff() != 0).sum())} changes"
    with pytest.raises(PplEmError, match="unknown kind of plot"):
        fits["mixture"].plot("pie")
    with pytest.raises(PplEmError, match="no free parameter"):
        fits["mixture"].plot("parameters", name="mean")
    with pytest.raises(PplEmError, match="no observed site"):
        fits["mixture"].plot("predictive", site="y")


@pytest.mark.parametrize("mass", [0.5, 0.95])
def test_the_contour_holds_its_mass(mass: float) -> None:
    loc, cov = np.array([1.0, -2.0]), np.array([[2.0, 0.9], [0.9, 0.7]])
    points = contour(loc, cov, mass).T
    distance = np.einsum("ni,ij,nj->n", points - loc, np.linalg.inv(cov), points - loc)
    assert np.allclose(stats.chi2(2).cdf(distance), mass, atol=1e-12)


def test_components_are_where_the_parameters_say(fits: dict[str, ppl_em.FitResult]) -> None:
    result = fits["mixture"]
    found = find_components(result)
    assert found is not None
    located = moments(found, result._values)
    assert located is not None
    assert torch.allclose(located[0], result.params["loc"])
    assert torch.allclose(located[1], result.params["cov"])
    assert torch.allclose(found.observed, gmm.load())
    chain = find_components(fits["chain"])
    assert chain is not None
    points = torch.arange(0.0, 40.0)
    curves = densities(chain, fits["chain"]._values, points)
    assert curves is not None
    for k, rate in enumerate(fits["chain"].params["rate"]):
        assert np.allclose(curves[k], stats.poisson(float(rate)).pmf(points.numpy()), atol=1e-12)


def test_a_forest_compares_what_can_be_compared(fits: dict[str, ppl_em.FitResult]) -> None:
    titles = [p.title for p in panels(fits["mixture"])]
    assert titles == ["weights", "loc[·,0]", "loc[·,1]", "cov[·,0,0]", "cov[·,1,0]", "cov[·,1,1]"]
    assert panels(fits["mixture"])[2].labels == ("loc[0,1]", "loc[1,1]")
    assert [p.title for p in panels(fits["chain"])] == ["init", "trans", "rate"]
