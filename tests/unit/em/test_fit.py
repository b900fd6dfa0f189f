"""How a fit runs and ends: history, statuses, settings, starts, seeds."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ppl_em
from ppl_em import EM, Status
from tests.tolerances import ASCENT, BRUTE_FORCE
from tests.unit.programs import chain, mixture, two_kinds

X = two_kinds()


def plain(max_steps: int, tol: float = 0.0) -> EM:
    return EM(max_steps=max_steps, tol=tol, accelerate=False)


def test_no_steps_evaluate_the_start() -> None:
    result = ppl_em.fit(mixture, X, init="params", method=EM(max_steps=0))
    expected = dist.MixtureSameFamily(
        dist.Categorical(torch.ones(2) / 2), dist.Normal(torch.tensor([-1.0, 1.0]), torch.ones(2))
    ).log_prob(X)
    assert result.objective == pytest.approx(float(expected.sum()), abs=BRUTE_FORCE)
    assert result.status is Status.EVALUATED
    assert not result.converged
    assert result.num_steps == 0
    assert result.history.tolist() == [result.objective]
    assert result.params["loc"].tolist() == [-1.0, 1.0]


def test_tol_zero_runs_all_steps() -> None:
    result = ppl_em.fit(mixture, X, init="params", method=plain(7))
    assert result.num_steps == 7
    assert result.status is Status.ALL_STEPS
    assert not result.converged
    assert result.history.dtype == torch.float64 and result.history.shape == (8,)


def test_running_out_of_steps_is_not_convergence() -> None:
    result = ppl_em.fit(mixture, X, init="params", method=plain(3, tol=1e-9))
    assert result.status is Status.OUT_OF_STEPS
    assert not result.converged
    assert "ran out of steps" in str(result.status)


@pytest.mark.parametrize("accelerate", [False, True])
def test_a_converged_fit_is_at_a_fixed_point(accelerate: bool) -> None:
    result = ppl_em.fit(mixture, X, init="params", method=EM(tol=1e-8, accelerate=accelerate))
    assert result.converged
    again = ppl_em.fit(mixture, X, init=result, method=plain(300))
    assert again.objective - result.objective < 1e-7
    assert bool((result.history.diff() >= -ASCENT * (1 + abs(result.objective))).all())


def test_acceleration_reaches_the_same_optimum_in_fewer_evaluations() -> None:
    slow = torch.cat([torch.randn(200, generator=torch.Generator().manual_seed(1)), X])
    one = ppl_em.fit(mixture, slow, init="params", method=EM(tol=1e-9, accelerate=False, max_steps=20_000))
    two = ppl_em.fit(mixture, slow, init="params", method=EM(tol=1e-9, accelerate=True, max_steps=20_000))
    assert one.converged and two.converged
    assert two.objective == pytest.approx(one.objective, abs=1e-6)
    assert two.num_steps < one.num_steps / 2
    assert len(two.history) == two.num_steps + 1  # each evaluation of the map counts


def test_the_estimated_remaining_gain_is_honest() -> None:
    """What the fit calls converged at ``tol`` gains no more than a few ``tol`` when it is continued."""
    for tol in (1e-2, 1e-5):
        result = ppl_em.fit(mixture, X, init="params", method=plain(100_000, tol=tol))
        assert result.converged
        best = ppl_em.fit(mixture, X, init=result, method=EM(tol=1e-10))
        assert best.objective - result.objective < 3 * tol


def test_the_same_seed_gives_the_same_fit() -> None:
    one, two = (ppl_em.fit(mixture, X, seed=3, restarts=3) for _ in range(2))
    assert torch.equal(one.history, two.history)
    assert all(torch.equal(one.params[n], two.params[n]) for n in one.params)
    assert [r.objective for r in one.restarts] == [r.objective for r in two.restarts]
    assert one.seed == 3


def test_another_seed_starts_elsewhere() -> None:
    one, two = (ppl_em.fit(mixture, X, seed=s, restarts=1, method=plain(0)) for s in (0, 1))
    assert not torch.equal(one.params["loc"], two.params["loc"])


def test_all_starts_are_kept_and_the_best_is_returned() -> None:
    result = ppl_em.fit(mixture, X, restarts=6)
    assert len(result.restarts) == 6
    sound = [r for r in result.restarts if r.status is not Status.DEGENERATE]
    assert result.objective == max(r.objective for r in sound)
    assert {r.kind for r in result.restarts} == {"kmeans", "random", "params", "quantile"}
    assert not any(r.screened for r in result.restarts)
    for restart in result.restarts:
        there = ppl_em.fit(mixture, X, init=dict(restart.params), method=EM(max_steps=0))
        assert there.objective == pytest.approx(restart.objective, abs=BRUTE_FORCE)


def test_by_default_ten_starts_are_screened_and_the_best_are_finished() -> None:
    result = ppl_em.fit(mixture, two_kinds(300, seed=5))
    assert len(result.restarts) == 10
    assert result.converged
    for restart in result.restarts:
        assert restart.screened == (restart.status is Status.OUT_OF_STEPS)
        assert not restart.screened or restart.num_steps in (8, 25)


def test_screening_counts_towards_the_number_of_steps() -> None:
    result = ppl_em.fit(mixture, X, method=plain(40))
    assert result.num_steps == 40
    assert result.history.shape == (41,)
    assert bool((result.history.diff() >= -1e-9).all())
    assert result.status is Status.ALL_STEPS


@pytest.mark.parametrize("init", ["params", {"loc": [-2.0, 2.0]}])
def test_given_values_are_one_start(init: object) -> None:
    result = ppl_em.fit(mixture, X, init=init, method=plain(0))
    assert len(result.restarts) == 1
    expected = [-1.0, 1.0] if init == "params" else [-2.0, 2.0]
    assert result.params["loc"].tolist() == expected


def test_values_that_are_not_given_are_the_programs_own() -> None:
    result = ppl_em.fit(mixture, X, init={"loc": [-2.0, 2.0]}, method=plain(0))
    assert result.params["weights"].tolist() == [0.5, 0.5]


def test_a_result_is_continued() -> None:
    whole = ppl_em.fit(mixture, X, init="params", method=plain(10))
    half = ppl_em.fit(mixture, X, init="params", method=plain(5))
    rest = ppl_em.fit(mixture, X, init=half, method=plain(5))
    torch.testing.assert_close(torch.cat([half.history, rest.history[1:]]), whole.history)
    for name, value in whole.params.items():
        torch.testing.assert_close(rest.params[name], value)


def test_frozen_parameters_stay_and_the_rest_is_fitted_given_them() -> None:
    result = ppl_em.fit(mixture, X, init={"scale": [0.5, 2.0]}, freeze="scale")
    assert result.params["scale"].tolist() == [0.5, 2.0]
    assert result.plan.rule_of("scale") == "frozen"
    assert result.num_parameters == 1 + 2
    leaves = {n: v.clone().requires_grad_(n == "loc") for n, v in result.params.items()}
    ppl_em.em.e_step.objective(result.plan, leaves).backward()
    assert float(leaves["loc"].grad.abs().max()) < 1e-3


def test_everything_frozen_evaluates() -> None:
    result = ppl_em.fit(mixture, X, init="params", freeze=["weights", "loc", "scale"])
    assert result.num_parameters == 0
    assert result.params["loc"].tolist() == [-1.0, 1.0]


def test_weights_are_duplicated_data() -> None:
    weights = torch.randint(0, 4, (len(X),), generator=torch.Generator().manual_seed(2))
    repeated = X.repeat_interleave(weights)
    one = ppl_em.fit(mixture, X, weights=weights, init="params", method=plain(12))
    two = ppl_em.fit(mixture, repeated, init="params", method=plain(12))
    torch.testing.assert_close(one.history, two.history)
    for name, value in two.params.items():
        torch.testing.assert_close(one.params[name], value)
    assert one.log_prob().shape == X.shape  # the density of each datum, whatever it counted
    assert float((one.log_prob() * weights).sum()) == pytest.approx(one.objective)


def test_a_collapsing_component_is_named() -> None:
    x = torch.cat([X, torch.tensor([40.0])])
    start = {"loc": [1.0, 40.0], "scale": [1.5, 0.5], "weights": [0.9, 0.1]}
    result = ppl_em.fit(mixture, x, init=start, method=plain(50))
    assert result.status is Status.DEGENERATE
    assert not result.converged
    assert "scale of site 'x'" in result.detail and "z=1" in result.detail
    assert math.isfinite(result.objective)
    assert bool(torch.isfinite(result.params["scale"]).all())


def test_a_degenerate_start_does_not_win() -> None:
    x = torch.cat([X, torch.tensor([40.0, 40.0])])
    result = ppl_em.fit(mixture, x, restarts=10)
    sound = [r for r in result.restarts if r.status is Status.CONVERGED]
    if sound:
        assert result.status is Status.CONVERGED
        assert result.objective == max(r.objective for r in sound)
    else:
        assert result.status is Status.DEGENERATE


def test_columns_of_very_different_size_are_not_a_collapse() -> None:
    def vectors(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2, 2) + torch.tensor([[-1.0], [1.0]]) * x.std(0))
        scale = pyro.param("scale", x.std(0).repeat(2, 1), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)

    y = torch.stack([1e6 * two_kinds(80, 1), 1e-6 * two_kinds(80, 2)], 1)
    result = ppl_em.fit(vectors, y, restarts=2)
    assert result.converged


def test_a_rate_on_the_boundary_stays_a_valid_value() -> None:
    def zeros(x: Tensor) -> None:
        rate = pyro.param("rate", torch.ones(2), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
            pyro.sample("x", dist.Poisson(rate[z]), obs=x)

    result = ppl_em.fit(zeros, torch.zeros(5), restarts=1)
    assert bool((result.params["rate"] > 0).all())
    assert result.objective == pytest.approx(0.0, abs=1e-6)
    result.write_params()


@pytest.mark.parametrize("e_step", ["hard", "sample"])
def test_other_e_steps_end_near_the_same_place_where_components_are_apart(e_step: str) -> None:
    x = torch.cat([X.clamp(-1.5, 1.0), 20 + X.clamp(-1.5, 1.0)])
    exact = ppl_em.fit(mixture, x, init={"loc": [0.0, 20.0]})
    other = ppl_em.fit(mixture, x, init={"loc": [0.0, 20.0]}, method=EM(max_steps=20, tol=0, e_step=e_step))
    torch.testing.assert_close(other.params["loc"], exact.params["loc"], atol=1e-6, rtol=0)
    # The objective that is reported is the log-likelihood at the parameters returned.
    again = ppl_em.fit(mixture, x, init=other, method=EM(max_steps=0))
    assert other.objective == pytest.approx(again.objective, abs=BRUTE_FORCE)


def test_float32_programs_run_in_float32_and_end() -> None:
    torch.set_default_dtype(torch.float32)  # the fixture sets it back
    result = ppl_em.fit(mixture, X.float(), init="params", method=EM(tol=1e-12, max_steps=3000))
    assert result.params["loc"].dtype == torch.float32
    assert result.status is Status.CONVERGED
    torch.set_default_dtype(torch.float64)
    reference = ppl_em.fit(mixture, X, init="params")
    assert result.objective == pytest.approx(reference.objective, abs=1e-3)


def test_starts_in_single_precision_do_not_coarsen_a_program_in_double() -> None:
    result = ppl_em.fit(mixture, X, init={"loc": torch.tensor([-1.0, 1.0], dtype=torch.float32)})
    assert result.params["loc"].dtype == torch.float64
    assert result.objective == pytest.approx(ppl_em.fit(mixture, X, init="params").objective, abs=1e-6)


def test_parameters_in_single_precision_end_on_data_in_double() -> None:
    """Rounding of the parameters leads EM round a cycle of gains, none of which is a gain."""

    def single(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([0.0, 4.0], dtype=torch.float32))
        scale = pyro.param("scale", torch.tensor([1.0, 0.7], dtype=torch.float32), constraint=constraints.positive)
        weights = pyro.param("weights", torch.tensor([0.6, 0.4], dtype=torch.float32), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)

    for seed in range(8):
        torch.manual_seed(seed)
        x = torch.where(torch.rand(250) < 0.6, torch.randn(250), 4 + 0.7 * torch.randn(250))
        result = ppl_em.fit(single, x, init="params", method=EM(max_steps=200))
        assert result.status is Status.CONVERGED, (seed, result.history[-4:])


def test_float32_data_with_float64_parameters_are_computed_in_float64() -> None:
    single = X.float()
    mixed = ppl_em.fit(mixture, single, init="params", method=plain(3))
    double = ppl_em.fit(mixture, single.double(), init="params", method=plain(3))
    torch.testing.assert_close(mixed.history, double.history, atol=BRUTE_FORCE, rtol=0)


def test_a_chain_fits_too() -> None:
    result = ppl_em.fit(chain, two_kinds(30) - 1.5, restarts=2)
    assert result.converged
    assert result.plan.engine_of("z") == "chain"
    assert result.num_observations == 30


def test_no_latents_is_plain_maximum_likelihood() -> None:
    def normal(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    result = ppl_em.fit(normal, X)
    assert result.converged
    assert float(result.params["loc"]) == pytest.approx(float(X.mean()), abs=1e-12)
    assert float(result.params["scale"]) == pytest.approx(float(X.std(correction=0)), abs=1e-12)
    assert "no latents" in str(result.plan) and "maximum likelihood" in str(result.plan)
    assert len(result.restarts) == 1
