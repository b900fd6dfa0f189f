"""Stepwise and incremental EM: near full EM after one pass, the same optimum, an honest objective."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import ppl_em
from ppl_em import EM, Auto, Status
from ppl_em.errors import PlanError
from tests.unit.em import streamed_programs as programs
from tests.unit.em.streamed_programs import covariate, normals, three_kinds

X = three_kinds(600)


def stepwise(**more: Any) -> EM:
    return EM(variant="stepwise", **more)


def incremental(**more: Any) -> EM:
    return EM(variant="incremental", **more)


# stepwise ---------------------------------------------------------------------------------------------------


def test_one_pass_over_a_mixture_is_within_a_hundredth_of_a_nat_of_full_em() -> None:
    count = 100_000
    x = three_kinds(count)
    full = ppl_em.fit(normals, x, init="params", method="em")
    once = ppl_em.fit(normals, x, init="params", method=stepwise(passes=1))
    assert full.converged
    assert once.num_steps == 100
    assert -1e-6 <= (full.objective - once.objective) / count < 0.01


def classes(x: Tensor) -> None:
    """Three latent classes, six yes-or-no questions."""
    weights = pyro.param("weights", torch.ones(3) / 3, constraint=constraints.simplex)
    start = torch.tensor([[0.6], [0.5], [0.4]]) + 0.05 * torch.linspace(-1, 1, 6)
    yes = pyro.param("yes", start, constraint=constraints.unit_interval)
    with pyro.plate("people", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Bernoulli(yes[z]).to_event(1), obs=x)


def answers(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    yes = torch.rand(3, 6, generator=generator, dtype=torch.float64)
    z = torch.multinomial(torch.tensor([0.5, 0.3, 0.2]), count, True, generator=generator)
    return torch.bernoulli(yes[z], generator=generator)


def test_one_pass_over_latent_classes_is_within_a_hundredth_of_a_nat_of_full_em() -> None:
    count = 100_000
    x = answers(count)
    full = ppl_em.fit(classes, x, init="params", method="em")
    once = ppl_em.fit(classes, x, init="params", method=stepwise(passes=1, batch_size=500))
    assert full.converged
    assert (full.objective - once.objective) / count < 0.01


@pytest.mark.slow
def test_from_defaults_a_poor_start_is_not_kept() -> None:
    """Starts are compared on some of the data: a single one would end far below the best optimum."""
    x = three_kinds(10_000)
    full = ppl_em.fit(normals, x, init="params", method="em")
    loader = DataLoader(TensorDataset(x), batch_size=500)
    for fit in (
        ppl_em.fit(normals, loader, method=stepwise(passes=2)),
        ppl_em.fit(normals, x, method=stepwise(passes=2, batch_size=500)),
    ):
        assert (full.objective - fit.objective) / len(x) < 0.01


@pytest.mark.slow
def test_one_pass_over_chains_is_within_a_hundredth_of_a_nat_of_full_em() -> None:
    x = programs.symbols(10_000, 10)
    full = ppl_em.fit(programs.chains, x, init="params", method="em")
    once = ppl_em.fit(programs.chains, x, init="params", method=stepwise(passes=1, batch_size=100))
    assert full.converged
    assert (full.objective - once.objective) / len(x) < 0.01


def test_chains_from_a_loader() -> None:
    x = programs.symbols(4000, 6)
    loader = DataLoader(TensorDataset(x), batch_size=400)
    full = ppl_em.fit(programs.chains, x, init="params", method="em")
    some = ppl_em.fit(programs.chains, loader, init="params", method=stepwise(passes=3))
    assert (full.objective - some.objective) / len(x) < 0.01
    assert some.num_observations == len(x)


def test_priors_are_counted_once() -> None:
    """With few data the prior matters: counting it for every batch would take the fit elsewhere."""
    x = X[:60]
    full = ppl_em.fit(programs.precisions, x, init="params", method="em")
    some = ppl_em.fit(programs.precisions, x, init="params", method=stepwise(batch_size=20, passes=60))
    assert some.objective_name == "log_posterior"
    assert some.objective == pytest.approx(full.objective, abs=0.05)


def test_missing_entries_are_left_out_of_every_batch() -> None:
    plain = ppl_em.fit(programs.with_holes, X, init="params", method=EM(tol=1e-8))
    method = incremental(tol=1e-8, batch_size=200)
    some = ppl_em.fit(programs.with_holes, X, init=plain.params, method=method)
    assert some.objective == pytest.approx(plain.objective, abs=1e-6)
    for name, value in plain.params.items():
        torch.testing.assert_close(some.params[name], value, rtol=0, atol=1e-3)


def test_weights_of_data_go_with_their_batch() -> None:
    weights = torch.where(torch.arange(len(X)) % 3 == 0, 0.0, 1.5)
    full = ppl_em.fit(normals, X, init="params", method="em", weights=weights)
    some = ppl_em.fit(normals, X, init="params", method=stepwise(batch_size=100, passes=20), weights=weights)
    assert (full.objective - some.objective) / len(X) < 0.01


def test_least_squares_and_residual_scales() -> None:
    u, y = covariate(4000)
    full = ppl_em.fit(programs.lines, u, y, init="params", method="em")
    some = ppl_em.fit(programs.lines, u, y, init="params", method=stepwise(passes=5))
    assert (full.objective - some.objective) / len(u) < 0.01


def test_the_objective_is_that_of_all_data_at_the_returned_parameters() -> None:
    result = ppl_em.fit(normals, X, init="params", method=stepwise(passes=2, batch_size=50))
    assert result.status is Status.ALL_STEPS and not result.converged
    assert result.objective == pytest.approx(float(result.log_prob().sum()), abs=1e-8)
    assert float(result.history[-1]) == result.objective
    assert len(result.history) == result.num_steps + 1 == 25
    assert bool(torch.isfinite(result.history).all())


def test_interrupted_fits_are_evaluated_on_all_data() -> None:
    def stop(state: Any) -> None:
        if state.step == 7:
            raise KeyboardInterrupt

    result = ppl_em.fit(normals, X, init="params", method=stepwise(batch_size=50, callback=stop))
    assert result.status is Status.INTERRUPTED
    assert result.num_steps == 7
    assert result.objective == pytest.approx(float(result.log_prob().sum()), abs=1e-8)


def test_the_same_seed_gives_the_same_fit_and_another_another_order() -> None:
    fits = [ppl_em.fit(normals, X, init="params", method=stepwise(batch_size=50), seed=s) for s in (0, 0, 1)]
    assert torch.equal(fits[0].params["loc"], fits[1].params["loc"])
    assert not torch.equal(fits[0].params["loc"], fits[2].params["loc"])


def test_a_narrow_component_keeps_its_digits() -> None:
    """A component ten thousand times narrower than the distance between components."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2000, generator=generator, dtype=torch.float64)
    x = torch.where(torch.arange(2000) % 2 == 0, 1e4 + 0.01 * noise, noise)

    def two(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([9_999.0, 1.0]))
        scale = pyro.param("scale", torch.tensor([1.0, 1.0]), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.5, 0.5])))
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)

    method = stepwise(passes=20, batch_size=400, step_exponent=0.9)
    result = ppl_em.fit(two, x, init="params", method=method)
    full = ppl_em.fit(two, x, init="params", method="em")
    torch.testing.assert_close(result.params["scale"], full.params["scale"], rtol=0.05, atol=0)


def test_warm_up_leaves_the_start_alone() -> None:
    states = ppl_em.iterate(normals, X, init="params", method=stepwise(batch_size=50, warm_up=200, passes=1))
    moved = [not torch.equal(s.params["loc"], torch.tensor([-3.0, 0.5, 2.0])) for s in states]
    assert moved[:4] == [False] * 4 and all(moved[4:])


def test_a_fit_goes_on_where_another_ended() -> None:
    first = ppl_em.fit(normals, X, init="params", method=stepwise(batch_size=50, passes=2))
    second = ppl_em.fit(normals, X, init=first, method=stepwise(batch_size=50, passes=2))
    assert second._averages.steps == 48
    assert second._averages.num_data == 4 * len(X)
    assert second.objective >= first.objective - 1.0
    assert float((second.params["loc"] - first.params["loc"]).abs().max()) < 0.2


@pytest.mark.parametrize("program", [normals, programs.with_holes, programs.vectors, programs.precisions])
def test_a_batch_that_holds_all_data_is_em(program: Any) -> None:
    """The first batch has a weight of one: its M-step is that of EM."""
    plain = ppl_em.fit(program, X, init="params", method=EM(max_steps=1, tol=0))
    one = ppl_em.fit(program, X, init="params", method=stepwise(batch_size=len(X), passes=1))
    assert one.objective == pytest.approx(plain.objective, abs=1e-8)
    for name, value in {**plain.params, **plain.point_estimates}.items():
        torch.testing.assert_close({**one.params, **one.point_estimates}[name], value)


@pytest.mark.parametrize("exponent", [0.5, 0.2, 1.01, math.nan])
def test_step_exponents_whose_averages_do_not_converge_are_refused(exponent: float) -> None:
    with pytest.raises(PlanError, match="step_exponent"):
        stepwise(step_exponent=exponent)


def test_variational_bayes_takes_all_data_at_once() -> None:
    with pytest.raises(PlanError, match='globals="variational"'):
        ppl_em.explain(programs.precisions, X, method=stepwise(globals="variational"))


@pytest.mark.parametrize(
    ("settings", "match"),
    [({"variant": "online"}, "variant"), ({"batch_size": 0}, "batch_size"), ({"passes": 0}, "passes")],
)
def test_settings_are_checked(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(PlanError, match=match):
        EM(**settings)


@pytest.mark.parametrize(
    ("program", "data", "match"),
    [
        (programs.gate, covariate(200), "gate: newton has no statistics of fixed size"),
        (programs.heavy_tails, (X,), "goes through the data one by one"),
        (programs.exposures, covariate(200), "rate"),
    ],
)
@pytest.mark.parametrize("variant", ["stepwise", "incremental"])
def test_parameters_without_sums_are_refused_by_name(
    program: Any, data: tuple[Tensor, ...], match: str, variant: Any
) -> None:
    with pytest.raises(PlanError, match=match):
        ppl_em.fit(program, *data, init="params", method=EM(variant=variant))


def test_the_plan_says_how() -> None:
    text = str(ppl_em.explain(normals, X, method=stepwise(batch_size=50, step_exponent=0.7)))
    assert "data=600 in parts of 50" in text and "stepwise" in text and "(t + 0)^-0.7" in text
    loader = DataLoader(TensorDataset(X), batch_size=100)
    text = str(ppl_em.explain(normals, loader, method=stepwise()))
    assert "batches of a loader (data=100 each)" in text and "stepwise" in text


# incremental ------------------------------------------------------------------------------------------------


def test_incremental_em_ends_where_em_ends() -> None:
    x = X[:200]
    full = ppl_em.fit(normals, x, init="params", method=EM(tol=1e-8))
    some = ppl_em.fit(normals, x, init="params", method=incremental(tol=1e-8, batch_size=100))
    assert some.status is Status.CONVERGED
    assert some.objective == pytest.approx(full.objective, abs=1e-6)
    for name, value in full.params.items():
        torch.testing.assert_close(some.params[name], value, rtol=1e-3, atol=1e-3)
    assert some.objective == pytest.approx(float(some.log_prob().sum()), abs=1e-8)


@pytest.mark.parametrize("program", [programs.normals, programs.precisions])
def test_every_incremental_step_raises_the_free_energy(program: Any) -> None:
    """F(q, θ) = Σ_i E_qi[log p(x_i, z_i; θ)] + H(q_i) + log prior, from the bound of every part by itself."""
    x, size = X[:200], 40
    method = incremental(tol=0, batch_size=size, max_steps=14)
    states = list(ppl_em.iterate(program, x, init="params", method=method))
    start = ppl_em.fit(program, x, init="params", method=EM(max_steps=0))
    parts = [start.with_data(part) for part in x.split(size)]
    q = [states[0].params] * len(parts)

    def free_energy(params: dict[str, Tensor], log_prior: float) -> float:
        return sum(p.terms(params, qi)["elbo"] for p, qi in zip(parts, q, strict=True)) + log_prior

    values = [free_energy(states[0].params, states[0].log_prior)]
    for before, state in zip(states, states[1:], strict=False):
        if before.step >= 1:  # after a first step of EM, one part at a time
            q[(before.step - 1) % len(parts)] = before.params
        values.append(free_energy(state.params, state.log_prior))
    falls = [a - b for a, b in zip(values, values[1:], strict=False)]
    assert max(falls) < 1e-8
    assert values[-1] > values[0] + 1


def test_incremental_em_needs_statistics_that_can_be_told_apart() -> None:
    loader = DataLoader(TensorDataset(X), batch_size=100)
    kept = ppl_em.fit(normals, loader, init="params", method=incremental(max_steps=30, tol=0))
    whole = ppl_em.fit(normals, X, init="params", method=incremental(max_steps=30, tol=0, batch_size=100))
    torch.testing.assert_close(kept.params["loc"], whole.params["loc"])
    with pytest.raises(PlanError, match="too large to be kept"):
        ppl_em.fit(normals, loader, init="params", method=Auto(em=incremental(), memory_bytes=1e4))
    with pytest.raises(PlanError, match="residuals"):
        ppl_em.fit(programs.lines, *covariate(200), init="params", method=incremental())
