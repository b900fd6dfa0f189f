"""The ladder end to end: a third party's rule, a wrong rule refused, a missing rule's stub, rules that differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ppl_em
from ppl_em.mstep import weighted_mle
from ppl_em.mstep.registry import Rule


class Rayleigh(dist.TorchDistribution):
    """log p(x) = log x − 2 log scale − x² / (2 scale²), x > 0: a family that the library does not know."""

    arg_constraints = {"scale": constraints.positive}
    support = constraints.positive

    def __init__(self, scale: Tensor, validate_args: bool | None = None) -> None:
        self.scale = scale
        super().__init__(scale.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Rayleigh:
        return Rayleigh(self.scale.expand(batch_shape), validate_args=False)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.scale * (-2 * torch.rand((*sample_shape, *self.batch_shape)).log()).sqrt()

    def log_prob(self, value: Tensor) -> Tensor:
        return value.log() - 2 * self.scale.log() - (value / self.scale).square() / 2


def rayleigh_rule(sample: Any) -> None:
    """All that a third party writes: the maximum of Σ w log p in closed form."""
    half_squares = sample.sum("x²/2", lambda x: x.square() / 2)
    sample.propose("scale", (sample.pool("scale", half_squares) / sample.mass("scale")).sqrt())


@pytest.fixture
def registry() -> Iterator[Any]:
    """The registry, as it was afterwards."""
    kept = dict(weighted_mle._rules)
    yield weighted_mle
    weighted_mle._rules.clear()
    weighted_mle._rules.update(kept)


def mixture(x: Tensor) -> None:
    w = pyro.param("w", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    scale = pyro.param("scale", torch.tensor([1.0, 3.0]), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", Rayleigh(scale[z]), obs=x)


def by_hand(x: Tensor, steps: int) -> tuple[Tensor, Tensor]:
    """Weights and scales after some steps of EM."""
    w, scale = torch.tensor([0.5, 0.5]), torch.tensor([1.0, 3.0])
    for _ in range(steps):
        r = (w.log() + Rayleigh(scale).log_prob(x[:, None])).softmax(-1)
        w, scale = r.mean(0), ((r * x[:, None].square()).sum(0) / 2 / r.sum(0)).sqrt()
    return w, scale


PLAIN = ppl_em.EM(max_steps=10, tol=0, accelerate=False)


def data() -> Tensor:
    return torch.cat([Rayleigh(torch.tensor(1.0)).sample((60,)), Rayleigh(torch.tensor(4.0)).sample((40,))])


def check(result: ppl_em.FitResult, x: Tensor, tolerance: float) -> None:
    w, scale = by_hand(x, 10)
    torch.testing.assert_close(result.params["w"], w, atol=tolerance, rtol=0)
    torch.testing.assert_close(result.params["scale"], scale, atol=tolerance, rtol=0)


def test_a_third_party_adds_a_family(registry: Any) -> None:
    registry.register(Rayleigh)(rayleigh_rule)
    x = data()
    result = ppl_em.fit(mixture, x, init="params", method=PLAIN)
    assert result.plan.rule_of("scale") == "closed form"
    check(result, x, 1e-12)


def test_without_a_rule_newton_takes_over_and_the_plan_prints_the_stub() -> None:
    x = data()
    plan = ppl_em.explain(mixture, x)
    assert plan.rule_of("scale") == "newton"
    assert "no rule is registered for Rayleigh" in str(plan)
    assert "| @weighted_mle.register(Rayleigh)" in str(plan)
    check(ppl_em.fit(mixture, x, init="params", method=PLAIN), x, 1e-9)


def test_the_stub_is_a_program(registry: Any) -> None:
    lines = str(ppl_em.explain(mixture, data())).splitlines()
    text = "\n".join(line.split("| ", 1)[1] for line in lines if "                | " in line)
    exec(text, {"Rayleigh": Rayleigh})
    assert Rayleigh in registry


def corrupted(rule: Rule) -> Rule:
    """The same rule, its last argument off by one per cent."""

    def fit(sample: Any) -> None:
        rule.fit(sample)
        name = list(sample.proposals)[-1]
        sample.proposals[name] = sample.proposals[name] * 1.01

    return replace(rule, fit=fit)


def normals(x: Tensor) -> None:
    w = pyro.param("w", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([0.0, 4.0]))
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], scale[z]), obs=x)


def counts(x: Tensor) -> None:
    w = pyro.param("w", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    rate = pyro.param("rate", torch.tensor([1.0, 6.0]), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Poisson(rate[z]), obs=x)


CORRUPTED = {"normal": (normals, torch.distributions.Normal), "poisson": (counts, torch.distributions.Poisson)}


@pytest.mark.parametrize("name", CORRUPTED)
def test_a_rule_off_by_one_per_cent_is_refused(name: str, registry: Any) -> None:
    model, family = CORRUPTED[name]
    x = torch.cat([torch.randn(50), 5 + torch.randn(40)])
    x = x if name == "normal" else torch.poisson(torch.linspace(1, 9, 80))
    right = ppl_em.fit(model, x, init="params", method=PLAIN)
    registry._rules[family] = corrupted(registry[family])
    result = ppl_em.fit(model, x, init="params", method=PLAIN)
    changed = [n for n in result.params if n != "w"]
    assert [result.plan.rule_of(n) for n in changed] == ["newton"] * len(changed)
    assert result.plan.rule_of("w") == "closed form"
    assert f"closed form refused: the rule of {family.__name__} is not stationary" in str(result.plan)
    assert bool((result.history.diff() >= -1e-9).all())
    # Newton's method reaches the same M-step, so that the steps are the same.
    for n in result.params:
        torch.testing.assert_close(result.params[n], right.params[n], atol=1e-6, rtol=0)


def test_a_closed_form_beside_a_network() -> None:
    """The network's mean takes gradient steps; the shape of the noise keeps its own family's rule."""
    net = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))

    def model(x: Tensor, y: Tensor) -> None:
        pyro.module("net", net)
        mean = net(x)[:, 0]
        scale = pyro.param("scale", torch.tensor([1.0, 2.0]), constraint=constraints.positive)
        w = pyro.param("w", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("y", dist.Laplace(mean, scale[z]), obs=y)

    x = torch.linspace(-2, 2, 60)[:, None]
    y = x[:, 0].sin() + 0.3 * torch.randn(60)
    result = ppl_em.fit(model, x, y, init="params", method=ppl_em.EM(max_steps=6, tol=0, accelerate=False))
    assert result.plan.rule_of("scale") == result.plan.rule_of("w") == "closed form"
    assert result.plan.rule_of("net$$$0.weight") == "gradient"
    assert result.exact
    assert bool((result.history.diff() >= 0).all())
