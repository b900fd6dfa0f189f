"""Tables that an observed index is looked up in: the sparse form against its slow twin, and distinct rows."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.ops.indexing import Vindex

from ppl_em.em.closed_form import ClosedForm
from ppl_em.em.e_step import e_step
from ppl_em.em.lookup import LookupForm
from ppl_em.em.loop import Machine
from ppl_em.fitting import ENGINES
from ppl_em.ir.rows import distinct_rows
from ppl_em.lower.lookup import LoweredLookup
from ppl_em.methods import EM
from ppl_em.problem import pose
from ppl_em.trace.like_rows import like_rows

ITEMS, WORKERS, LABELS, K, V = 30, 6, 4, 3, 5


def _simplex(*shape: int) -> torch.Tensor:
    return torch.softmax(torch.randn(*shape), -1)


def annotators(labels, who, mask=None):
    """Dawid and Skene's model, each item labelled by workers of its own."""
    torch.manual_seed(3)
    shares = pyro.param("shares", _simplex(K), constraint=constraints.simplex)
    errors = pyro.param("errors", _simplex(WORKERS, K, V), constraint=constraints.simplex)
    with pyro.plate("items", len(labels), dim=-2):
        truth = pyro.sample("truth", dist.Categorical(shares))
        with pyro.plate("labels", LABELS, dim=-1), poutine.mask(mask=True if mask is None else mask):
            pyro.sample("label", dist.Categorical(Vindex(errors)[who, truth, :]), obs=labels)


def by_season(labels, season):
    """One label for each item, its probabilities by class and season."""
    torch.manual_seed(4)
    shares = pyro.param("shares", _simplex(K), constraint=constraints.simplex)
    errors = pyro.param("errors", _simplex(K, WORKERS, V), constraint=constraints.simplex)
    with pyro.plate("items", len(labels)):
        truth = pyro.sample("truth", dist.Categorical(shares))
        pyro.sample("label", dist.Categorical(errors[truth, season]), obs=labels)


def _data(*shape: int):
    return torch.randint(V, shape), torch.randint(WORKERS, shape)


def _compare(model, args, weights=None):
    problem = pose(model, args, ENGINES, weights=weights)
    machine = Machine(problem.plan, EM(), torch.Generator())
    assert isinstance(machine.lowered.get(0), LoweredLookup)
    fast, slow = machine.evaluate(problem.values), e_step(problem.plan, problem.values)
    assert fast.moments and not slow.moments
    assert fast.objective == pytest.approx(slow.objective, rel=1e-12, abs=1e-10)
    after = machine.maximise(problem.values, fast)
    again = machine.maximise(problem.values, slow)
    for update in problem.plan.updates:
        expected = ClosedForm(problem.plan, update).step(problem.values, slow)  # one row for each datum
        for name, value in expected.items():
            torch.testing.assert_close(after[name], value, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(again[name], value, rtol=1e-10, atol=1e-10)


def test_lowered_lookup_equals_its_slow_twin():
    _compare(annotators, _data(ITEMS, LABELS))


def test_with_weights_of_the_data_and_missing_labels():
    labels, who = _data(ITEMS, LABELS)
    mask = torch.rand(ITEMS, LABELS) < 0.7
    _compare(annotators, (labels, who), weights=torch.rand(ITEMS) * 2)
    _compare(annotators, (labels, who, mask))


def test_the_same_worker_twice_on_one_item():
    labels, who = _data(ITEMS, LABELS)
    who[:, 1], labels[:, 1] = who[:, 0], labels[:, 0]
    _compare(annotators, (labels, who))


def test_one_observation_for_each_latent():
    _compare(by_season, _data(ITEMS))


def test_float32_agrees_with_float64():
    labels, who = _data(2000, LABELS)
    outcomes = {}
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        problem = pose(annotators, (labels, who), ENGINES)
        torch.manual_seed(11)
        start = {n: torch.softmax(torch.randn(v.shape, dtype=torch.float32), -1) for n, v in problem.values.items()}
        values = {n: v.to(dtype) for n, v in start.items()}
        machine = Machine(problem.plan, EM(), torch.Generator())
        assert isinstance(machine.updaters[-1], LookupForm)
        e = machine.evaluate(values)
        outcomes[dtype] = (e.objective, machine.maximise(values, e))
    torch.set_default_dtype(torch.float64)
    (single, after), (double, expected) = outcomes[torch.float32], outcomes[torch.float64]
    assert single == pytest.approx(double, rel=1e-5)
    for name, value in expected.items():
        torch.testing.assert_close(after[name].double(), value, rtol=1e-5, atol=1e-5)


def test_distinct_rows_are_found_in_any_order():
    table = torch.randint(-3, 3, (7, 4))
    kind = torch.randint(7, (50,))
    first, found = distinct_rows(table[kind])
    torch.testing.assert_close(table[kind][first][found], table[kind])
    assert len(first) == len(torch.unique(table[kind], dim=0))


def test_like_rows_are_grouped_along_plates_alone():
    who, latent = torch.randint(4, (60,)), torch.randn(3, 4, 2)
    runs = [latent[:, who], latent.exp()[:, who]]  # (state, data, event)
    rows = like_rows(runs, ("z", "data"), {"data"})
    assert rows is not None and len(rows.first) == len(who.unique())
    torch.testing.assert_close(rows.take(runs[0])[rows.kind].transpose(0, 1), runs[0])
    assert like_rows([torch.randn(3, 60)], ("z", "data"), {"data"}) is None
    assert like_rows(runs, ("z", "data"), set()) is None
