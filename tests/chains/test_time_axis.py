"""Long chains: a time axis is traced in a few steps whatever its length, and answers as the loop does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import Predictive, TraceEnum_ELBO, config_enumerate
from torch import Tensor

import ppl_em
from tests.tolerances import BRUTE_FORCE, STATISTICAL

DRAWS = 200


def program(steps: Callable[[int], Any], count: list[int] | None = None) -> Callable[[Tensor], None]:
    """A Gaussian HMM whose loop over time is ``steps(T)``; ``count`` counts how often its body runs."""

    def model(x: Tensor) -> None:
        dtype = x.dtype
        init = pyro.param("init", torch.tensor([0.6, 0.3, 0.1], dtype=dtype), constraint=constraints.simplex)
        start = 0.05 + 0.85 * torch.eye(3, dtype=dtype)
        trans = pyro.param("trans", start, constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([-1.0, 0.5, 2.0], dtype=dtype))
        scale = torch.tensor(0.8, dtype=dtype)
        z: Any = None
        for t in steps(len(x)):
            if count is not None:
                count.append(1)
            z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
            pyro.sample(f"x_{t}", dist.Normal(loc[z], scale), obs=x[t])

    return model


def series(steps: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    state = (torch.rand(steps, generator=generator) < 0.1).cumsum(0) % 3
    return torch.tensor([-1.0, 0.5, 2.0])[state] + 0.8 * torch.randn(steps, generator=generator)


def plain(size: int) -> Any:
    return pyro.markov(range(size))


@pytest.mark.parametrize("steps", [50, 2000])
def test_the_body_runs_equally_often_for_any_length(steps: int) -> None:
    count: list[int] = []
    x = series(steps)
    init = {"loc": torch.tensor([-1.1, 0.4, 1.9])}
    result = ppl_em.fit(program(ppl_em.markov, count), x, init=init, restarts=1, method=ppl_em.EM(max_steps=3))
    posterior = result.posterior()
    _ = posterior.path("z"), posterior.mode(), posterior.sample(2, seed=0), posterior.entropy(), result.log_prob()
    assert len(count) <= 40


@pytest.mark.parametrize("method", [ppl_em.EM(max_steps=0), ppl_em.EM(max_steps=4, tol=0)])
def test_the_axis_is_the_loop(method: ppl_em.EM) -> None:
    x = series(60)
    axis, loop = (
        ppl_em.fit(program(steps), x, init="params", restarts=1, method=method) for steps in (ppl_em.markov, plain)
    )
    assert axis.plan.engine_of("z") == loop.plan.engine_of("z") == "chain"
    torch.testing.assert_close(axis.history, loop.history, atol=BRUTE_FORCE, rtol=0)
    for name, value in loop.params.items():
        torch.testing.assert_close(axis.params[name], value, atol=BRUTE_FORCE, rtol=0)
    mine, theirs = axis.posterior(), loop.posterior()
    torch.testing.assert_close(mine.path("z").probs, theirs.path("z").probs, atol=BRUTE_FORCE, rtol=0)
    torch.testing.assert_close(mine.entropy(), theirs.entropy(), atol=BRUTE_FORCE, rtol=0)
    assert torch.equal(mine.mode()["z"], torch.stack([theirs.mode()[f"z_{t}"] for t in range(60)]))
    torch.testing.assert_close(mine.pairwise("z_3", "z_9"), theirs.pairwise("z_3", "z_9"), atol=BRUTE_FORCE, rtol=0)
    torch.testing.assert_close(mine.marginal("z_7").probs, theirs.marginal("z_7").probs, atol=BRUTE_FORCE, rtol=0)


def test_outside_of_a_fit_the_axis_is_pyros() -> None:
    x = series(12)
    loss = TraceEnum_ELBO(max_plate_nesting=0)
    with pyro.get_param_store().scope():
        wanted = -loss.loss(config_enumerate(program(ppl_em.markov)), lambda x: None, x)
    result = ppl_em.fit(program(ppl_em.markov), x, init="params", restarts=1, method=ppl_em.EM(max_steps=0))
    assert result.log_likelihood == pytest.approx(wanted, abs=BRUTE_FORCE)


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "size"), [(range, 200), (plain, 1000)])
def test_a_long_loop_is_a_chain(steps: Callable[[int], Any], size: int) -> None:
    """200 steps without ``pyro.markov``, 1000 with it."""
    x = series(size)
    method = ppl_em.EM(max_steps=1, tol=0)
    result = ppl_em.fit(program(steps), x, init="params", restarts=1, method=method)
    assert result.plan.engine_of("z") == result.plan.engine_of(f"z_{size - 1}") == "chain"
    same = ppl_em.fit(program(ppl_em.markov), x, init="params", restarts=1, method=method)
    torch.testing.assert_close(result.history, same.history, atol=BRUTE_FORCE, rtol=0)


def test_two_axes_are_independent() -> None:
    def model(x: Tensor) -> None:
        loc, stay = pyro.param("loc", torch.tensor([-1.0, 1.0])), torch.tensor([[0.9, 0.1], [0.2, 0.8]])
        for name in ("a", "b"):
            z: Any = 0
            for t in ppl_em.markov(len(x)):
                z = pyro.sample(f"{name}_{t}", dist.Categorical(stay[z]))
                pyro.sample(f"x{name}_{t}", dist.Normal(loc[z], 1.0), obs=x[t] if name == "a" else -x[t])

    posterior = ppl_em.fit(model, series(20), init="params", restarts=1, method=ppl_em.EM(max_steps=1)).posterior()
    product = posterior.marginal("a_3").probs[:, None] * posterior.marginal("b_5").probs
    torch.testing.assert_close(posterior.pairwise("a_3", "b_5"), product)
    assert set(posterior.mode()) == {"a", "b"}


def test_float32_does_not_drift() -> None:
    """Log Z of 100,000 steps, relative to float64 at the same parameters and data."""
    x = series(100_000).float()
    found = {}
    for dtype in (torch.float32, torch.float64):
        torch.set_default_dtype(dtype)
        result = ppl_em.fit(
            program(ppl_em.markov), x.to(dtype), init="params", restarts=1, method=ppl_em.EM(max_steps=0)
        )
        found[dtype] = result.log_likelihood
        assert result.plan.engine_of("z") == "chain"
    assert found[torch.float32] == pytest.approx(found[torch.float64], rel=1e-6)


def test_guide_and_predictions_of_an_axis() -> None:
    x = series(12)
    result = ppl_em.fit(program(ppl_em.markov), x, init="params", restarts=1, method=ppl_em.EM(max_steps=2))
    smoothed = result.posterior().path("z").probs
    drawn = Predictive(result.model, guide=result.guide, num_samples=DRAWS, parallel=False)(x)
    for t in (0, 1, 7, 11):
        share = (drawn[f"z_{t}"].reshape(DRAWS, 1) == torch.arange(3)).double().mean(0)
        error = (smoothed[t] * (1 - smoothed[t]) / DRAWS).sqrt()
        assert bool(((share - smoothed[t]).abs() <= STATISTICAL * error + 5 / DRAWS).all())
    predicted = result.predict(num_samples=DRAWS, seed=1)
    assert set(predicted) == {f"x_{t}" for t in range(12)}
    for t in (0, 6, 11):
        mean = (smoothed[t] * result.params["loc"]).sum()
        error = predicted[f"x_{t}"].std() / DRAWS**0.5
        assert abs(float(predicted[f"x_{t}"].mean() - mean)) <= STATISTICAL * float(error)


def test_predictions_from_the_prior_of_an_axis() -> None:
    x = series(8)
    result = ppl_em.fit(program(ppl_em.markov), x, init="params", restarts=1, method=ppl_em.EM(max_steps=0))
    predicted = result.predict(num_samples=DRAWS, latents="prior", seed=2)
    state = result.params["init"]
    for t in range(3):
        mean = (state * result.params["loc"]).sum()
        error = predicted[f"x_{t}"].std() / DRAWS**0.5
        assert abs(float(predicted[f"x_{t}"].mean() - mean)) <= STATISTICAL * float(error)
        state = state @ result.params["trans"]
