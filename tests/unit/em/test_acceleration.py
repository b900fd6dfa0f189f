"""SQUAREM and DAAREM: fewer evaluations of the EM map, never downhill, seldom a worse optimum."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ppl_em
from models import hmm
from ppl_em import EM, Status
from ppl_em.em.accelerate import Space
from ppl_em.em.daarem import Daarem
from ppl_em.em.loop import Machine, run_em
from ppl_em.errors import PlanError

#: Nats to the optimum within which a run has arrived.
ARRIVED = 1e-6


def overlapping(x: Tensor) -> None:
    """Two normals whose centres are not far apart: most of the information is missing."""
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def slow_data(count: int = 400, gap: float = 2.0) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, generator=generator) + gap * (torch.rand(count, generator=generator) < 0.4)


def evaluations(accelerate: object, x: Tensor, best: float) -> int:
    """Evaluations of the map until the objective is within reach of the best."""
    method = EM(accelerate=accelerate, tol=1e-12, max_steps=20_000)  # type: ignore[arg-type]
    history = ppl_em.fit(overlapping, x, init="params", method=method).history
    return int((history > best - ARRIVED).nonzero()[0])


def test_five_times_fewer_evaluations_on_a_slow_mixture() -> None:
    x = slow_data()
    best = max(
        ppl_em.fit(overlapping, x, init="params", method=EM(accelerate=a, tol=1e-12, max_steps=20_000)).objective
        for a in ("squarem", "daarem")
    )
    counts = {str(a): evaluations(a, x, best) for a in (False, "squarem", "daarem")}
    print(f"evaluations of the EM map to {ARRIVED} nats: {counts}")
    assert counts["False"] > 5 * counts["squarem"]
    assert counts["False"] > 5 * counts["daarem"]


def test_true_is_squarem() -> None:
    x = slow_data(100)
    one, two = (ppl_em.fit(overlapping, x, init="params", method=EM(accelerate=a)) for a in (True, "squarem"))
    assert torch.equal(one.history, two.history)


@pytest.mark.parametrize("name", ["anderson", "SQUAREM", "", None])
def test_unknown_accelerations_are_refused(name: object) -> None:
    with pytest.raises(PlanError, match="accelerate"):
        EM(accelerate=name)  # type: ignore[arg-type]


@pytest.mark.parametrize("accelerate", ["squarem", "daarem"])
@pytest.mark.parametrize("emission", ["poisson", "gaussian"])
def test_accelerated_chains_never_step_down(accelerate: str, emission: str) -> None:
    x = hmm.load()
    options = {"init": "params", "model_kwargs": {"num_states": 3, "emission": emission}}
    plain = ppl_em.fit(hmm.model, x, method=EM(accelerate=False, tol=1e-8, max_steps=20_000), **options)
    fast = ppl_em.fit(hmm.model, x, method=EM(accelerate=accelerate, tol=1e-8), **options)  # type: ignore[arg-type]
    assert bool((fast.history.diff() >= -1e-9).all())
    assert fast.converged
    assert fast.objective > plain.objective - 1e-5
    assert fast.num_steps < plain.num_steps
    assert len(fast.history) == fast.num_steps + 1


def test_coordinates_lead_there_and_back() -> None:
    space = Space({"p": constraints.simplex, "s": constraints.positive, "c": constraints.positive_definite})
    values = {
        "p": torch.tensor([[0.2, 0.8, 0.0], [0.5, 0.25, 0.25]]),
        "s": torch.tensor([0.1, 3.0]),
        "c": torch.tensor([[2.0, 0.3], [0.3, 1.0]]),
        "other": torch.ones(2),
    }
    back = space.rebuild(space.flat(values), values)
    assert back.keys() == values.keys()
    for name, value in values.items():
        torch.testing.assert_close(back[name], value)


def test_an_extrapolation_leaves_a_part_of_every_probability() -> None:
    space = Space({"p": constraints.simplex})
    like = {"p": torch.tensor([0.1, 0.9])}
    moved = space.rebuild(torch.tensor([0.0, 1.0], dtype=torch.float64), like)["p"]
    assert float(moved[0]) == pytest.approx(0.001, rel=0.01)
    assert float(moved.sum()) == pytest.approx(1.0)


def test_daarem_solves_a_linear_map_in_few_steps() -> None:
    """On a linear map undamped Anderson acceleration is GMRES: exact after as many steps as distinct rates."""
    matrix = torch.diag(torch.tensor([0.99, 0.99, 0.5, 0.5]))
    fixed = torch.tensor([1.0, -2.0, 3.0, 4.0])
    space, method, point = Space({"x": constraints.real_vector}), Daarem(), {"x": torch.zeros(4)}
    method.accepted = 1000  # no damping
    for _ in range(12):
        image = {"x": matrix @ (point["x"] - fixed) + fixed}
        point = method.propose(space, point, image) or image
    torch.testing.assert_close(point["x"], fixed, atol=1e-8, rtol=0)


@pytest.mark.slow
def test_a_worse_optimum_than_plain_em_is_rare() -> None:
    """From 400 random starts of two components on three clusters, which have several optima."""
    generator = torch.Generator().manual_seed(5)
    noise = torch.randn(45, generator=generator)
    x = noise + torch.tensor([-2.5, 0.0, 3.5]).repeat(15)
    plan = ppl_em.explain(overlapping, x)
    names = (False, "squarem", "daarem")
    methods = {a: EM(accelerate=a, tol=1e-5, max_steps=3000) for a in names}  # type: ignore[arg-type]
    machines = {a: Machine(plan, method, generator) for a, method in methods.items()}
    worse, compared, steps = {"squarem": 0, "daarem": 0}, 0, {"False": 0, "squarem": 0, "daarem": 0}
    ends = set()
    for _ in range(400):
        start = {
            "weights": torch.tensor([0.5, 0.5]),
            "loc": x[torch.randperm(len(x), generator=generator)[:2]],
            "scale": 0.5 + 2 * torch.rand(2, generator=generator),
        }
        last = {}
        for accelerate, machine in machines.items():
            *_, last[accelerate] = run_em(machine, start)
            steps[str(accelerate)] += last[accelerate].step
        if last[False].status is Status.CONVERGED:
            compared += 1
            ends.add(round(last[False].objective, 1))
            for name in worse:
                worse[name] += last[name].objective < last[False].objective - 1e-2
    print(f"worse from {worse} of {compared} starts with {len(ends)} ends; evaluations {steps}")
    assert compared > 350 and len(ends) > 1
    assert max(worse.values()) <= 4
