"""``DiscreteHMM`` in a program: summed already, with expected counts; beside Pyro's density and the written-out loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ppl_em
from tests.tolerances import ASCENT, BRUTE_FORCE, GRADIENT

K, T = 2, 6
Emission = Callable[[], Any]


def data(rows: int, *event: int) -> Tensor:
    return torch.randn(rows, T, *event, generator=torch.Generator().manual_seed(1))


def tables() -> tuple[Tensor, Tensor]:
    init = pyro.param("init", torch.tensor([0.7, 0.3]), constraint=constraints.simplex)
    trans = pyro.param("trans", torch.tensor([[0.8, 0.2], [0.4, 0.6]]), constraint=constraints.simplex)
    return init, trans


def number() -> Any:
    scale = pyro.param("scale", torch.tensor([0.9, 1.1]), constraint=constraints.positive)
    return dist.Normal(pyro.param("loc", torch.tensor([-1.0, 1.0])), scale)


def symbol() -> Any:
    start = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]])
    return dist.Categorical(pyro.param("probs", start, constraint=constraints.simplex))


def columns() -> Any:
    loc = pyro.param("loc", torch.tensor([[-1.0, 0.0, 0.5], [1.0, 0.3, -0.5]]))
    return dist.Normal(loc, 1.2).to_event(1)


def vector() -> Any:
    loc = pyro.param("loc", torch.tensor([[-1.0, 0.0, 0.5], [1.0, 0.3, -0.5]]))
    return dist.MultivariateNormal(loc, torch.eye(3) + 0.2)


EMISSIONS: dict[str, tuple[Emission, Callable[[int], Tensor]]] = {
    "number": (number, data),
    "symbol": (symbol, lambda n: torch.randint(3, (n, T), generator=torch.Generator().manual_seed(2))),
    "columns": (columns, lambda n: data(n, 3)),
    "vector": (vector, lambda n: data(n, 3)),
}


def summed(emission: Emission) -> Callable[[Tensor], None]:
    """Whole sequences from one statement."""

    def model(x: Tensor) -> None:
        init, trans = tables()
        with pyro.plate("series", len(x)):
            hmm = dist.DiscreteHMM(init.log(), trans.log(), emission(), duration=T)
            pyro.sample("x", hmm, obs=x)

    return model


def written_out(emission: Emission) -> Callable[[Tensor], None]:
    """The same with a latent at each step; the initial distribution is that of the state before the first."""

    def model(x: Tensor) -> None:
        init, trans = tables()
        emitted = emission()
        names = [n for n in emitted.arg_constraints if n in emitted.__dict__] if emission is not columns else []
        with pyro.plate("series", len(x)):
            z = pyro.sample("z_0", dist.Categorical(init))
            for t in pyro.markov(range(x.shape[1])):
                z = pyro.sample(f"z_{t + 1}", dist.Categorical(trans[z]))
                if emission is columns:
                    step = dist.Normal(emitted.base_dist.loc[z], 1.2).to_event(1)
                elif emission is vector:
                    step = dist.MultivariateNormal(emitted.loc[z], torch.eye(3) + 0.2)
                else:
                    step = type(emitted)(*(getattr(emitted, n)[z] for n in names))
                pyro.sample(f"x_{t}", step, obs=x[:, t])

    return model


# As many series as states: nothing but the names of dimensions tells them apart.
@pytest.mark.parametrize("rows", [K, 4])
@pytest.mark.parametrize("name", EMISSIONS)
def test_steps_are_those_of_the_loop(name: str, rows: int) -> None:
    emission, values = EMISSIONS[name]
    x = values(rows)
    method = ppl_em.EM(max_steps=4, tol=0, accelerate=False)
    one, two = (
        ppl_em.fit(model(emission), x, init="params", restarts=1, method=method) for model in (summed, written_out)
    )
    assert one.plan.engine_of("x") == "structured"
    assert one.plan.exact
    assert one.plan.rule_of("init") == one.plan.rule_of("trans") == "closed form"
    # What the states emit is updated by Newton's method to rounding, there in closed form.
    torch.testing.assert_close(one.history, two.history, atol=GRADIENT, rtol=0)
    for n, value in two.params.items():
        torch.testing.assert_close(one.params[n], value, atol=1e-6, rtol=0)
    torch.testing.assert_close(one.log_prob(), two.log_prob(), atol=GRADIENT, rtol=0)


@pytest.mark.parametrize("name", EMISSIONS)
def test_density_of_pyro(name: str) -> None:
    emission, values = EMISSIONS[name]
    x = values(3)
    result = ppl_em.fit(summed(emission), x, init="params", restarts=1, method=ppl_em.EM(max_steps=0))
    with pyro.get_param_store().scope():
        init, trans = tables()
        wanted = dist.DiscreteHMM(init.log(), trans.log(), emission()).log_prob(x)
    torch.testing.assert_close(result.log_prob(), wanted.detach(), atol=BRUTE_FORCE, rtol=0)
    assert result.predict(num_samples=2)["x"].shape == (2, *x.shape)


def test_tables_of_each_step_and_series() -> None:
    def model(x: Tensor) -> None:
        start = torch.rand(len(x), T, K, K, generator=torch.Generator().manual_seed(3)).softmax(-1)
        trans = pyro.param("trans", start, constraint=constraints.simplex)
        loc = pyro.param("loc", torch.randn(T, K, generator=torch.Generator().manual_seed(4)))
        with pyro.plate("series", len(x)):
            pyro.sample("x", dist.DiscreteHMM(torch.zeros(K), trans.log(), dist.Normal(loc, 1.0)), obs=x)

    x = data(3)
    result = ppl_em.fit(model, x, init="params", restarts=1, method=ppl_em.EM(max_steps=3, tol=0, accelerate=False))
    assert result.plan.rule_of("trans") == "closed form"
    p = result.params
    wanted = dist.DiscreteHMM(torch.zeros(K), p["trans"].log(), dist.Normal(p["loc"], 1.0)).log_prob(x)
    torch.testing.assert_close(result.log_prob(), wanted, atol=BRUTE_FORCE, rtol=0)
    assert bool((result.history.diff() >= -ASCENT * (1 + result.history[:-1].abs())).all())


def test_a_class_around_it() -> None:
    def model(x: Tensor) -> None:
        share = pyro.param("share", torch.tensor([0.6, 0.4]), constraint=constraints.simplex)
        start = torch.tensor([[[0.8, 0.2], [0.3, 0.7]], [[0.5, 0.5], [0.4, 0.6]]])
        trans = pyro.param("trans", start, constraint=constraints.simplex)
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        with pyro.plate("series", len(x)):
            c = pyro.sample("c", dist.Categorical(share))
            pyro.sample(
                "x", dist.DiscreteHMM(torch.zeros(K), trans[c].log().unsqueeze(-3), dist.Normal(loc, 1.0)), obs=x
            )

    x = data(5)
    result = ppl_em.fit(model, x, init="params", restarts=1, method=ppl_em.EM(max_steps=3, tol=0, accelerate=False))
    p = result.params
    each = [dist.DiscreteHMM(torch.zeros(K), t.log(), dist.Normal(p["loc"], 1.0)).log_prob(x) for t in p["trans"]]
    joint = torch.stack(each, 1) + p["share"].log()
    torch.testing.assert_close(result.log_prob(), joint.logsumexp(1), atol=BRUTE_FORCE, rtol=0)
    found = result.posterior().marginal("c").probs
    torch.testing.assert_close(found, joint.softmax(1), atol=BRUTE_FORCE, rtol=0)
    assert bool((result.history.diff() >= -ASCENT * (1 + result.history[:-1].abs())).all())


def test_parameters_out_of_reach_follow_the_gradient() -> None:
    """One probability of staying feeds a table that is no gather of it."""

    def model(x: Tensor) -> None:
        stay = pyro.param("stay", torch.tensor(0.6), constraint=constraints.unit_interval)
        loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        trans = stay * torch.eye(K) + (1 - stay) * (1 - torch.eye(K))
        with pyro.plate("series", len(x)):
            pyro.sample("x", dist.DiscreteHMM(torch.zeros(K), trans.log(), dist.Normal(loc, 1.0)), obs=x)

    x = data(6)
    result = ppl_em.fit(model, x, init="params", restarts=1, method=ppl_em.EM(tol=1e-10))
    assert result.plan.rule_of("stay") in ("newton", "gradient")

    def log_likelihood(stay: Tensor, loc: Tensor) -> Tensor:
        trans = stay * torch.eye(K) + (1 - stay) * (1 - torch.eye(K))
        return dist.DiscreteHMM(torch.zeros(K), trans.log(), dist.Normal(loc, 1.0)).log_prob(x).sum()

    leaves = [result.params[n].clone().requires_grad_() for n in ("stay", "loc")]
    value = log_likelihood(*leaves)
    assert result.log_likelihood == pytest.approx(float(value.detach()), abs=BRUTE_FORCE)
    slopes = torch.autograd.grad(value, leaves)
    assert all(float(s.abs().max()) < 1e-3 for s in slopes)


def test_an_emission_that_is_not_read_is_still_right() -> None:
    """A mixture emitted by the states: log-density and gradient are Pyro's own."""

    def emitted(loc: Tensor) -> Any:
        return dist.MixtureSameFamily(dist.Categorical(torch.ones(K, 2)), dist.Normal(loc, 1.0))

    def model(x: Tensor) -> None:
        init, trans = tables()
        loc = pyro.param("loc", torch.tensor([[-1.0, 0.0], [1.0, 2.0]]))
        with pyro.plate("series", len(x)):
            pyro.sample("x", dist.DiscreteHMM(init.log(), trans.log(), emitted(loc)), obs=x)

    x = data(4)
    result = ppl_em.fit(model, x, init="params", restarts=1, method=ppl_em.EM(max_steps=2, tol=0, accelerate=False))
    p = result.params
    wanted = dist.DiscreteHMM(p["init"].log(), p["trans"].log(), emitted(p["loc"])).log_prob(x)
    torch.testing.assert_close(result.log_prob(), wanted, atol=BRUTE_FORCE, rtol=0)
    assert bool((result.history.diff() >= -ASCENT * (1 + result.history[:-1].abs())).all())


def test_a_continuous_chain_that_is_summed_already() -> None:
    """``GaussianHMM``: its own density, and the maximum by the gradient of log Z."""

    def smoother(drift: Tensor) -> Any:
        unit, noise = torch.eye(1), dist.Normal(torch.zeros(1), 1.0).to_event(1)
        return dist.GaussianHMM(noise, drift.reshape(1, 1), noise, unit, noise, duration=T)

    def model(x: Tensor) -> None:
        drift = pyro.param("drift", torch.tensor(0.2))
        with pyro.plate("series", len(x)):
            pyro.sample("x", smoother(drift), obs=x)

    x = data(5, 1).cumsum(1)
    result = ppl_em.fit(model, x, init="params", restarts=1)
    leaf = result.params["drift"].clone().requires_grad_()
    value = smoother(leaf).log_prob(x).sum()
    assert result.log_likelihood == pytest.approx(float(value.detach()), abs=BRUTE_FORCE)
    assert abs(float(torch.autograd.grad(value, leaf)[0])) < 1e-3
