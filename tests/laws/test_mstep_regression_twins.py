"""The fast form of mixtures of regressions against its slow twin: the same objectives and the same steps."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ppl_em
from ppl_em.em.loop import Machine
from ppl_em.lower.regression import LoweredRegression
from ppl_em.problem import pose

K, N, D = 3, 5_000, 4


def model(x: Tensor, y: Tensor, common: bool = False, shift: float = 0.0) -> None:
    w = pyro.param("w", x.new_ones(K) / K, constraint=constraints.simplex)
    steps = torch.linspace(-1, 1, K, dtype=x.dtype)
    coef = pyro.param("coef", lambda: steps[:, None] * x.new_ones(K, D))
    slope = pyro.param("slope", x.new_zeros(1)) if common else x.new_zeros(1)
    scale = pyro.param("scale", x.new_ones(K), constraint=constraints.positive)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("y", dist.Normal((x * coef[z]).sum(-1) + slope * x[:, 1] ** 2 + shift, scale[z]), obs=y)


def data(dtype: torch.dtype, shift: float = 0.0) -> tuple[Tensor, Tensor]:
    x = torch.cat([torch.ones(N, 1), torch.randn(N, D - 1)], 1)
    true = torch.randn(K, D)
    y = (x * true[torch.randint(K, (N,))]).sum(-1) + 0.4 * torch.randn(N) + shift
    return x.to(dtype), y.to(dtype)


def run(args: tuple[Any, ...], fast: bool, kwargs: dict[str, Any], weights: Tensor | None) -> tuple[list[float], Any]:
    from ppl_em.fitting import ENGINES

    problem = pose(model, args, ENGINES, model_kwargs=kwargs, weights=weights)
    machine = Machine(problem.plan, ppl_em.EM(accelerate=False), torch.Generator())
    assert [type(k) for k in machine.lowered.values()] == [LoweredRegression]
    if not fast:
        machine.lowered = {}
    values, history = problem.values, []
    for _ in range(8):
        e = machine.evaluate(values)
        history.append(e.objective)
        values = machine.maximise(values, e)
    return history, values


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shift", [0.0, 1000.0])
@pytest.mark.parametrize("common", [False, True])
def test_equal_in_float64(common: bool, shift: float, weighted: bool) -> None:
    args = data(torch.float64, shift)
    weights = torch.rand(N) + 0.1 if weighted else None
    kwargs = {"common": common, "shift": 0.0}
    fast, slow = (run(args, f, kwargs, weights) for f in (True, False))
    torch.testing.assert_close(torch.tensor(fast[0]), torch.tensor(slow[0]), atol=0, rtol=1e-10)
    for name, value in slow[1].items():
        torch.testing.assert_close(fast[1][name], value, atol=1e-8, rtol=1e-8)


def test_a_known_offset_is_part_of_the_mean() -> None:
    args = data(torch.float64, 5.0)
    fast, slow = (run(args, f, {"shift": 5.0}, None) for f in (True, False))
    torch.testing.assert_close(torch.tensor(fast[0]), torch.tensor(slow[0]), atol=0, rtol=1e-10)


def test_float32_stays_near_float64() -> None:
    x, y = data(torch.float64)
    exact, _ = run((x, y), True, {}, None)
    torch.set_default_dtype(torch.float32)  # restored by the fixture
    single, values = run((x.float(), y.float()), True, {}, None)
    assert values["coef"].dtype == torch.float32
    torch.testing.assert_close(torch.tensor(single).double(), torch.tensor(exact).double(), atol=0, rtol=1e-5)


def test_coefficients_shared_with_a_site_outside_are_solved_with_it() -> None:
    """Another site without latents has the same slope: the normal equations of both are added up."""

    def shared(x: Tensor, y: Tensor) -> None:
        slope = pyro.param("slope", torch.zeros(2, D))
        scale = pyro.param("scale", torch.tensor([0.5, 1.0]), constraint=constraints.positive)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("y", dist.Normal((x * slope[z]).sum(-1), scale[z]), obs=y)
        with pyro.plate("known", 50):
            pyro.sample("y0", dist.Normal((x[:50] * slope[0]).sum(-1), 1.0), obs=y[:50])

    x, y = data(torch.float64)
    result = ppl_em.fit(shared, x[:200], y[:200], init="params", method=ppl_em.EM(max_steps=2, tol=0, accelerate=False))
    assert result.plan.rule_of("slope") == "least squares"
    slope, scale = torch.zeros(2, D), torch.tensor([0.5, 1.0])
    for _ in range(2):
        log_p = dist.Normal(x[:200] @ slope.mT, scale).log_prob(y[:200, None])
        w = log_p.softmax(-1)
        pairs = [(x[:200], y[:200], w[:, k] / scale[k] ** 2) for k in range(2)]
        slope = torch.stack([_solve([pairs[0], (x[:50], y[:50], torch.ones(50))]), _solve([pairs[1]])])
        squares = (y[:200, None] - x[:200] @ slope.mT).square()
        scale = ((w * squares).sum(0) / w.sum(0)).sqrt()
    torch.testing.assert_close(result.params["slope"], slope, atol=1e-10, rtol=0)
    torch.testing.assert_close(result.params["scale"], scale, atol=1e-10, rtol=0)


def _solve(parts: list[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    gram = sum(((x * w[:, None]).mT @ x for x, _, w in parts), torch.zeros(D, D))
    pull = sum((x.mT @ (w * y) for x, y, w in parts), torch.zeros(D))
    return torch.linalg.solve(gram, pull)
