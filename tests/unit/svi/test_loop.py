"""The loop: batches count what they stand for, held-out data stop it, the best values come back, seeds reproduce."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import ppl_em
from ppl_em.errors import DataError, PlanError, PplEmError
from ppl_em.methods import SVI
from ppl_em.svi.batches import Cut, Loader, Rows
from ppl_em.svi.bound import Bound
from ppl_em.svi.trainer import sum_terms
from ppl_em.trace.tracing import Source
from tests.tolerances import BRUTE_FORCE, EXACT
from tests.unit.svi.programs import factor_data, factors, gaussian_mixture, plan_of


def rate(x: Tensor) -> None:
    """One positive parameter, with a prior on a location that all data share."""
    scale = pyro.param("scale", torch.tensor(1.5), constraint=dist.constraints.positive)
    m = pyro.sample("m", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(m, scale), obs=x)


def indexed(x: Tensor) -> None:
    """As `rate`, picking the data by the plate's indices."""
    scale = pyro.param("scale", torch.tensor(1.5), constraint=dist.constraints.positive)
    m = pyro.sample("m", dist.Normal(0.0, 3.0))
    with pyro.plate("data", 20) as i:
        pyro.sample("x", dist.Normal(m, scale), obs=x[i])


def fixed_size(x: Tensor) -> None:
    """As `rate`, for twenty data and no other number."""
    m = pyro.sample("m", dist.Normal(0.0, 3.0))
    with pyro.plate("data", 20):
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)


X = torch.linspace(-2, 3, 20, dtype=torch.float64)


@pytest.mark.parametrize("model", [rate, indexed], ids=["slices", "indices"])
def test_minibatches_estimate_the_whole_without_bias(model: Callable) -> None:
    source, plan = plan_of(model, X)
    bound = Bound(plan, model, mean_field=True)
    values = {"scale": torch.tensor(0.8), "m": torch.tensor(0.4)}
    cut = Cut(source, plan.program, None, (), None)
    assert cut.sliced == (model is rate)
    rows = Rows(cut, torch.arange(20), 5)
    estimates = [float(sum_terms(bound.terms(b, values, []))) for b in rows.epoch()]
    exact = dist.Normal(0.4, 0.8).log_prob(X).sum() + dist.Normal(0.0, 3.0).log_prob(values["m"])
    assert len(estimates) == 4
    assert sum(estimates) / 4 == pytest.approx(float(exact), abs=BRUTE_FORCE)
    shares = sum(
        share * float(sum_terms(bound.terms(b, values, []))) for share, b in Rows(cut, torch.arange(20), 6).all()
    )
    assert shares == pytest.approx(float(exact), abs=BRUTE_FORCE)


def test_weights_count_data_several_times() -> None:
    source, plan = plan_of(rate, X)
    bound = Bound(plan, rate, mean_field=True)
    weights = torch.arange(20.0)
    cut = Cut(source, plan.program, None, (), weights)
    values = {"scale": torch.tensor(0.8), "m": torch.tensor(0.4)}
    found = float(sum_terms(bound.terms(cut(torch.arange(20), 20.0), values, [])))
    log_prob = dist.Normal(0.4, 0.8).log_prob(X)
    assert found == pytest.approx(
        float((weights * log_prob).sum() + dist.Normal(0.0, 3.0).log_prob(values["m"])), abs=1e-9
    )


def test_a_program_for_a_fixed_number_of_data_is_refused_minibatches() -> None:
    with pytest.raises(PlanError, match="part of plate 'data'"):
        ppl_em.fit(fixed_size, X, method=SVI(max_steps=1, batch_size=5))


def test_a_subsample_size_that_the_program_declares_is_the_batch_size() -> None:
    sizes = []

    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(1.5), constraint=dist.constraints.positive)
        with pyro.plate("data", 20, subsample_size=5) as i:
            sizes.append(len(i))
            pyro.sample("x", dist.Normal(0.3, scale), obs=x[i])

    result = ppl_em.fit(model, X, method=SVI(max_steps=400, lr=3e-2))
    assert sizes.count(5) >= 400
    assert result.objective == pytest.approx(float(plain_optimum()), abs=0.05)


def batch_rate(x: Tensor) -> None:
    """A program for batches that knows the number of all data."""
    scale = pyro.param("scale", torch.tensor(1.5), constraint=dist.constraints.positive)
    with pyro.plate("data", 20, subsample_size=len(x)):
        pyro.sample("x", dist.Normal(0.3, scale), obs=x)


def plain_rate(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(1.5), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.3, scale), obs=x)


@pytest.mark.parametrize(
    ("model", "loader", "num_data"),
    [
        (batch_rate, [(X[:8],), (X[8:],)], None),
        (plain_rate, [(X[:8],), (X[8:],)], 20),
        (plain_rate, DataLoader(TensorDataset(X), batch_size=8), None),
    ],
    ids=["the plate tells", "num_data tells", "the data set tells"],
)
def test_a_loader_counts_its_data_in_full(model: Callable, loader: Any, num_data: int | None) -> None:
    first = X[:8]
    source = Source(model, (first,), {}, batch=True, time=None)
    from ppl_em.fitting import ENGINES
    from ppl_em.plan.plan import make_plan
    from ppl_em.planner import rule_lookup
    from ppl_em.trace.tracing import trace_program

    plan = make_plan(trace_program(source), ENGINES, rule_lookup, max_bytes=1e9, method="svi")
    batches = Loader(loader, source, 0, plan.program, num_data)
    assert batches.num_data == 20
    bound = Bound(plan, model, mean_field=True)
    values = {"scale": torch.tensor(0.8)}
    shares = [(share, b.size, float(sum_terms(bound.terms(b, values, [])))) for share, b in batches.all()]
    assert [s for _, s, _ in shares] == ([8, 12] if isinstance(loader, list) else [8, 8, 4])
    exact = float(dist.Normal(0.3, 0.8).log_prob(X).sum())
    assert sum(share * value for share, _, value in shares) == pytest.approx(exact, abs=BRUTE_FORCE)


def test_a_loader_of_unknown_size_asks_for_it() -> None:
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self) -> Any:
            return iter(X)

    loader = DataLoader(Stream(), batch_size=4)
    with pytest.raises(PlanError, match="num_data"):
        ppl_em.fit(plain_rate, loader, method=SVI(max_steps=2))
    result = ppl_em.fit(plain_rate, loader, method=SVI(max_steps=300, lr=3e-2, num_data=20))
    assert result.objective == pytest.approx(float(plain_optimum()), abs=0.05)
    assert result.num_observations == 20


def plain_optimum() -> Tensor:
    scale = (X - 0.3).square().mean().sqrt()
    return dist.Normal(0.3, scale).log_prob(X).sum()


def test_an_empty_loader_is_refused() -> None:
    with pytest.raises(DataError, match="no batches"):
        ppl_em.fit(plain_rate, DataLoader(TensorDataset(X[:0]), batch_size=4), method=SVI(max_steps=1, num_data=4))


def test_queries_take_what_fit_took() -> None:
    x = factor_data(30)
    loader = DataLoader(TensorDataset(x), batch_size=10)
    result = ppl_em.fit(factors, loader, method=SVI(max_steps=60, lr=1e-2))
    whole = result.log_prob(x)
    assert whole.shape == result.log_prob().shape == result.log_prob(loader).shape == (30,)
    assert float((whole - result.log_prob()).abs().mean()) < 1.0  # the same data, other draws
    value, error = result.estimate_log_likelihood(50)
    other, _ = result.estimate_log_likelihood(50, x)
    assert value == pytest.approx(other, abs=6 * error)


# The loop -----------------------------------------------------------------------------------------------------------


def test_seeds_reproduce() -> None:
    x = factor_data(40)
    method = SVI(max_steps=30, batch_size=10)
    first, second = (ppl_em.fit(factors, x, method=method, seed=3) for _ in range(2))
    assert torch.equal(first.history, second.history)
    assert first.objective == second.objective
    assert all(torch.equal(v, second.guide_params[n]) for n, v in first.guide_params.items())
    assert not torch.equal(first.history, ppl_em.fit(factors, x, method=method, seed=4).history)


def test_nothing_outside_is_touched(no_footprint: Callable[[], contextlib.AbstractContextManager[None]]) -> None:
    x = factor_data(20)
    with no_footprint():
        result = ppl_em.fit(factors, x, method=SVI(max_steps=5, batch_size=10, validation=0.2))
        result.log_prob(x[:3])
        result.posterior().sample(2)
        result.estimate_log_likelihood(3)


def test_iterate_leaves_the_random_state_to_its_caller() -> None:
    x = factor_data(20)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    drawn = [torch.rand(()) for state in ppl_em.iterate(factors, x, method=SVI(max_steps=2)) if state.step < 3]
    assert torch.equal(torch.stack(drawn[:3]), expected)


def test_history_and_status_of_a_full_run() -> None:
    result = ppl_em.fit(factors, factor_data(20), method=SVI(max_steps=12))
    assert len(result.history) == 13 and result.num_steps == 12
    assert result.status is ppl_em.Status.ALL_STEPS and not result.converged
    start = ppl_em.fit(factors, factor_data(20), method=SVI(max_steps=0))
    assert start.status is ppl_em.Status.EVALUATED and len(start.history) == 1


def test_early_stopping_keeps_what_was_best_on_held_out_data() -> None:
    torch.manual_seed(1)
    x = torch.randn(24, 30)

    class Wide(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(8, 200), torch.nn.ReLU(), torch.nn.Linear(200, 30))

    wide = Wide()

    def model(x: Tensor) -> None:
        pyro.module("wide", wide)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(8), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(wide.net(z), 0.3).to_event(1), obs=x)

    method = SVI(max_steps=2000, lr=1e-2, schedule="constant", validation=0.25, patience=3, check_every=10)
    result = ppl_em.fit(model, x, method=method)
    assert result.status is ppl_em.Status.HELD_OUT
    assert result.num_steps < 2000
    looks = list(result.held_out)
    assert result.held_out_bits_per_value == pytest.approx(-max(looks) / 30 / math.log(2), rel=1e-12)
    assert looks.index(max(looks)) == len(looks) - 1 - method.patience
    # The weights that came back are those of the best look: held-out data score as they did there.
    rows = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:6].sort().values
    again = float(result.log_prob(x[rows], num_particles=200).mean())
    assert abs(again - max(looks)) < abs(again - looks[-1])


def test_held_out_data_may_be_given() -> None:
    x = factor_data(60)
    result = ppl_em.fit(factors, x[:40], method=SVI(max_steps=200, validation=(x[40:],), check_every=20, lr=1e-2))
    assert len(result.held_out) == 10
    assert result.held_out[-1] > result.held_out[0]


class Exploding(torch.nn.Module):
    """Fine for a while, then no number."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.calls, self.limit = 0, limit

    def forward(self, z: Tensor) -> Tensor:
        self.calls += 1
        return self.weight + z + (math.nan if self.calls > self.limit else 0.0)


def test_a_loss_that_is_no_number_stops_with_the_site_named() -> None:
    net = Exploding(60)

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(net(z), 1.0), obs=x)

    result = ppl_em.fit(model, X, method=SVI(max_steps=500, check_every=10))
    assert result.status is ppl_em.Status.NON_FINITE
    assert "'x'" in result.detail
    assert 0 < result.num_steps < 60
    assert bool(torch.isfinite(result.params["net$$$weight"]))


def test_an_interrupt_returns_the_best_so_far() -> None:
    class Interrupting(Exploding):
        def forward(self, z: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == self.limit:
                raise KeyboardInterrupt
            return self.weight + z

    net = Interrupting(80)

    def model(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(net(z), 1.0), obs=x)

    result = ppl_em.fit(model, X, method=SVI(max_steps=500, check_every=10))
    assert result.status is ppl_em.Status.INTERRUPTED
    assert 0 < result.num_steps < 80
    assert math.isfinite(result.objective)


def test_a_callback_sees_every_step_and_may_stop() -> None:
    seen: list[Any] = []

    def watch(state: Any) -> None:
        seen.append(state)
        if state.step == 4:
            raise StopIteration

    result = ppl_em.fit(factors, factor_data(20), method=SVI(max_steps=50, callback=watch))
    assert [s.step for s in seen] == [0, 1, 2, 3, 4]
    assert result.status is ppl_em.Status.STOPPED and result.num_steps == 4


def test_several_starts_are_kept_and_the_best_returned() -> None:
    x = torch.cat([torch.randn(30, 2) - 2, torch.randn(30, 2) + 2])
    result = ppl_em.fit(gaussian_mixture, x, method=SVI(max_steps=40, lr=3e-2), restarts=3)
    assert len(result.restarts) == 3
    assert max(r.objective for r in result.restarts) == pytest.approx(result.objective, abs=EXACT)


def test_frozen_parameters_stay() -> None:
    result = ppl_em.fit(plain_rate, X, method=SVI(max_steps=20, lr=0.1), freeze=["scale"])
    assert float(result.params["scale"]) == 1.5


def test_the_importance_weighted_objective_is_tighter() -> None:
    x = factor_data(50)
    options: dict[str, Any] = {"max_steps": 300, "lr": 1e-2, "hidden": (), "evaluation_particles": 100}
    plain = ppl_em.fit(factors, x, method=SVI(**options))
    tight = ppl_em.fit(factors, x, method=SVI(loss="iwae", num_particles=8, **options))
    assert tight.history[-1] > plain.objective  # log of a mean against a mean of logs
    assert tight.history[-1] < float(tight.estimate_log_likelihood(500)[0]) + 5


def test_a_saved_fit_answers_on_given_data(tmp_path: Path) -> None:
    x = factor_data(20)
    result = ppl_em.fit(factors, x, method=SVI(max_steps=3))
    result.save(tmp_path / "fit")
    loaded = ppl_em.load(tmp_path / "fit", factors)
    assert loaded.objective == result.objective
    assert torch.equal(loaded.log_prob(x), result.log_prob(x))
    with pytest.raises(PplEmError, match="training data are not at hand"):
        loaded.log_prob()
