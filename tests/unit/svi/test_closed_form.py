"""Closed forms beside gradient steps: exact EM where all is summed, averaged statistics where steps see a part."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_em
from ppl_em.methods import EM, SVI
from tests.tolerances import BRUTE_FORCE
from tests.unit.svi.programs import factor_data, factors, gaussian_mixture


def two_clusters() -> Tensor:
    return torch.cat([torch.randn(70, 2) - 1.5, 0.5 * torch.randn(50, 2) + 1.5])


START = {"weights": [0.4, 0.6], "loc": [[-1.0, 0.0], [1.0, 0.5]], "scale": [[1.0, 1.0], [1.2, 0.9]]}


def test_where_all_is_summed_and_seen_the_steps_are_those_of_em() -> None:
    x = two_clusters()
    init = {n: torch.tensor(v) for n, v in START.items()}
    em = ppl_em.fit(gaussian_mixture, x, init=init, method=EM(max_steps=8, tol=0, accelerate=False))
    seen: list[float] = []
    method = SVI(max_steps=8, callback=lambda state: seen.append(state.step))
    svi = ppl_em.fit(gaussian_mixture, x, init=init, method=method)
    assert svi.plan.rule_of("loc") == "closed form"
    for name, value in em.params.items():
        assert torch.allclose(svi.params[name], value, atol=BRUTE_FORCE)
    assert svi.objective == pytest.approx(em.objective, abs=BRUTE_FORCE)


def test_weights_of_data_count_in_the_statistics() -> None:
    x = two_clusters()
    weights = torch.ones(len(x))
    weights[:30] = 2.0
    init = {n: torch.tensor(v) for n, v in START.items()}
    twice = ppl_em.fit(gaussian_mixture, torch.cat([x[:30], x]), init=init, method=SVI(max_steps=5))
    weighted = ppl_em.fit(gaussian_mixture, x, init=init, weights=weights, method=SVI(max_steps=5))
    for name, value in twice.params.items():
        assert torch.allclose(weighted.params[name], value, atol=BRUTE_FORCE)


def test_statistics_of_minibatches_are_averaged() -> None:
    x = two_clusters()
    em = ppl_em.fit(gaussian_mixture, x)
    svi = ppl_em.fit(gaussian_mixture, x, method=SVI(max_steps=200, batch_size=30))
    assert svi.objective == pytest.approx(em.objective, abs=1e-2 * len(x))
    one = SVI(max_steps=200, batch_size=30, closed_form=False, lr=1e-6)
    assert svi.objective > ppl_em.fit(gaussian_mixture, x, method=one, init="params").objective + 10


def prior_of_codes(x: Tensor) -> None:
    """Codes whose prior has parameters of its own: known posterior, known maximum."""
    loc = pyro.param("loc", torch.zeros(()))
    scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, scale))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


@pytest.mark.parametrize("batch_size", [None, 60])
def test_parameters_of_a_sampled_latents_prior(batch_size: int | None) -> None:
    x = 1.0 + 1.5 * torch.randn(200)
    method = SVI(max_steps=800, lr=2e-2, hidden=(), batch_size=batch_size)
    result = ppl_em.fit(prior_of_codes, x, method=method)
    assert result.plan.rule_of("loc") == result.plan.rule_of("scale") == "closed form"
    assert float(result.params["loc"]) == pytest.approx(float(x.mean()), abs=0.05)
    assert float(result.params["scale"]) == pytest.approx(float((x.var(correction=0) - 0.25).sqrt()), abs=0.05)


def test_what_has_no_closed_form_here_takes_gradient_steps_and_says_why() -> None:
    plan = ppl_em.explain(prior_of_codes, torch.randn(20), method=SVI(closed_form=False))
    assert plan.rule_of("loc") == "gradient"
    assert "closed forms were not asked for" in str(plan)
    plan = ppl_em.explain(prior_of_codes, torch.randn(20), method=SVI(loss="iwae", num_particles=3))
    assert plan.rule_of("loc") == "gradient"

    def regression(x: Tensor, y: Tensor) -> None:
        w = pyro.param("w", torch.zeros(2))
        scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, scale), obs=y)

    plan = ppl_em.explain(regression, torch.randn(20, 2), torch.randn(20), method="svi")
    assert plan.rule_of("w") == plan.rule_of("scale") == "gradient"


def test_a_program_without_such_parameters_is_left_alone() -> None:
    result = ppl_em.fit(factors, factor_data(20), method=SVI(max_steps=3))
    assert result.params == {}


def two_sources(x: Tensor, y: Tensor) -> None:
    """A mean seen by many data, by a few outside their plate that count threefold, and by data with weights of their own."""
    loc = pyro.param("loc", torch.zeros(()))
    with pyro.poutine.scale(scale=3.0), pyro.plate("others", len(y)):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)
    with pyro.plate("data", len(x), subsample_size=10) as i, pyro.poutine.scale(scale=1.0 + (x[i, 1] > 0).double()):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[i, 0])


@pytest.mark.parametrize("batch_size", [None, 60])
def test_sites_that_share_a_parameter_count_by_their_scales(batch_size: int | None) -> None:
    x, y = torch.randn(60, 2) + 2.0, torch.randn(8) - 3.0
    method = SVI(max_steps=150, batch_size=batch_size)
    result = ppl_em.fit(two_sources, x, y, method=method)
    assert result.plan.rule_of("loc") == "closed form"
    counts = torch.cat([1.0 + (x[:, 1] > 0).double(), torch.full((8,), 3.0)])
    best = float((counts * torch.cat([x[:, 0], y])).sum() / counts.sum())
    assert float(result.params["loc"]) == pytest.approx(best, abs=1e-9 if batch_size == 60 else 0.15)


def test_a_closed_form_that_ceases_to_hold_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from ppl_em.em.closed_form import ClosedForm, Refused

    whole, calls = ClosedForm.fit, []

    def fails_later(self: ClosedForm, *args: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise Refused("it does not")
        return whole(self, *args)

    monkeypatch.setattr(ClosedForm, "fit", fails_later)
    x = torch.randn(20)
    with pytest.warns(UserWarning, match="loc.*closed form did not hold"):
        result = ppl_em.fit(prior_of_codes, x, method=SVI(max_steps=30))
    assert "loc" in result.detail
