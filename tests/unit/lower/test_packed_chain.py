"""Many series without their padding, against the general kernels and against every site's weights."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints

from ppl_em.em.e_step import e_step
from ppl_em.em.loop import Machine
from ppl_em.exact.chain_packed import PackedRecursions, Packing
from ppl_em.exact.chain_scaled import scaled_transitions
from ppl_em.exact.forward_backward import expected_counts
from ppl_em.fitting import ENGINES
from ppl_em.lower import packed_chain
from ppl_em.lower.packed_chain import PackedChain
from ppl_em.methods import EM
from ppl_em.problem import pose

K, D, V, SERIES, STEPS = 3, 2, 5, 7, 20
LENGTHS = {
    "equal": torch.full((SERIES,), STEPS),
    "ragged": torch.tensor([5, 20, 1, 13, 13, 2, 17]),
}


@pytest.fixture(autouse=True)
def few_series_are_enough(monkeypatch):
    monkeypatch.setattr(packed_chain, "FEWEST_SERIES", 1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_recursions_equal_the_general_kernels(lengths, weighted):
    init, trans = torch.randn(K).log_softmax(-1), torch.randn(K, K).log_softmax(-1)
    alive = torch.arange(STEPS) < lengths[:, None]
    obs = 3 * torch.randn(SERIES, STEPS, K) * alive[..., None]
    weight = torch.rand(SERIES) + 0.5 if weighted else None
    packing = Packing.of(lengths)
    recursions = PackedRecursions(packing, K, torch.float64)
    columns = packing.order[packing.series], packing.steps
    for _ in range(2):  # the buffers are used again
        recursions.obs.copy_(obs[columns].T.exp())
        recursions.obs[:, :SERIES].mul_(init.exp()[:, None])
        in_order = None if weight is None else weight[packing.order]
        log_z, xi = recursions.run(scaled_transitions(trans[None, None]), in_order)
    log_z += (lengths[packing.order] - 1) * trans.max()
    wanted = expected_counts(init, trans, obs, alive)
    torch.testing.assert_close(log_z, wanted.log_z[packing.order], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(recursions.gamma, wanted.gamma[columns].T, rtol=1e-12, atol=1e-13)
    each = [expected_counts(init, trans, o, a) for o, a in zip(obs, alive, strict=True)]
    total = sum(c.xi * (1.0 if weight is None else weight[i]) for i, c in enumerate(each))
    torch.testing.assert_close(xi, total, rtol=1e-12, atol=1e-12)


def hidden_markov(emission: str, lengths, gaps=None, mask_states=True):
    """Series x (SERIES, STEPS, D), each up to its own length; ``gaps`` (SERIES, STEPS) are not observed."""

    def model(x):
        start = pyro.param("start", torch.tensor([0.2, 0.3, 0.5]).to(x), constraint=constraints.simplex)
        moves = pyro.param("moves", torch.eye(K).to(x) * 0.4 + 0.2, constraint=constraints.simplex)
        emit = EMISSIONS[emission](x)
        with pyro.plate("series", len(x)):
            z = None
            for t in pyro.markov(range(x.shape[1])):
                here = t < lengths
                with poutine.mask(mask=here if mask_states else torch.ones(len(x), dtype=torch.bool)):
                    z = pyro.sample(f"z_{t}", dist.Categorical(start if z is None else moves[z]))
                with poutine.mask(mask=here if gaps is None else here & ~gaps[:, t]):
                    emit(z, x[:, t], t)

    return model


def _normal(x):
    loc = pyro.param("loc", torch.arange(K * D).reshape(K, D).to(x) - 2 + x.mean())
    scale = pyro.param("scale", torch.ones(K, D).to(x) * 1.5, constraint=constraints.positive)
    return lambda z, x, t: pyro.sample(f"x_{t}", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)


def _full(x):
    loc = pyro.param("loc", torch.arange(K * D).reshape(K, D).to(x) - 2 + x.mean())
    cov = pyro.param("cov", (torch.eye(D) + 0.3).expand(K, D, D).to(x), constraint=constraints.positive_definite)
    return lambda z, x, t: pyro.sample(f"x_{t}", dist.MultivariateNormal(loc[z], cov[z]), obs=x)


def _poisson(x):
    rate = pyro.param("rate", torch.tensor([0.5, 1.0, 3.0]).to(x), constraint=constraints.positive)
    return lambda z, x, t: pyro.sample(f"x_{t}", dist.Poisson(rate[z]), obs=x[:, 0].abs().round())


def _categorical(x):
    table = torch.eye(K, V).to(x) + 0.5
    table = pyro.param("table", table / table.sum(-1, keepdim=True), constraint=constraints.simplex)
    return lambda z, x, t: pyro.sample(f"x_{t}", dist.Categorical(table[z]), obs=_symbols(x))


def _two(x):
    normal = _normal(x)

    def emit(z, x, t):
        normal(z, x, t)
        logits = pyro.param("logits", torch.arange(K * V).reshape(K, V).to(x) / 7)
        pyro.sample(f"y_{t}", dist.Categorical(logits=logits[z]), obs=_symbols(x))

    return emit


def _symbols(x):
    return (x[:, 0].abs() * 2).long().remainder(V)


EMISSIONS = {"normal": _normal, "full": _full, "poisson": _poisson, "categorical": _categorical, "two": _two}


def assert_twins(model, x, weights=None):
    """The packed E- and M-step are those of the weights of every site."""
    problem = pose(model, (x,), ENGINES, weights=weights)
    machine = Machine(problem.plan, EM(), torch.Generator())
    packed = machine.lowered[0].fast
    assert isinstance(packed, PackedChain)
    natural = packed.emission.natural(problem.values)
    assert packed.run(problem.values, natural) is not None
    fast, slow = machine.evaluate(problem.values), e_step(problem.plan, problem.values)
    assert fast.moments and not slow.moments
    assert fast.objective == pytest.approx(slow.objective, rel=1e-12, abs=1e-10)
    after, expected = (machine.maximise(problem.values, e) for e in (fast, slow))
    for name, value in expected.items():
        torch.testing.assert_close(after[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(("emission", "shift"), [*((e, 0.0) for e in EMISSIONS), ("normal", 1e3), ("full", 1e3)])
def test_packed_chain_equals_its_slow_twin(emission, shift, lengths):
    assert_twins(hidden_markov(emission, lengths), torch.randn(SERIES, STEPS, D) * 2 + shift)


@pytest.mark.parametrize("mask_states", [True, False])
@pytest.mark.parametrize("emission", ["normal", "categorical"])
def test_gaps_and_states_behind_the_last_observation(emission, mask_states):
    gaps = torch.rand(SERIES, STEPS) < 0.3
    model = hidden_markov(emission, LENGTHS["ragged"], gaps, mask_states)
    assert_twins(model, torch.randn(SERIES, STEPS, D) * 2)


@pytest.mark.parametrize("emission", ["normal", "categorical"])
def test_weights_of_the_series(emission):
    model = hidden_markov(emission, LENGTHS["ragged"])
    assert_twins(model, torch.randn(SERIES, STEPS, D) * 2, torch.rand(SERIES) * 2)


def test_statistics_that_are_not_kept(monkeypatch):
    monkeypatch.setattr(packed_chain, "KEPT_ELEMENTS", 0)
    monkeypatch.setattr(packed_chain, "CHUNK_ELEMENTS", 1)
    assert_twins(hidden_markov("normal", LENGTHS["ragged"]), torch.randn(SERIES, STEPS * 30, D) * 2)


def test_moves_too_rare_to_be_scaled_are_left_to_the_general_kernels():
    def model(x):
        moves = pyro.param("moves", torch.tensor([[0.0, -1.0], [-500.0, 0.0]]))
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("series", len(x)):
            z = None
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t}", dist.Categorical(logits=torch.zeros(2) if z is None else moves[z]))
                pyro.sample(f"x_{t}", dist.Normal(loc[z], 1.0), obs=x[:, t])

    problem = pose(model, (torch.randn(SERIES, STEPS),), ENGINES)
    machine = Machine(problem.plan, EM(), torch.Generator())
    packed = machine.lowered[0].fast
    assert packed.run(problem.values, packed.emission.natural(problem.values)) is None
    slow = e_step(problem.plan, problem.values)
    assert machine.evaluate(problem.values).objective == pytest.approx(slow.objective, rel=1e-12)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
@pytest.mark.parametrize("emission", ["normal", "categorical"])
def test_float32_agrees_with_float64(emission, shift):
    x = (torch.randn(400, 30, D) * 1.5 + shift).float()
    lengths = torch.randint(5, 31, (400,))
    outcomes, start = {}, {}
    for dtype in (torch.float64, torch.float32):
        problem = pose(hidden_markov(emission, lengths), (x.to(dtype),), ENGINES)
        machine = Machine(problem.plan, EM(), torch.Generator())
        start = start or problem.values
        values = {n: v.float().to(dtype) for n, v in start.items()}  # what float32 holds
        e = machine.evaluate(values)
        assert machine.lowered[0].fast is not None and e.moments
        outcomes[dtype] = (e.objective, machine.maximise(values, e))
    (wide, expected), (narrow, after) = outcomes.values()
    assert narrow == pytest.approx(wide, rel=1e-5)
    for name, value in expected.items():
        assert after[name].dtype == torch.float32
        torch.testing.assert_close(after[name].double(), value, rtol=1e-5, atol=1e-5 * float(value.abs().max()))
