"""Free coordinates: as many as the constraint has dimensions, zero at the estimate, valid everywhere."""

from __future__ import annotations

import pytest
import torch
from pyro.distributions import constraints as pyro_constraints
from torch.distributions import constraints

from ppl_em.diagnostics.charts import log_volume, make_chart
from ppl_em.diagnostics.coordinates import Coordinates
from ppl_em.free_parameters import degrees_of_freedom
from ppl_em.ir import Parameter
from tests.tolerances import EXACT, GRADIENT


def spd(size: int, batch: tuple[int, ...] = ()) -> torch.Tensor:
    root = torch.randn(*batch, size, size)
    return root @ root.mT + 0.5 * torch.eye(size)


CASES = {
    "real": (constraints.real, lambda: torch.randn(2, 3), 6),
    "vector": (constraints.real_vector, lambda: torch.randn(4), 4),
    "positive": (constraints.positive, lambda: torch.rand(3) + 0.1, 3),
    "at least": (constraints.greater_than(2.0), lambda: torch.rand(3) + 2.1, 3),
    "interval": (constraints.interval(-1.0, 3.0), lambda: torch.rand(2) * 3, 2),
    "unit": (constraints.unit_interval, lambda: torch.rand(2) * 0.8 + 0.1, 2),
    "simplex": (constraints.simplex, lambda: torch.softmax(torch.randn(3, 4), -1), 9),
    "covariance": (constraints.positive_definite, lambda: spd(3, (2,)), 12),
    "cholesky": (constraints.lower_cholesky, lambda: torch.linalg.cholesky(spd(3)), 6),
    "correlation": (
        constraints.corr_cholesky,
        lambda: torch.linalg.cholesky(torch.tensor([[1.0, 0.5, 0.2], [0.5, 1.0, -0.3], [0.2, -0.3, 1.0]])),
        3,
    ),
    "ordered": (pyro_constraints.ordered_vector, lambda: torch.tensor([-1.0, 0.5, 2.0]), 3),
    "event": (constraints.independent(constraints.positive, 1), lambda: torch.rand(3) + 0.1, 3),
}


@pytest.mark.parametrize("case", CASES)
def test_a_chart_covers_its_constraint(case: str) -> None:
    constraint, make, dimension = CASES[case]
    value = make()
    chart = make_chart("p", value, constraint)
    assert chart.size == dimension == degrees_of_freedom(Parameter("p", value, constraint))
    assert torch.allclose(chart.to_value(torch.zeros(chart.size)), value, atol=EXACT)
    for size in (0.01, 0.3):
        u = size * torch.randn(chart.size)
        moved = chart.to_value(u)
        assert bool(torch.as_tensor(constraint.check(moved)).all())
        assert torch.allclose(chart.from_value(moved), u, atol=1e-9)
    jacobian = torch.autograd.functional.jacobian(chart.to_value, torch.zeros(chart.size)).reshape(-1, chart.size)
    assert int(torch.linalg.matrix_rank(jacobian)) == dimension


def test_elements_on_the_boundary_stay_there() -> None:
    chart = make_chart("p", torch.tensor([[0.3, 0.7, 0.0], [0.0, 1.0, 0.0]]), constraints.simplex)
    assert chart.size == 1
    assert chart.fixed.tolist() == [[False, False, True], [True, True, True]]
    moved = chart.to_value(torch.tensor([0.5]))
    assert torch.allclose(moved.sum(-1), torch.ones(2))
    assert moved[0, 2] == 0
    assert make_chart("p", torch.tensor([1e-12, 2.0]), constraints.positive).size == 1
    assert make_chart("p", torch.tensor([1 - 1e-9, 0.2]), constraints.unit_interval).size == 1


def test_volume_of_a_simplex_and_of_a_scale() -> None:
    # d(p_1, p_2)/d(log-ratios) has determinant p_1 p_2 p_3; the volume within the plane differs by a constant.
    chart = make_chart("p", torch.tensor([0.2, 0.3, 0.5]), constraints.simplex)
    points = torch.randn(5, 2)
    found = log_volume(chart, points) - torch.stack([chart.to_value(u).log().sum() for u in points])
    assert torch.allclose(found, found[0].expand(5), atol=GRADIENT)
    chart = make_chart("s", torch.tensor(2.0), constraints.positive)
    assert float(log_volume(chart, torch.tensor([[0.7]]))) == pytest.approx(float(torch.tensor(2.0).log()) + 0.7)


def test_coordinates_of_a_program(faithful) -> None:
    coordinates = faithful.information.coordinates
    assert coordinates.size == faithful.num_parameters == 11
    u = 0.1 * torch.randn(11)
    assert torch.allclose(coordinates.coordinates(coordinates.values(u)), u, atol=1e-10)
    assert coordinates.labels[:3] == ["weights[0]", "weights[1]", "loc[0,0]"]
    assert isinstance(coordinates, Coordinates)
