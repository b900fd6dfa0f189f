"""Every lowered kernel against its slow twin: the same E-step by engines and expected weights."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints

from ppl_em.em.e_step import e_step
from ppl_em.em.loop import Machine
from ppl_em.fitting import ENGINES
from ppl_em.lower.chain import LoweredChain
from ppl_em.lower.mixture import LoweredMixture
from ppl_em.methods import EM
from ppl_em.problem import pose

K, N, D, V = 3, 40, 4, 5


def _simplex(*shape: int) -> torch.Tensor:
    return torch.softmax(torch.randn(*shape), -1)


def _normal(z, x):
    loc = pyro.param("loc", x[:K].clone())
    scale = pyro.param("scale", torch.rand(K, D) + 0.5, constraint=constraints.positive)
    pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)


def _normal_common_scale(z, x):
    loc = pyro.param("loc", x[:K, 0].clone())
    scale = pyro.param("scale", torch.tensor(0.8), constraint=constraints.positive)
    pyro.sample("x", dist.Normal(loc[z], scale), obs=x[..., 0])


def _multivariate(z, x):
    loc = pyro.param("loc", x[:K].clone())
    root = torch.randn(K, D, D) * 0.3 + torch.eye(D)
    cov = pyro.param("cov", root @ root.mT, constraint=constraints.positive_definite)
    pyro.sample("x", dist.MultivariateNormal(loc[z], cov[z]), obs=x)


def _multivariate_tied_root(z, x):
    loc = pyro.param("loc", x[:K].clone())
    root = torch.linalg.cholesky(torch.eye(D) + 0.3)
    root = pyro.param("root", root, constraint=constraints.lower_cholesky)
    pyro.sample("x", dist.MultivariateNormal(loc[z], scale_tril=root), obs=x)


def _bernoulli(z, x):
    p = pyro.param("p", torch.rand(K, D), constraint=constraints.unit_interval)
    pyro.sample("x", dist.Bernoulli(p[z]).to_event(1), obs=(x > x.mean()).to(x.dtype))


def _poisson(z, x):
    rate = pyro.param("rate", torch.rand(K, D) * 3 + 1, constraint=constraints.positive)
    pyro.sample("x", dist.Poisson(rate[z]).to_event(1), obs=(x - x.min()).round())


def _exponential(z, x):
    rate = pyro.param("rate", torch.rand(K) + 0.5, constraint=constraints.positive)
    pyro.sample("x", dist.Exponential(rate[z]), obs=x[..., 0].abs())


def _categorical(z, x):
    table = pyro.param("table", _simplex(K, V), constraint=constraints.simplex)
    pyro.sample("x", dist.Categorical(table[z]), obs=(x[..., 0].abs() * 2).long().clamp(max=V - 1))


def _two_sites(z, x):
    _normal(z, x)
    table = pyro.param("table", _simplex(K, V), constraint=constraints.simplex)
    pyro.sample("y", dist.Categorical(table[z]), obs=(x[..., 0].abs() * 2).long().clamp(max=V - 1))


EMISSIONS = {
    "normal": _normal,
    "normal common scale": _normal_common_scale,
    "multivariate normal": _multivariate,
    "multivariate normal tied": _multivariate_tied_root,
    "bernoulli": _bernoulli,
    "poisson": _poisson,
    "exponential": _exponential,
    "categorical": _categorical,
    "two sites": _two_sites,
}


def mixture(emission):
    """A mixture whose observations are drawn by ``emission``."""

    def model(x):
        torch.manual_seed(5)
        weights = pyro.param("weights", _simplex(K), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            emission(z, x)

    return model


def chain(emission, lengths=None):
    """Sequences of a hidden Markov model, x of shape (T, sequences, D)."""

    def model(x):
        torch.manual_seed(5)
        initial = pyro.param("initial", _simplex(K), constraint=constraints.simplex)
        moves = pyro.param("moves", _simplex(K, K), constraint=constraints.simplex)
        with pyro.plate("sequences", x.shape[1]):
            z = None
            for t in pyro.markov(range(len(x))):
                mask = torch.ones(x.shape[1], dtype=torch.bool) if lengths is None else t < lengths
                with poutine.mask(mask=mask):
                    z = pyro.sample(f"z_{t}", dist.Categorical(initial if z is None else moves[z]))
                    emission(z, x[t], t)

    return model


def _stepwise(emission):
    def at(z, x, t):
        if emission == "normal":
            loc = pyro.param("loc", torch.arange(K * D, dtype=x.dtype).reshape(K, D) + x.mean())
            scale = pyro.param("scale", torch.ones(K, D, dtype=x.dtype) * 2, constraint=constraints.positive)
            pyro.sample(f"x_{t}", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)
        else:
            table = pyro.param("table", _simplex(K, V), constraint=constraints.simplex)
            symbols = (x[..., 0].abs() * 2).long().clamp(max=V - 1)
            pyro.sample(f"x_{t}", dist.Categorical(table[z]), obs=symbols)

    return at


def both(model, x, kind, weights=None):
    """Objective and M-step of the lowered form, and of the slow twin."""
    problem = pose(model, (x,), ENGINES, weights=weights)
    machine = Machine(problem.plan, EM(), torch.Generator())
    assert isinstance(machine.lowered.get(0), kind)
    outcomes = []
    for lowered in (machine.lowered, None):
        e = e_step(problem.plan, problem.values, lowered)
        outcomes.append((e.objective, machine.maximise(problem.values, e)))
        assert bool(e.moments) == (lowered is not None)
    return outcomes


CASES = [(name, 0.0) for name in EMISSIONS] + [(name, 1000.0) for name in EMISSIONS if "normal" in name]


@pytest.mark.parametrize(("name", "shift"), CASES)
def test_lowered_mixture_equals_its_slow_twin(name, shift):
    x = torch.randn(N, D) * 1.5 + shift
    (fast, after), (slow, expected) = both(mixture(EMISSIONS[name]), x, LoweredMixture)
    assert fast == pytest.approx(slow, rel=1e-12, abs=1e-10)
    for parameter, value in expected.items():
        torch.testing.assert_close(after[parameter], value, rtol=1e-10, atol=1e-10)


def test_lowered_mixture_with_weights_of_the_data():
    x, weights = torch.randn(N, D), torch.rand(N) * 2
    (fast, after), (slow, expected) = both(mixture(_normal), x, LoweredMixture, weights)
    assert fast == pytest.approx(slow, rel=1e-12)
    for parameter, value in expected.items():
        torch.testing.assert_close(after[parameter], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lengths", [None, torch.tensor([12, 5, 1])])
@pytest.mark.parametrize(("emission", "shift"), [("normal", 0.0), ("normal", 1000.0), ("categorical", 0.0)])
def test_lowered_chain_equals_its_slow_twin(emission, shift, lengths):
    x = torch.randn(12, 3, D) + shift
    model = chain(_stepwise(emission), lengths)
    (fast, after), (slow, expected) = both(model, x, LoweredChain)
    assert fast == pytest.approx(slow, rel=1e-12)
    for parameter, value in expected.items():
        torch.testing.assert_close(after[parameter], value, rtol=1e-10, atol=1e-10)


def _step(model, x, values, kind):
    """Objective and M-step of the lowered form at given parameters."""
    problem = pose(model, (x,), ENGINES)
    machine = Machine(problem.plan, EM(), torch.Generator())
    assert isinstance(machine.lowered.get(0), kind)
    e = machine.evaluate(values)
    assert e.moments
    return e.objective, machine.maximise(values, e)


def _start(model, x):
    """The program's own parameters, as float32 holds them; covariances far from singular."""
    values = {n: v.float() for n, v in pose(model, (x,), ENGINES).values.items()}
    for name, identity in (("cov", torch.eye(D).expand(K, D, D)), ("root", torch.eye(D)), ("scale", None)):
        if name in values:
            values[name] = torch.full_like(values[name], 2.0) if identity is None else identity.float().clone()
    return values


def _float32_agrees(model, x, kind):
    """One step in float32 against one in float64, from the very same numbers, relative to the largest of each."""
    x = x.float()
    start = _start(model, x.double())
    outcomes = {}
    for dtype in (torch.float64, torch.float32):
        torch.set_default_dtype(dtype)
        try:
            outcomes[dtype] = _step(model, x.to(dtype), {n: v.to(dtype) for n, v in start.items()}, kind)
        finally:
            torch.set_default_dtype(torch.float64)
    (single, after), (double, expected) = outcomes[torch.float32], outcomes[torch.float64]
    assert single == pytest.approx(double, rel=1e-5)
    for parameter, value in expected.items():
        difference = float((after[parameter].double() - value).abs().max())
        assert difference <= 1e-5 * float(value.abs().max()), parameter


@pytest.mark.parametrize(("name", "shift"), CASES)
def test_float32_agrees_with_float64(name, shift):
    _float32_agrees(mixture(EMISSIONS[name]), torch.randn(2000, D) * 1.5 + shift, LoweredMixture)


@pytest.mark.parametrize(("emission", "shift"), [("normal", 0.0), ("normal", 1000.0), ("categorical", 0.0)])
def test_float32_chain_agrees_with_float64(emission, shift):
    _float32_agrees(chain(_stepwise(emission)), torch.randn(12, 50, D) * 1.5 + shift, LoweredChain)


def test_a_component_far_narrower_than_the_data_is_computed_from_the_data():
    """The expansion of the square would lose the digits; the slow form takes over and the answer is right."""
    x = torch.cat([torch.randn(30) * 1e3, 5.0 + torch.randn(30) * 1e-4])

    def model(x):
        loc = pyro.param("loc", torch.tensor([0.0, 5.0]))
        scale = pyro.param("scale", torch.tensor([1e3, 1e-4]), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)

    problem = pose(model, (x,), ENGINES)
    machine = Machine(problem.plan, EM(), torch.Generator())
    e = machine.evaluate(problem.values)
    slow = e_step(problem.plan, problem.values)
    assert e.objective == pytest.approx(slow.objective, rel=1e-12)
    after, expected = machine.maximise(problem.values, e), machine.maximise(problem.values, slow)
    torch.testing.assert_close(after["scale"], expected["scale"], rtol=1e-9, atol=0)
