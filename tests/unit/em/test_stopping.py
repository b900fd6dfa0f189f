"""When a fit ends, and what it says: converged, out of steps, collapsed, empty, not monotone, undefined."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ppl_em
from models import gmm
from ppl_em import EM, Status
from ppl_em.em.loop import Machine, run_em
from ppl_em.em.stopping import Stopping, relative_change, remaining_gain


def test_a_geometric_sequence_tells_what_is_left() -> None:
    values = [-(0.9**k) for k in range(6)]
    assert remaining_gain(values) == pytest.approx(0.9**5)
    assert math.isinf(remaining_gain(values[:2]))
    assert math.isinf(remaining_gain([0.0, 1.0, 3.0]))  # it gains speed


def test_the_parameters_have_a_say() -> None:
    """Near a saddle the objective rests while a probability grows from almost nothing."""
    stopping, small = Stopping(1e-6, 0.0), 1e-12
    for _ in range(20):
        old, small = small, 2 * small
        stopping.update(0.0, {"p": torch.tensor([old, 1 - old])}, {"p": torch.tensor([small, 1 - small])})
        assert not stopping.satisfied
    for _ in range(2):
        stopping.update(0.0, {"p": torch.tensor([0.5, 0.5])}, {"p": torch.tensor([0.5, 0.5])})
    assert stopping.satisfied


def test_a_probability_that_falls_to_zero_does_not_hold_up_the_end() -> None:
    old, new = {"p": torch.tensor([1e-8, 1 - 1e-8])}, {"p": torch.tensor([5e-9, 1 - 5e-9])}
    assert relative_change(old, new) < 1e-6
    assert relative_change(new, old) == pytest.approx(1.0)


def test_an_extrapolated_run_is_confirmed_by_plain_steps() -> None:
    stopping = Stopping(1e-6, 0.0, extrapolated=True)
    seen = []
    while not stopping.satisfied:
        stopping.update(0.0)
        seen.append(stopping.confirming)
    assert seen[0] is False and seen[-1] is True
    assert sum(seen) >= 3


def test_an_end_that_plain_steps_do_not_confirm_is_given_up() -> None:
    stopping, value = Stopping(1e-6, 0.0, extrapolated=True), 0.0
    while not stopping.confirming:
        stopping.update(value)
    for _ in range(20):
        value += 1.0
        stopping.update(value)
    assert not stopping.satisfied and not stopping.confirming


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_component_on_a_single_datum_is_named(covariance: str) -> None:
    x = gmm.load()
    start = {"loc": torch.stack([x.mean(0), torch.tensor([1.0, 20.0])]), "weights": [0.98, 0.02]}
    far = torch.cat([x, torch.tensor([[1.0, 20.0]])])
    start |= {"cov": torch.stack([x.T.cov(), 0.01 * torch.eye(2)])} if covariance == "full" else {}
    start |= {"scale": torch.stack([x.std(0), torch.tensor([0.1, 0.1])])} if covariance == "diagonal" else {}
    result = ppl_em.fit(gmm.model, far, init=start, model_kwargs={"covariance": covariance})
    assert result.status is Status.DEGENERATE
    assert "site 'x'" in result.detail and "z=1" in result.detail
    assert math.isfinite(result.objective)
    assert all(bool(torch.isfinite(v).all()) for v in result.params.values())
    assert result.restarts[0].status is Status.DEGENERATE


@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e9])
def test_the_floor_of_a_scale_follows_the_unit_of_the_data(unit: float) -> None:
    x = unit * torch.cat([torch.randn(60, generator=torch.Generator().manual_seed(0)), torch.tensor([12.0])])
    sound = {"loc": [-unit, unit], "scale": [unit, unit]}
    spike = {"loc": [0.0, 12.0 * unit], "scale": [unit, 0.01 * unit], "weights": [0.98, 0.02]}
    assert ppl_em.fit(two, x[:-1], init=sound, method=EM(max_steps=30, tol=0)).status is Status.ALL_STEPS
    assert ppl_em.fit(two, x, init=spike).status is Status.DEGENERATE


def two(x: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def test_a_component_that_gets_no_data_is_named() -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    result = ppl_em.fit(two, x, init={"loc": [0.0, 1e4]})
    assert result.status is Status.DEGENERATE
    assert "z=1" in result.detail and "no data" in result.detail
    assert all(bool(torch.isfinite(v).all()) for v in result.params.values())


class Downhill(Machine):
    """An M-step that is wrong."""

    def maximise(self, parameters: dict[str, Tensor], e: object) -> dict[str, Tensor]:
        return {**parameters, "loc": parameters["loc"] + 1.0}


def test_a_wrong_m_step_is_found_out() -> None:
    x = torch.randn(50, generator=torch.Generator().manual_seed(0))
    plan = ppl_em.explain(two, x)
    start = {n: p.init for n, p in plan.program.parameters.items()}
    *_, last = run_em(Downhill(plan, EM(), torch.Generator()), start)
    assert last.status is Status.NOT_MONOTONE
    assert "nats at step" in last.detail
    assert last.objective >= -200 and torch.isfinite(last.parameters["loc"]).all()  # those before it


def test_an_impossible_start_is_undefined_and_says_so() -> None:
    def bounded(x: Tensor) -> None:
        high = pyro.param("high", torch.tensor([1.0, 2.0]), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Uniform(0.0, high[z], validate_args=False), obs=x)

    x = torch.tensor([0.5, 5.0])
    result = ppl_em.fit(bounded, x, init="params")
    assert result.status is Status.NON_FINITE
    assert not result.converged
    assert result.params["high"].tolist() == [1.0, 2.0]


def test_the_statuses_are_distinct_sentences() -> None:
    sentences = [str(s) for s in Status]
    assert len({*sentences}) == len(sentences)
    assert all(s.endswith(".") for s in sentences)
