"""Mixtures of regressions: the lowered form against its slow twin."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

from ppl_em.em.e_step import e_step
from ppl_em.em.loop import Machine
from ppl_em.fitting import ENGINES
from ppl_em.lower.regression import LoweredRegression
from ppl_em.methods import EM
from ppl_em.problem import pose

K, N, D = 3, 60, 4


def model(x, y, offset=None):
    torch.manual_seed(6)
    weights = pyro.param("weights", torch.softmax(torch.randn(K), -1), constraint=constraints.simplex)
    coef = pyro.param("coef", torch.randn(K, D))
    scale = pyro.param("scale", torch.rand(K) + 0.5, constraint=constraints.positive)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Categorical(weights))
        mean = (x * coef[z]).sum(-1) if offset is None else (x * coef[z]).sum(-1) + offset
        pyro.sample("y", dist.Normal(mean, scale[z]), obs=y)


def _data(n=N, shift=0.0):
    x = torch.cat([torch.ones(n, 1), torch.randn(n, D - 1)], 1)
    return x, x @ torch.randn(D) + torch.randn(n) + shift


def _machine(args, values=None, weights=None):
    problem = pose(model, args, ENGINES, weights=weights)
    machine = Machine(problem.plan, EM(), torch.Generator())
    assert isinstance(machine.lowered.get(0), LoweredRegression)
    return machine, dict(problem.values) if values is None else values


@pytest.mark.parametrize("shift", [0.0, 1000.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_lowered_regression_equals_its_slow_twin(shift, weighted):
    args = (*_data(shift=shift), torch.full((N,), shift))
    machine, values = _machine(args, weights=torch.rand(N) * 2 if weighted else None)
    fast, slow = machine.evaluate(values), e_step(machine.plan, values)
    assert fast.moments and not slow.moments
    assert fast.objective == pytest.approx(slow.objective, rel=1e-12)
    after, expected = machine.maximise(values, fast), machine.maximise(values, slow)
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_float32_agrees_with_float64(shift):
    data = tuple(t.float() for t in _data(2000, shift))
    outcomes = {}
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        coef = torch.tensor([[shift, 0.5, 0.0, -0.5], [shift - 1, 0.0, 1.0, 0.0], [shift + 1, 0.0, 0.0, 0.0]])
        values = {
            "weights": torch.full((K,), 1 / 4).add(torch.tensor([0.25, 0.0, 0.0])),
            "coef": coef,
            "scale": torch.ones(K),
        }
        values = {n: v.to(dtype) for n, v in values.items()}
        machine, _ = _machine(tuple(t.to(dtype) for t in data), values)
        e = machine.evaluate(values)
        outcomes[dtype] = (e.objective, machine.maximise(values, e))
    torch.set_default_dtype(torch.float64)
    (single, after), (double, expected) = outcomes[torch.float32], outcomes[torch.float64]
    assert single == pytest.approx(double, rel=1e-5)
    for name, value in expected.items():
        assert float((after[name].double() - value).abs().max()) <= 1e-5 * float(value.abs().max()), name
