"""Boundaries where a prior is unbounded: which they are, how far parameters stay away, what a held value owes."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_em
from ppl_em.em.held import HELD_AT, Floor, described, divergent, find_floors


def floors_of(prior: Any, method: Any = "em") -> dict[str, Floor]:
    def model(x: Tensor) -> None:
        theta = pyro.sample("theta", prior())
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(theta.sum(), 1.0), obs=x)

    return find_floors(ppl_em.explain(model, torch.zeros(3), method=method))


@pytest.mark.parametrize(
    "prior",
    [
        lambda: dist.Beta(1.0, 2.0),
        lambda: dist.Gamma(1.0, 2.0),
        lambda: dist.InverseGamma(0.5, 2.0),
        lambda: dist.LogNormal(0.0, 5.0),
        lambda: dist.HalfCauchy(1.0),
        lambda: dist.Exponential(3.0),
        lambda: dist.Uniform(-1.0, 2.0),
        lambda: dist.Normal(0.0, 1.0),
        lambda: dist.Dirichlet(torch.ones(3)),
        lambda: dist.Weibull(1.0, 1.5),
    ],
)
def test_bounded_priors_have_no_floor(prior: Any) -> None:
    assert floors_of(prior) == {}


@pytest.mark.parametrize(
    ("prior", "lower", "upper"),
    [
        (lambda: dist.Beta(0.1, 2.0), HELD_AT, 0.0),
        (lambda: dist.Beta(2.0, 0.1), 0.0, HELD_AT),
        (lambda: dist.Beta(0.5, 0.5), HELD_AT, HELD_AT),
        (lambda: dist.Gamma(0.5, 2.0), 0.25 * HELD_AT, 0.0),
        (lambda: dist.Chi2(1.0), HELD_AT, 0.0),
        (lambda: dist.Weibull(1.0, 0.5), 2 * HELD_AT, 0.0),
        (lambda: dist.Kumaraswamy(0.5, 2.0), HELD_AT, 0.0),
    ],
)
def test_unbounded_sides_are_found(prior: Any, lower: float, upper: float) -> None:
    floor = floors_of(prior)["theta"]
    assert float(floor.lower) == pytest.approx(lower) and float(floor.upper) == pytest.approx(upper)


def test_no_distance_is_kept_in_unconstrained_space() -> None:
    assert floors_of(lambda: dist.Beta(0.1, 0.1), ppl_em.EM(map_space="unconstrained")) == {}


def test_elements_of_a_dirichlet_that_are_bounded_may_be_zero() -> None:
    floor = floors_of(lambda: dist.Dirichlet(torch.tensor([0.5, 1.0, 2.0])))["theta"]
    assert floor.lower.tolist() == [HELD_AT, 0.0, 0.0]
    projected = floor.project(torch.tensor([0.0, 0.0, 1.0]))
    assert projected.tolist() == pytest.approx([HELD_AT, 0.0, 1 - HELD_AT], abs=1e-15)
    inside = torch.tensor([0.2, 0.3, 0.5])
    assert floor.project(inside) is inside


@pytest.mark.parametrize(
    ("prior", "value"),
    [
        (lambda: dist.Dirichlet(torch.full((3,), 0.5)), [0.2, 0.3, 0.5]),
        (lambda: dist.Beta(0.5, 0.5), 0.3),
        (lambda: dist.Beta(2.0, 0.5), 0.99999),
        (lambda: dist.Gamma(0.5, 2.0), 0.7),
    ],
)
def test_coordinates_return_and_keep_the_distance(prior: Any, value: Any) -> None:
    floor = floors_of(prior)["theta"]
    value = torch.tensor(value)
    torch.testing.assert_close(floor.constrained(floor.unconstrained(value)), value, rtol=1e-9, atol=1e-12)
    extreme = floor.constrained(
        torch.full(value.shape, -800.0).index_fill(0, torch.tensor([0]), 800.0) if value.dim() else torch.tensor(-800.0)
    )
    assert bool((extreme >= floor.lower * (1 - 1e-12)).all()) and bool(extreme.isfinite().all())


def test_what_a_held_value_owes() -> None:
    """The unbounded factor of the density at the value, and nothing for values that are not held."""
    floors = floors_of(lambda: dist.Beta(0.1, 2.0))
    held = {"theta": torch.tensor(HELD_AT)}
    assert divergent(floors, held) == pytest.approx(-0.9 * float(torch.tensor(HELD_AT).log()), rel=1e-6)
    assert divergent(floors, {"theta": torch.tensor(0.01)}) == 0.0
    assert described(floors, held) == "theta was held 1e-06 from the boundary, where the prior is unbounded"
    assert described(floors, {"theta": torch.tensor(0.01)}) == ""


def test_several_held_elements_are_named() -> None:
    floors = floors_of(lambda: dist.Dirichlet(torch.full((6,), 0.5)))
    value = torch.full((6,), HELD_AT)
    value[2] = 1 - 5 * HELD_AT
    text = described(floors, {"theta": value})
    assert text.startswith("theta[0], theta[1], theta[3] and 2 more were held 1e-06")
