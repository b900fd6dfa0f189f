"""Constrained and frozen parameters end to end: the constrained maximum is reached and the plan says how."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from scipy.optimize import minimize
from torch import Tensor

import ppl_em

TIGHT = ppl_em.EM(tol=1e-10)


def weights() -> Tensor:
    return pyro.param("w", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)


def ordered(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor([-1.0, 3.0]), constraint=constraints.ordered_vector)
    scale, w = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive), weights()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], scale), obs=x)


def two_groups() -> Tensor:
    return torch.cat([torch.randn(60), 3 + torch.randn(60)])


def test_an_order_that_the_data_have_leaves_the_closed_form() -> None:
    x = two_groups()
    result = ppl_em.fit(ordered, x, init="params", method=TIGHT)
    assert result.plan.rule_of("loc") == "closed form"
    assert bool(constraints.ordered_vector.check(result.params["loc"]))

    def negative(v: np.ndarray) -> float:
        w = torch.sigmoid(torch.tensor(v[0]))
        parts = dist.Normal(torch.tensor(v[1:3]), float(np.exp(v[3]))).log_prob(x[:, None])
        return -float((parts + torch.stack([w, 1 - w]).log()).logsumexp(-1).sum())

    peer = minimize(negative, [0.0, -1.0, 3.0, 0.0], method="BFGS", options={"gtol": 1e-8})
    assert result.objective == pytest.approx(-peer.fun, abs=1e-6)


def test_an_order_that_the_data_do_not_have_is_kept() -> None:
    """The first group is known to have the smaller location, its data the larger mean: both end at the pooled mean."""

    def model(x: Tensor, y: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([0.0, 1.0]), constraint=constraints.ordered_vector)
        pyro.sample("x", dist.Normal(loc[0].expand(len(x)), 1.0).to_event(1), obs=x)
        pyro.sample("y", dist.Normal(loc[1].expand(len(y)), 1.0).to_event(1), obs=y)

    x, y = 3 + torch.randn(20), torch.randn(30)
    result = ppl_em.fit(model, x, y, init="params", method=TIGHT)
    loc = result.params["loc"]
    assert bool(constraints.ordered_vector.check(loc))
    assert result.plan.rule_of("loc") == "newton"
    pooled = torch.cat([x, y]).mean()
    best = dist.Normal(pooled, 1.0).log_prob(torch.cat([x, y])).sum()
    assert result.objective == pytest.approx(float(best), abs=1e-4)


def test_an_interval_holds_the_maximum_at_its_ends() -> None:
    def model(x: Tensor, low: float, high: float) -> None:
        p = pyro.param("p", torch.tensor([0.3, 0.6]), constraint=constraints.interval(low, high))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Binomial(10, p).to_event(1), obs=x)

    x = torch.stack([torch.binomial(torch.full((40,), 10.0), torch.full((40,), p)) for p in (0.1, 0.5)], 1)
    share = x.mean(0) / 10
    result = ppl_em.fit(model, x, 0.2, 0.9, init="params", method=TIGHT)
    assert "lies outside its constraint" in str(result.plan)
    expected = share.clamp(0.2, 0.9)
    assert float(expected[0]) == 0.2
    torch.testing.assert_close(result.params["p"], expected, atol=1e-6, rtol=0)
    wide = ppl_em.fit(model, x, 0.01, 0.99, init="params", method=TIGHT)
    assert wide.plan.rule_of("p") == "closed form"
    torch.testing.assert_close(wide.params["p"], share, atol=1e-12, rtol=0)


class Emission(torch.nn.Module):
    def __init__(self, train_scale: bool) -> None:
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor([0.0, 2.0]))
        self.log_scale = torch.nn.Parameter(torch.tensor([0.3, -0.2]), requires_grad=train_scale)

    def forward(self, x: Tensor) -> None:
        pyro.module("emission", self)
        w = weights()
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Normal(self.loc[z], self.log_scale.exp()[z]), obs=x)


def test_a_weight_without_gradients_is_frozen() -> None:
    x = two_groups()
    off, module = Emission(False).eval(), Emission(True)  # Pyro itself warns of such weights in training mode
    result = ppl_em.fit(off, x, init="params", method=TIGHT)
    asked = ppl_em.fit(module, x, init="params", method=TIGHT, freeze=("emission$$$log_scale",))
    torch.testing.assert_close(off.log_scale.detach(), torch.tensor([0.3, -0.2]))
    assert not off.log_scale.requires_grad
    assert result.objective == pytest.approx(asked.objective, abs=1e-10)
    assert result.num_parameters == asked.num_parameters == 3
    assert asked.plan.rule_of("emission$$$log_scale") == "frozen"
    free = ppl_em.fit(Emission(True), x, init="params", method=TIGHT)
    assert free.num_parameters == 5 and free.objective > result.objective + 0.1


def network(x: Tensor, y: Tensor) -> None:
    """A parameter that reaches its site through a computation: Newton's rung."""
    a = pyro.param("a", torch.tensor([0.5, 0.2]))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(torch.tanh(a[0] * x) + a[0] * a[1], 0.3), obs=y)


def test_the_plan_says_what_runs_where_a_user_gives_the_optimiser() -> None:
    x = torch.linspace(-2, 2, 40)
    y = torch.tanh(1.3 * x) + 0.3 * torch.randn(40)
    assert ppl_em.explain(network, x, y).rule_of("a") == "newton"
    best = ppl_em.fit(network, x, y, init="params", method=TIGHT).objective

    def sgd(steps: int) -> ppl_em.EM:
        make: Callable[[Any], Any] = lambda ps: torch.optim.SGD(ps, lr=2e-3)  # noqa: E731
        return ppl_em.EM(max_steps=1, tol=0, accelerate=False, m_step_steps=steps, m_step_optim=make)

    plan = ppl_em.explain(network, x, y, method=sgd(1))
    assert plan.rule_of("a") == "gradient"
    assert "m_step_optim takes the place of Newton's method" in str(plan)
    # Many inner steps approach the full M-step.
    reached = [ppl_em.fit(network, x, y, init="params", method=sgd(n)).objective for n in (1, 10, 300)]
    assert reached[0] < reached[1] < reached[2] <= best + 1e-9
    assert reached[2] == pytest.approx(best, abs=1e-3)


def logistic(x: Tensor, y: Tensor) -> None:
    coef = pyro.param("coef", torch.zeros(x.shape[1]))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ coef), obs=y)


@pytest.mark.parametrize("kind", ["complete", "one group"])
def test_separated_outcomes_are_named(kind: str) -> None:
    x = torch.stack([torch.ones(60), (torch.arange(60) < 8).double(), torch.randn(60)], 1)
    y = (torch.rand(60) > 0.5).double()
    y = (x[:, 2] > 0).double() if kind == "complete" else torch.where(x[:, 1] > 0, 1.0, y)
    with pytest.warns(UserWarning, match="'coef'.*separate some outcomes at 'y' perfectly"):
        result = ppl_em.fit(logistic, x, y)
    assert bool(torch.isfinite(result.params["coef"]).all())


@pytest.mark.parametrize("columns", [[0, 2], [0, 0, 2]], ids=["plain", "collinear"])
def test_outcomes_with_a_maximum_are_not(columns: list[int]) -> None:
    x = torch.stack([torch.ones(60), torch.zeros(60), torch.randn(60)], 1)
    x[0, 2] = 60.0  # one datum of great leverage
    y = (torch.rand(60) < torch.sigmoid(2 * x[:, 2])).double()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = ppl_em.fit(logistic, x[:, columns], y)
    assert result.converged


def test_a_binomial_with_logits_is_solved_from_its_design() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        coef = pyro.param("coef", torch.zeros(3))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Binomial(7, logits=x @ coef), obs=y)

    x = torch.randn(80, 3)
    y = torch.binomial(torch.full((80,), 7.0), torch.sigmoid(x @ torch.tensor([1.0, -1.0, 0.5])))
    update = next(u for u in ppl_em.explain(model, x, y).updates if "coef" in u.parameters)
    assert (update.rule, update.by, update.family) == ("newton", "predictor", "Binomial")


def test_components_that_start_alike_are_set_apart() -> None:
    """EM cannot leave that saddle by itself."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        scale, w = pyro.param("scale", torch.ones(2), constraint=constraints.positive), weights()
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(loc, scale)), obs=x)

    x = torch.cat([torch.randn(50), 5 + torch.randn(50)])
    result = ppl_em.fit(model, x, init="params")
    loc = result.params["loc"].sort().values
    torch.testing.assert_close(loc, torch.tensor([0.0, 5.0]), atol=0.5, rtol=0)


@pytest.mark.parametrize("family", [dist.Kumaraswamy, dist.Dirichlet])
def test_the_stub_of_any_family_runs(family: type) -> None:
    from ppl_em.mstep import Argument, Block, WeightedSample
    from ppl_em.mstep.registry import Registry

    registry = Registry()
    code = registry.stub(family).replace("from ppl_em.mstep import weighted_mle", "")
    exec(code, {"weighted_mle": registry, family.__name__: family})
    vector = family is dist.Dirichlet
    shape = (2, 3) if vector else (2,)
    arguments = {n: Argument(torch.ones(shape), torch.arange(2)) for n in family.arg_constraints}  # type: ignore[attr-defined]
    x = torch.rand(30, 3).softmax(-1) if vector else torch.rand(30)
    sample = WeightedSample(arguments, (Block(torch.rand(2, 30), x, torch.arange(2)),), 2, int(vector))
    registry[family](sample)
    assert set(sample.proposals) == set(arguments)


def test_a_mixture_of_an_unknown_family_prints_the_stub_of_the_family() -> None:
    def model(x: Tensor) -> None:
        a = pyro.param("a", torch.tensor([1.0, 3.0]), constraint=constraints.positive)
        w = weights()
        with pyro.plate("data", len(x)):
            component = dist.Kumaraswamy(a, torch.tensor([2.0, 1.0]))
            pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(w), component), obs=x)

    x = torch.rand(40) * 0.9 + 0.05
    plan = ppl_em.explain(model, x)
    assert plan.rule_of("a") == "newton"
    assert "| @weighted_mle.register(Kumaraswamy)" in str(plan)
    result = ppl_em.fit(model, x, init="params")
    assert result.objective > float(result.history[0])


def test_parameters_of_a_wrong_shape_are_named() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=x)

    with pytest.raises(ppl_em.errors.ModelError, match=r"site 'x' \(value \(20, 2\)\).*event shape \(3,\)"):
        ppl_em.fit(model, torch.randn(20, 2))


def test_a_softmax_without_a_reference_class_is_no_separation() -> None:
    """Adding to the coefficients of all classes changes nothing, however large the predictors are."""
    x = torch.cat([torch.randn(80), torch.tensor([40.0])])
    y = (torch.rand(81) < torch.sigmoid(1.5 * x)).long()

    def classes(x: Tensor, y: Tensor) -> None:
        coef = pyro.param("coef", torch.zeros(2))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Categorical(logits=x[:, None] * coef), obs=y)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = ppl_em.fit(classes, x, y, init={"coef": [20.0, 21.0]})
    assert float((x[:, None] * result.params["coef"]).abs().max()) > 100
