"""Mixtures, masks, transforms and other wrappers end to end: the plan sees through them, the fit is the plain one's."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ppl_em

TIGHT = ppl_em.EM(tol=1e-9)


def weights() -> Tensor:
    return pyro.param("w", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)


def spread(size: int = 2) -> tuple[Tensor, Tensor]:
    loc = pyro.param("loc", torch.arange(float(size)) * 3)
    return loc, pyro.param("scale", torch.ones(size), constraint=constraints.positive)


def latent(x: Tensor) -> None:
    """The reference: a hidden component, enumerated."""
    w, (loc, scale) = weights(), spread()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def same_family(x: Tensor) -> None:
    w, (loc, scale) = weights(), spread()
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(loc, scale)), obs=x)


def as_logits(x: Tensor) -> None:
    w, (loc, scale) = pyro.param("w", torch.tensor([0.4, 0.6]).log()), spread()
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(logits=w), dist.Normal(loc, scale)), obs=x)


def transformed(x: Tensor) -> None:
    w, (loc, scale) = weights(), spread()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        base = dist.Normal(loc[z], scale[z])
        pyro.sample("x", dist.TransformedDistribution(base, [dist.transforms.ExpTransform()]), obs=x.exp())


def expanded(x: Tensor) -> None:
    w, (loc, scale) = weights(), spread()
    z = pyro.sample("z", dist.Categorical(w).expand([len(x)]))
    pyro.sample("x", dist.Normal(loc[z], scale[z]).expand([len(x)]), obs=x)


def independent(x: Tensor) -> None:
    w, (loc, scale) = weights(), spread()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z][..., None], scale[z][..., None]).to_event(1), obs=x[:, None])


def data() -> Tensor:
    return torch.cat([torch.randn(60), 3 + 0.7 * torch.randn(50)])


@pytest.mark.parametrize("model", [same_family, as_logits, transformed, expanded, independent])
def test_one_optimum_whatever_is_wrapped(model: Any) -> None:
    x = data()
    plain = ppl_em.fit(latent, x, init="params", method=TIGHT)
    result = ppl_em.fit(model, x, init="params", method=TIGHT)
    rule = "newton" if model in (same_family, as_logits) else "closed form"
    assert [result.plan.rule_of(n) for n in ("loc", "scale")] == [rule, rule]
    volume = float(x.sum()) if model is transformed else 0.0
    assert result.objective + volume == pytest.approx(plain.objective, abs=1e-6)
    for n in ("loc", "scale"):
        torch.testing.assert_close(result.params[n], plain.params[n], atol=1e-4, rtol=0)


def test_a_mask_on_the_distribution_leaves_the_data_out() -> None:
    x, keep = data(), torch.rand(110) > 0.3

    def masked(x: Tensor) -> None:
        w, (loc, scale) = weights(), spread()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Normal(loc[z], scale[z]).mask(keep), obs=x)

    result = ppl_em.fit(masked, torch.where(keep, x, torch.nan), init="params", method=TIGHT)
    plain = ppl_em.fit(latent, x[keep], init="params", method=TIGHT)
    assert result.plan.rule_of("loc") == "closed form"
    assert result.objective == pytest.approx(plain.objective, abs=1e-6)


def test_a_mixture_inside_a_chain() -> None:
    """Each state has a mixture of its own: the inner component is hidden too; against both enumerated."""
    a = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    centres = torch.tensor([[0.0, 2.0], [6.0, 9.0]])

    def program(x: Tensor, inner: bool) -> None:
        w = pyro.param("w", torch.tensor([[0.5, 0.5], [0.3, 0.7]]), constraint=constraints.simplex)
        loc = pyro.param("loc", centres)
        z = 0
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(a[z]))
            if inner:
                fn = dist.MixtureSameFamily(dist.Categorical(w[z]), dist.Normal(loc[z], 1.0))
            else:
                c = pyro.sample(f"c_{t}", dist.Categorical(w[z]))
                fn = dist.Normal(loc[z, c], 1.0)
            pyro.sample(f"x_{t}", fn, obs=x[t])

    x = torch.cat([torch.randn(8), 2 + torch.randn(8), 6 + torch.randn(8), 9 + torch.randn(6)])
    one, two = (ppl_em.fit(program, x, inner, init="params", method=TIGHT) for inner in (True, False))
    assert one.plan.rule_of("loc") == "newton"
    assert "MixtureSameFamily[Normal]" in str(one.plan)
    assert one.objective == pytest.approx(two.objective, abs=1e-6)
    torch.testing.assert_close(one.params["loc"], two.params["loc"], atol=1e-3, rtol=0)


def test_a_masked_mixture_with_a_hidden_mask() -> None:
    """Zero inflation as a mask that is summed: the same as the family that has it built in."""

    def masked(x: Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
        rate = pyro.param("rate", torch.tensor(2.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            m = pyro.sample("m", dist.Bernoulli(p))
            pyro.sample("x", dist.MaskedMixture(m > 0, dist.Poisson(1e-300), dist.Poisson(rate)), obs=x)

    def built_in(x: Tensor) -> None:
        gate = pyro.param("gate", torch.tensor(0.5), constraint=constraints.unit_interval)
        rate = pyro.param("rate", torch.tensor(2.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.ZeroInflatedPoisson(rate, gate=gate), obs=x)

    x = torch.poisson(3 * torch.ones(100)) * (torch.rand(100) > 0.3)
    one, two = (ppl_em.fit(m, x, init="params", method=TIGHT) for m in (masked, built_in))
    assert one.plan.rule_of("rate") == "closed form"
    assert one.objective == pytest.approx(two.objective, abs=1e-7)
    assert float(one.params["p"]) == pytest.approx(1 - float(two.params["gate"]), abs=1e-5)


def test_a_component_that_collapses_is_named() -> None:
    x = torch.cat([torch.zeros(3), 1 + torch.rand(20)])

    def model(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor([0.1, 1.0]), constraint=constraints.positive)
        loc = pyro.param("loc", torch.tensor([0.0, 1.5]))
        with pyro.plate("data", len(x)):
            mixture = dist.Categorical(torch.tensor([0.5, 0.5]))
            pyro.sample("x", dist.MixtureSameFamily(mixture, dist.Normal(loc, scale)), obs=x)

    result = ppl_em.fit(model, x, init="params")
    assert not result.converged
    assert "collapse" in str(result.status).lower() or "degenerate" in str(result.status).lower()
