"""Labels are aligned where they can be, and it is said where they cannot."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import ppl_em
from models import gmm
from ppl_em.diagnostics.alignment import align, exchangeable_labels
from ppl_em.em.e_step import e_step
from tests.tolerances import BRUTE_FORCE, EXACT


def test_permuted_components_are_brought_back() -> None:
    x = gmm.load()
    result = ppl_em.fit(gmm.model, x, model_kwargs={"num_components": 4}, restarts=1)
    plan, values = result.plan, result._values
    (labels,) = exchangeable_labels(plan, values)
    assert labels.axes == {"cov": (0,), "loc": (0,), "weights": (0,)}
    shuffled = labels.permute(values, [2, 0, 3, 1])
    assert e_step(plan, shuffled).objective == pytest.approx(result.objective, abs=BRUTE_FORCE)
    assert not torch.allclose(shuffled["loc"], values["loc"])
    found = align(shuffled, values, [labels])
    assert found.distance < EXACT and not found.ambiguous
    assert all(torch.equal(found.values[n], values[n]) for n in values)


def test_states_of_a_chain_are_permuted_in_rows_and_columns(earthquakes) -> None:
    (labels,) = exchangeable_labels(earthquakes.plan, earthquakes._values)
    assert labels.axes["trans"] == (0, 1)
    shuffled = labels.permute(earthquakes._values, [1, 0])
    assert torch.equal(shuffled["trans"], earthquakes.params["trans"].flip(0, 1))
    assert align(shuffled, earthquakes._values, [labels]).distance < EXACT


def test_two_kinds_of_labels_are_permuted_apart() -> None:
    def crossed(x: torch.Tensor) -> None:
        rows = pyro.param("rows", torch.tensor([0.3, 0.7]), constraint=constraints.simplex)
        columns = pyro.param("columns", torch.tensor([0.2, 0.5, 0.3]), constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([[0.0, 5.0, 9.0], [20.0, 26.0, 31.0]]))
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Categorical(rows))
            b = pyro.sample("b", dist.Categorical(columns))
            pyro.sample("x", dist.Normal(loc[a, b], 1.0), obs=x)

    x = torch.randn(200) + torch.tensor([0.0, 5.0, 9.0, 20.0, 26.0, 31.0]).repeat(34)[:200]
    result = ppl_em.fit(crossed, x, init="params")
    labels = exchangeable_labels(result.plan, result._values)
    assert sorted(g.size for g in labels) == [2, 3]
    shuffled = dict(result._values)
    for group in labels:
        shuffled = group.permute(shuffled, torch.arange(group.size).flip(0))
    found = align(shuffled, result._values, labels)
    assert found.distance < EXACT
    assert torch.equal(found.values["loc"], result.params["loc"])


def test_labels_that_mean_something_are_left_alone() -> None:
    def unequal(x: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.8])))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    x = torch.cat([torch.randn(20) - 2, torch.randn(80) + 2])
    result = ppl_em.fit(unequal, x)
    assert exchangeable_labels(result.plan, result._values) == []


def test_components_on_top_of_each_other_are_ambiguous(faithful) -> None:
    (labels,) = exchangeable_labels(faithful.plan, faithful._values)
    between = {n: 0.5 * (v + labels.permute(faithful._values, [1, 0])[n]) for n, v in faithful._values.items()}
    assert align(between, faithful._values, [labels]).ambiguous
    assert not align(faithful._values, faithful._values, [labels], faithful.standard_errors()).ambiguous
