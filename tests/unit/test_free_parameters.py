"""How many free parameters a fit has: what AIC and BIC count."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import ppl_em
from ppl_em import EM
from ppl_em.free_parameters import degrees_of_freedom
from ppl_em.ir import Parameter

CASES = [
    (torch.zeros(3, 4), constraints.real, 12),
    (torch.ones(3, 4), constraints.positive, 12),
    (torch.full((2, 3), 1 / 3), constraints.simplex, 4),
    (torch.ones(2, 1), constraints.simplex, 0),
    (torch.eye(3).repeat(2, 1, 1), constraints.positive_definite, 12),
    (torch.eye(3), constraints.lower_cholesky, 6),
    (torch.eye(3), constraints.corr_cholesky, 3),
    (torch.tensor(0.3), constraints.unit_interval, 1),
    (torch.tensor(0.3), constraints.interval(0.0, 2.0), 1),
    (torch.full((4, 2, 3), 1 / 3), constraints.independent(constraints.simplex, 1), 16),
]


@pytest.mark.parametrize(("value", "constraint", "expected"), CASES, ids=lambda c: str(c)[:40])
def test_of_a_constraint(value: Tensor, constraint: constraints.Constraint, expected: int) -> None:
    assert degrees_of_freedom(Parameter("p", value, constraint)) == expected
    assert degrees_of_freedom(Parameter("p", value, constraint, frozen=True)) == 0


def fitted(model: object, *args: Tensor, **options: object) -> ppl_em.FitResult:
    return ppl_em.fit(model, *args, init="params", method=EM(max_steps=0), **options)


X = torch.tensor([0, 1, 2, 1])


def test_rows_that_are_normalised_have_one_direction_less() -> None:
    def logits(x: Tensor) -> None:
        a = pyro.param("a", torch.zeros(2, 3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Categorical(logits=a[z.long()]), obs=x)

    assert fitted(logits, X).num_parameters == 4

    def weights(x: Tensor) -> None:
        w = pyro.param("w", torch.ones(3), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(w / w.sum()), obs=x)

    assert fitted(weights, X).num_parameters == 2


def test_frozen_parameters_and_shared_ones_count_once_or_not_at_all() -> None:
    def model(x: Tensor) -> None:
        p = pyro.param("p", torch.ones(3) / 3, constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(p), obs=x)
            pyro.sample("y", dist.Categorical(p), obs=x)

    assert fitted(model, X).num_parameters == 2
    assert fitted(model, X, freeze=["p"]).num_parameters == 0
