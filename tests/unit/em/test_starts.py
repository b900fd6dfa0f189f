"""Where EM begins: symmetric starts are broken, bad optima are left, annealing finds the best one."""

from __future__ import annotations

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ppl_em
from models import gmm, hmm
from ppl_em import EM, Status
from ppl_em.errors import PlanError

HALF = EM(split_merge=False)


def alike(x: Tensor, num_components: int = 2) -> None:
    """A mixture whose components begin alike."""
    weights = pyro.param("weights", torch.ones(num_components) / num_components, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.zeros(num_components))
    scale = pyro.param("scale", torch.ones(num_components), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def clusters(*centres: float, each: int = 60) -> Tensor:
    noise = torch.randn(each, len(centres), generator=torch.Generator().manual_seed(3))
    return (noise + torch.tensor(centres)).flatten()


@pytest.mark.parametrize("init", ["params", "auto", "data", {"loc": [1.0, 1.0]}])
def test_components_that_begin_alike_are_parted(init: object) -> None:
    x = clusters(-3.0, 3.0)
    result = ppl_em.fit(alike, x, init=init)
    reference = ppl_em.fit(alike, x, init={"loc": [-3.0, 3.0]})
    assert result.objective == pytest.approx(reference.objective, abs=1e-4)
    if init not in ("auto", "data"):
        assert result.restarts[0].kind == "broken"
    ppl_em.fit(alike, x, init=init, method=EM(max_steps=0))  # evaluates


def test_a_start_that_is_only_evaluated_is_left_as_it_is() -> None:
    result = ppl_em.fit(alike, clusters(-3.0, 3.0), init="params", method=EM(max_steps=0))
    assert result.restarts[0].kind == "params"
    assert result.params["loc"].tolist() == [0.0, 0.0]


def test_two_alike_of_three_are_parted_and_all_different_ones_are_left() -> None:
    x = clusters(-5.0, 0.0, 5.0)
    parted = ppl_em.fit(partial(alike, num_components=3), x, init={"loc": [-5.0, 2.0, 2.0]})
    assert parted.restarts[0].kind == "broken"
    assert parted.params["loc"].sort().values.tolist() == pytest.approx([-5.0, 0.0, 5.0], abs=0.5)
    apart = ppl_em.fit(partial(alike, num_components=3), x, init={"loc": [-5.0, 1.0, 2.0]})
    assert apart.restarts[0].kind == "params"


def test_states_of_a_chain_that_begin_alike_are_parted() -> None:
    x = hmm.load()
    start = {"rate": [19.0, 19.0], "trans": [[0.5, 0.5], [0.5, 0.5]], "init": [0.5, 0.5]}
    result = ppl_em.fit(hmm.model, x, init=start)
    assert result.restarts[0].kind == "broken"
    assert result.objective == pytest.approx(-341.8787, abs=1e-3)


def test_every_seed_begins_elsewhere_and_all_starts_differ() -> None:
    x = clusters(-1.0, 1.0)
    results = [ppl_em.fit(alike, x, seed=s, restarts=5, method=EM(max_steps=1)) for s in (0, 1)]
    drawn = [r for result in results for r in result.restarts if r.kind in ("random", "params")]
    assert len({tuple(r.params["loc"].tolist()) for r in drawn}) == len(drawn) == 4
    assert {r.kind for r in results[0].restarts} == {"kmeans", "params", "random", "quantile"}


def bad_optimum() -> tuple[Tensor, dict[str, object]]:
    """Three clusters; two components share the first, one covers the others: plain EM stays there."""
    return clusters(-12.0, 9.0, 14.0), {"loc": [-12.6, -11.4, 11.5]}


KNOWN = {"freeze": ["scale", "weights"]}


def test_split_and_merge_leaves_a_bad_optimum() -> None:
    x, start = bad_optimum()
    program = partial(alike, num_components=3)
    stuck = ppl_em.fit(program, x, init=start, method=HALF, **KNOWN)
    best = ppl_em.fit(program, x, init={"loc": [-12.0, 9.0, 14.0]}, **KNOWN)
    assert stuck.converged and stuck.objective < best.objective - 10
    moved = ppl_em.fit(program, x, init=start, method=EM(split_merge=True), **KNOWN)
    assert moved.objective == pytest.approx(best.objective, abs=1e-4)
    assert "split-merge" in {r.kind for r in moved.restarts}
    assert moved.restarts[0].objective == pytest.approx(stuck.objective, abs=1e-4)  # every outcome is kept


def test_split_and_merge_of_a_chain() -> None:
    x = clusters(-12.0, 9.0, 14.0, each=12).reshape(12, 3).T.reshape(-1)
    start = {"loc": [-12.6, -11.4, 11.5], "scale": [1.0, 1.0, 2.5]}
    options = {"model_kwargs": {"num_states": 3, "emission": "gaussian"}}
    stuck = ppl_em.fit(hmm.model, x, init=start, method=HALF, **options)
    moved = ppl_em.fit(hmm.model, x, init=start, method=EM(split_merge=True), **options)
    assert moved.objective > stuck.objective + 5
    assert moved.params["loc"].sort().values.tolist() == pytest.approx([-12.0, 9.0, 14.0], abs=0.6)


def test_two_states_have_no_moves() -> None:
    result = ppl_em.fit(alike, clusters(-3.0, 3.0), restarts=1, method=EM(split_merge=True))
    assert len(result.restarts) == 1


def test_annealing_leaves_a_bad_optimum() -> None:
    x, start = bad_optimum()
    program = partial(alike, num_components=3)
    best = ppl_em.fit(program, x, init={"loc": [-12.0, 9.0, 14.0]}, **KNOWN)
    annealed = ppl_em.fit(program, x, init=start, method=EM(anneal=0.005), **KNOWN)
    assert annealed.restarts[0].kind == "annealed"
    assert annealed.objective == pytest.approx(best.objective, abs=1e-4)
    assert bool((annealed.history.diff() >= -1e-9).all())  # at β = 1 it is EM


def test_an_inverse_temperature_of_one_is_no_annealing() -> None:
    x, start = bad_optimum()
    one = ppl_em.fit(partial(alike, num_components=3), x, init=start, method=EM(anneal=1.0))
    two = ppl_em.fit(partial(alike, num_components=3), x, init=start)
    assert torch.equal(one.history, two.history)


@pytest.mark.parametrize("beta", [0.0, -1.0, 1.5])
def test_other_inverse_temperatures_are_refused(beta: float) -> None:
    with pytest.raises(PlanError, match="inverse temperature"):
        EM(anneal=beta)


def test_a_start_from_data_without_optimum_does_not_end_the_fit() -> None:
    """Five data in four components: most starts collapse, and the end says so."""
    x = torch.tensor([[0.0, 0.1], [0.2, 0.0], [5.0, 5.1], [5.1, 5.3], [9.0, 1.0]])
    result = ppl_em.fit(gmm.model, x, model_kwargs={"num_components": 4})
    assert result.status in (Status.DEGENERATE, Status.CONVERGED)
    assert bool(torch.isfinite(torch.tensor(result.objective)))
