"""The compiled recursions against every site's weights, and against the kernels of tensors."""

from __future__ import annotations

import pytest
import torch

from ppl_em.em.e_step import e_step
from ppl_em.em.loop import Machine
from ppl_em.fitting import ENGINES
from ppl_em.lower import compiled_chain, packed_chain
from ppl_em.lower.compiled_chain import CompiledChain
from ppl_em.methods import EM
from ppl_em.problem import pose
from tests.unit.lower.test_packed_chain import EMISSIONS, LENGTHS, SERIES, STEPS, D, hidden_markov

pytest.importorskip("numba")


@pytest.fixture(autouse=True)
def short_series_are_compiled(monkeypatch):
    monkeypatch.setattr(compiled_chain, "FEWEST_OPERATIONS", 1)
    monkeypatch.setattr(packed_chain, "FEWEST_SERIES", 10**9)


def machine_for(model, x, weights=None):
    problem = pose(model, (x,), ENGINES, weights=weights)
    return problem, Machine(problem.plan, EM(), torch.Generator())


def assert_twins(model, x, weights=None):
    """The compiled E-step and its M-step are those of the weights of every site and of the tensors' kernels."""
    problem, machine = machine_for(model, x, weights)
    lowered = machine.lowered[0]
    assert isinstance(lowered.fast, CompiledChain)
    natural = lowered.emission.natural(problem.values)
    compiled = lowered.fast.run(problem.values, natural)
    assert compiled is not None
    after = machine.maximise(problem.values, machine.evaluate(problem.values))
    lowered.fast = None
    tensors = lowered.run(problem.values)
    assert compiled.total == pytest.approx(tensors.total, rel=1e-12)
    for name, (factor, _) in compiled.weights.items():
        wanted = tensors.weights[name][0]
        torch.testing.assert_close(factor.tensor, wanted.align(factor.dims), rtol=1e-12, atol=1e-12)
    slow = e_step(problem.plan, problem.values)
    assert compiled.total == pytest.approx(slow.objective, rel=1e-12)
    for name, value in machine.maximise(problem.values, slow).items():
        torch.testing.assert_close(after[name], value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(("emission", "shift"), [*((e, 0.0) for e in EMISSIONS), ("normal", 1e3), ("full", 1e3)])
def test_compiled_chain_equals_its_slow_twins(emission, shift, lengths):
    assert_twins(hidden_markov(emission, lengths), torch.randn(SERIES, STEPS, D) * 2 + shift)


@pytest.mark.parametrize("emission", ["normal", "poisson", "categorical"])
def test_gaps_and_weights(emission):
    gaps = torch.rand(SERIES, STEPS) < 0.3
    model = hidden_markov(emission, LENGTHS["ragged"], gaps)
    assert_twins(model, torch.randn(SERIES, STEPS, D) * 2, torch.rand(SERIES) * 2)


def test_densities_out_of_range_are_left_to_the_general_kernels():
    """The first state and the first observation contradict each other by more than a double's range."""
    model = hidden_markov("normal", LENGTHS["equal"])
    problem, machine = machine_for(model, torch.randn(SERIES, STEPS, D))
    values = {**problem.values, "loc": problem.values["loc"] * 30, "scale": problem.values["scale"] * 0.1}
    values["start"] = torch.tensor([1.0, 0.0, 0.0])
    fast = machine.lowered[0].fast
    slow = e_step(problem.plan, values)
    outcome = fast.run(values, fast.emission.natural(values))
    assert outcome is None or outcome.total == pytest.approx(slow.objective, rel=1e-12)
    assert machine.evaluate(values).objective == pytest.approx(slow.objective, rel=1e-10)


def test_single_precision_and_short_chains_are_not_compiled(monkeypatch):
    x = torch.randn(SERIES, STEPS, D)
    assert machine_for(hidden_markov("normal", LENGTHS["ragged"]), x.float())[1].lowered[0].fast is None
    monkeypatch.setattr(compiled_chain, "FEWEST_OPERATIONS", 10**9)
    assert machine_for(hidden_markov("normal", LENGTHS["ragged"]), x)[1].lowered[0].fast is None


def test_where_nothing_can_be_compiled_tensors_do_it(monkeypatch):
    monkeypatch.setattr(compiled_chain, "kernel", lambda: None)
    problem, machine = machine_for(hidden_markov("normal", LENGTHS["ragged"]), torch.randn(SERIES, STEPS, D))
    slow = e_step(problem.plan, problem.values)
    assert machine.evaluate(problem.values).objective == pytest.approx(slow.objective, rel=1e-12)
