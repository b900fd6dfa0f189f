"""Guides: what is wrong with a user's is said once; the automatic one is an ordinary Pyro guide."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoDelta, AutoNormal
from torch import Tensor, nn
from torch.distributions import constraints

import ppl_em
from ppl_em import guide_for
from ppl_em.errors import ModelError
from ppl_em.svi.families import variational_family
from tests.unit.svi.programs import factor_data, factors

SHORT = ppl_em.SVI(max_steps=2)
X = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).exp()


def rates(x: Tensor) -> None:
    """A positive latent for each row."""
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Exponential(u.unsqueeze(-1)).expand([len(x), 2]).to_event(1), obs=x)


def right(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("u", dist.LogNormal(pyro.param("m", torch.zeros(())), 0.5))


def missing(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.param("m", torch.zeros(()))


def invented(x: Tensor) -> None:
    right(x)
    pyro.sample("v", dist.Normal(0.0, 1.0))


def observed(x: Tensor) -> None:
    right(x)
    pyro.sample("x", dist.Normal(0.0, 1.0))


def no_plate(x: Tensor) -> None:
    pyro.sample("u", dist.LogNormal(0.0, 0.5))


def too_wide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("u", dist.LogNormal(torch.zeros(3), 0.5).to_event(1))


def other_support(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("u", dist.Normal(5.0, 0.01))  # no draw is ever negative, but the density is over all numbers


WRONG: list[tuple[Callable[[Tensor], None], str, str]] = [
    (missing, "u", "leaves out"),
    (invented, "v", "does not have"),
    (observed, "x", "observes"),
    (no_plate, "u", "shape"),
    (too_wide, "u", "shape"),
    (other_support, "u", "support"),
]


@pytest.mark.parametrize(("guide", "site", "words"), WRONG, ids=[g.__name__ for g, _, _ in WRONG])
def test_a_wrong_guide_gets_one_clear_error(guide: Callable, site: str, words: str) -> None:
    with pytest.raises(ModelError, match=words) as error:
        ppl_em.fit(rates, X, guide=guide, method=SHORT)
    assert f"'{site}'" in str(error.value)
    assert str(error.value).count("Try ") == 1


def test_the_right_guide_is_taken() -> None:
    result = ppl_em.fit(rates, X, guide=right, method=ppl_em.SVI(max_steps=50, lr=5e-2))
    assert result.plan.engine_of("u") == "guide"
    assert set(result.guide_params) == {"m"}
    assert result.objective > result.history[0]
    assert float(result.posterior().marginal("u").base_dist.loc[0]) == pytest.approx(float(result.guide_params["m"]))


@pytest.mark.parametrize("auto", [AutoNormal, AutoDelta])
def test_pyros_own_guides_are_honoured(auto: Callable[..., Any]) -> None:
    def regression(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    x = torch.randn(40, 2)
    y = x @ torch.tensor([1.0, -2.0]) + 0.5 * torch.randn(40)
    result = ppl_em.fit(regression, x, y, guide=auto(regression), method=ppl_em.SVI(max_steps=500, lr=5e-2))
    mean = torch.linalg.solve(torch.eye(2) + x.T @ x / 0.25, x.T @ y / 0.25)
    found = result.guide_params["AutoNormal.locs.w" if auto is AutoNormal else "AutoDelta.w"]
    assert torch.allclose(found, mean, atol=0.05)


def supports(x: Tensor) -> None:
    """A latent of each common support in one plate."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Gamma(2.0, 1.0))
        b = pyro.sample("b", dist.Beta(2.0, 2.0))
        c = pyro.sample("c", dist.Dirichlet(torch.ones(3)))
        d = pyro.sample("d", dist.Normal(torch.zeros(2, 2), 1.0).to_event(2))
        loc = torch.stack([a + d[..., 0, 0], b + c[..., 0] + d[..., 1, 1]], -1)
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
def test_heads_match_every_support(covariance: str) -> None:
    guide = guide_for(supports, X, covariance=covariance)
    trace = pyro.poutine.trace(guide).get_trace(X)
    trace.compute_log_prob()
    model = pyro.poutine.trace(pyro.poutine.replay(supports, trace)).get_trace(X)
    for name, shape in {"a": (6,), "b": (6,), "c": (6, 3), "d": (6, 2, 2)}.items():
        node = model.nodes[name]
        assert node["value"].shape == shape
        assert bool(node["fn"].support.check(node["value"]).all())
    assert torch.isfinite(trace.log_prob_sum() + model.log_prob_sum())


def test_densities_of_the_automatic_guide_integrate_to_one() -> None:
    guide = guide_for(rates, X)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.normal_(0.0, 0.3)
    fn = pyro.poutine.trace(guide).get_trace(X).nodes["u"]["fn"]
    grid = torch.linspace(-60, 60, 100_001)
    density = fn.log_prob(grid.exp().unsqueeze(-1)) + grid.unsqueeze(-1)
    total = torch.trapezoid(density.exp(), grid, dim=0)
    assert torch.allclose(total, torch.ones(6), atol=1e-6)


@pytest.mark.parametrize("loss", [Trace_ELBO(), TraceMeanField_ELBO()])
def test_the_automatic_guide_trains_under_pyros_svi(loss: Any) -> None:
    x = factor_data(40)
    guide = guide_for(factors, x)
    svi = SVI(factors, guide, pyro.optim.Adam({"lr": 1e-2}), loss)
    first = sum(svi.step(x) for _ in range(20))
    for _ in range(150):
        svi.step(x)
    assert sum(svi.step(x) for _ in range(20)) < first
    draws = Predictive(factors, guide=guide, num_samples=3)(x[:5])
    assert draws["z"].shape == (3, 5, 2)


def test_model_and_guide_of_a_hybrid_fit_under_predictive() -> None:
    """Summed classes are drawn from their exact posterior given the code that the guide draws."""

    def clusters(x: Tensor) -> None:
        weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(weights))
            z = pyro.sample("z", dist.Normal(4.0 * k.to(x.dtype) - 2.0, 1.0))
            pyro.sample("x", dist.Normal(z.sinh() / 2, 0.3), obs=x)

    x = torch.cat([torch.full((20,), -1.8), torch.full((40,), 1.8)]) + 0.3 * torch.randn(60)
    result = ppl_em.fit(clusters, x, method=ppl_em.SVI(max_steps=300, lr=1e-2))
    torch.manual_seed(0)
    drawn = Predictive(result.model, guide=result.guide, num_samples=100)(x)
    assert drawn["z"].shape == drawn["k"].shape == drawn["x"].shape == (100, 60)
    odds = result.params["weights"][1].log() - result.params["weights"][0].log() + 4.0 * drawn["z"]
    expected = odds.sigmoid().mean(0)
    error = (expected * (1 - expected) / 100).sqrt()
    assert bool(((drawn["k"].double().mean(0) - expected).abs() < 5 * error + 0.02).all())
    assert float((drawn["x"].mean(0) - x).abs().mean()) < 0.5


def test_inner_plates_read_what_was_drawn_around_them() -> None:
    groups, members = 30, 8

    def nested(x: Tensor) -> None:
        with pyro.plate("group", x.shape[0], dim=-2):
            u = pyro.sample("u", dist.Normal(0.0, 2.0))
            with pyro.plate("member", x.shape[1], dim=-1):
                v = pyro.sample("v", dist.Normal(u, 0.5))
                pyro.sample("x", dist.Normal(v, 0.3), obs=x)

    u = 2.0 * torch.randn(groups, 1)
    x = u + (0.5**2 + 0.3**2) ** 0.5 * torch.randn(groups, members)
    method = ppl_em.SVI(max_steps=800, lr=3e-2, hidden=(32,), evaluation_particles=100)
    result = ppl_em.fit(nested, x, method=method)
    covariance = 4.0 * torch.ones(members, members) + (0.5**2 + 0.3**2) * torch.eye(members)
    exact = dist.MultivariateNormal(torch.zeros(members), covariance).log_prob(x).sum()
    # The guide q(u | x) q(v | u, x) contains the posterior.
    assert result.objective / groups == pytest.approx(float(exact) / groups, abs=0.1)
    assert result.posterior().marginal("v").batch_shape == (groups, members)
    assert result.log_prob().shape == (groups,)


def test_an_encoder_of_ones_own() -> None:
    class Mine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.loc = nn.Linear(5, 2)

        def forward(self, x: Tensor) -> Any:
            return dist.Normal(self.loc(x), 0.4).to_event(1)

    encoder = Mine()
    before = encoder.loc.weight.detach().clone()
    result = ppl_em.fit(factors, factor_data(), method=ppl_em.SVI(max_steps=300, lr=1e-2, encoder=encoder))
    assert result.objective > result.history[0]
    assert not torch.equal(encoder.loc.weight, before)


def test_a_family_for_a_support_is_registered() -> None:
    class Halves(constraints.Constraint):
        def check(self, value: Tensor) -> Tensor:
            return value > 0.5

    class Shifted(dist.Exponential):
        support = Halves()

        def rsample(self, sample_shape: Any = ()) -> Tensor:
            return super().rsample(torch.Size(sample_shape)) + 0.5

        def log_prob(self, value: Tensor) -> Tensor:
            return super().log_prob(value - 0.5)

    class Family:
        num_inputs = 1

        def __init__(self, event_shape: torch.Size, draws: Tensor) -> None:
            assert event_shape == () and bool((draws > 0.5).all())

        def __call__(self, inputs: Tensor) -> Any:
            return Shifted(inputs[..., 0].exp(), validate_args=False)

    variational_family.register(Halves, lambda constraint: Family)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", Shifted(torch.ones(())))
            pyro.sample("x", dist.Normal(u, 1.0), obs=x)

    result = ppl_em.fit(model, X[:, 0], method=ppl_em.SVI(max_steps=30, lr=1e-2))
    assert bool((result.posterior().sample(3, seed=0)["u"] > 0.5).all())


def test_an_unknown_support_is_named() -> None:
    class Odd(constraints.Constraint):
        def check(self, value: Tensor) -> Tensor:
            return value == value

    class Strange(dist.Normal):
        support = Odd()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", Strange(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(u, 1.0), obs=x)

    with pytest.raises(ModelError, match="no variational family") as error:
        ppl_em.fit(model, X[:, 0], method=SHORT)
    assert "'u'" in str(error.value)
