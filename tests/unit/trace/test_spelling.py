"""How a program spells the way from a parameter to a distribution does not matter: same rule, same step."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.ops.indexing import Vindex
from torch import Tensor

import ppl_em
from ppl_em import EM
from tests.tolerances import BRUTE_FORCE
from tests.unit.programs import two_kinds

X = two_kinds(20)
LOC, SCALE, WEIGHTS = torch.tensor([[-0.5, 2.0], [0.8, 1.7], [0.3, 0.7]], dtype=torch.float64)


def spelled(mean: Callable[[Tensor], Tensor], start: Tensor, **options: object) -> Callable[[Tensor], None]:
    """A mixture whose means are a function of the latent."""

    def model(x: Tensor) -> None:
        weights = pyro.param("weights", WEIGHTS, constraint=constraints.simplex)
        pyro.param("loc", start, **options)
        scale = pyro.param("scale", SCALE, constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(mean(z), scale[z]), obs=x)

    return model


def loc() -> Tensor:
    return pyro.param("loc")


MEANS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "index": (lambda z: loc()[z], LOC),
    "Vindex": (lambda z: Vindex(loc())[z], LOC),
    "index_select": (lambda z: torch.index_select(loc(), 0, z.reshape(-1)).reshape(z.shape), LOC),
    "gather": (lambda z: loc().expand(*z.shape, 2).gather(-1, z.unsqueeze(-1)).squeeze(-1), LOC),
    "take": (lambda z: torch.take(loc(), z), LOC),
    "where": (lambda z: torch.where(z == 0, loc()[0], loc()[1]), LOC),
    "embedding": (lambda z: torch.nn.functional.embedding(z, loc()[:, None])[..., 0], LOC),
    "column": (lambda z: loc()[z, 0], LOC[:, None]),
    "row": (lambda z: loc()[..., z], LOC[None, :].reshape(2)),
    "shifted": (lambda z: 1.0 + loc()[z], LOC - 1.0),
    "scaled": (lambda z: -2.0 * loc()[z], LOC / -2.0),
    "clone": (lambda z: loc().clone()[z].contiguous(), LOC),
}

BIJECTIONS: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {
    "exp": (lambda z: loc()[z].exp(), LOC.add(2).log()),
    "softplus": (lambda z: torch.nn.functional.softplus(loc())[z], LOC.add(2).expm1().log()),
    "square root": (lambda z: loc()[z].sqrt(), LOC.add(2).square()),
    "reciprocal": (lambda z: 1 / loc()[z], 1 / LOC.add(2)),
    "exp, scaled and shifted": (lambda z: 3 * loc()[z].exp() - 2, ((LOC + 2) / 3).log()),
}


def step(model: Callable[[Tensor], None]) -> ppl_em.FitResult:
    return ppl_em.fit(model, X, init="params", method=EM(max_steps=2, tol=0, accelerate=False))


def normal_means(result: ppl_em.FitResult, mean: Callable[[Tensor], Tensor]) -> Tensor:
    with pyro.get_param_store().scope():
        result.write_params()
        return mean(torch.tensor([0, 1])).detach()


@pytest.mark.parametrize("name", MEANS)
def test_gathers(name: str) -> None:
    mean, start = MEANS[name]
    reference = step(spelled(lambda z: loc()[z], LOC))
    result = step(spelled(mean, start))
    assert result.plan.rule_of("loc") == "closed form"
    torch.testing.assert_close(result.history, reference.history, atol=BRUTE_FORCE, rtol=0)
    torch.testing.assert_close(normal_means(result, mean), reference.params["loc"], atol=BRUTE_FORCE, rtol=0)


@pytest.mark.parametrize("name", BIJECTIONS)
def test_bijections(name: str) -> None:
    mean, start = BIJECTIONS[name]
    reference = step(spelled(lambda z: loc()[z], normal_start(name)))
    options = {"constraint": constraints.positive} if name in ("square root", "reciprocal") else {}
    result = step(spelled(mean, start, **options))
    assert result.plan.rule_of("loc") == "closed form"
    torch.testing.assert_close(result.history, reference.history, atol=BRUTE_FORCE, rtol=0)
    torch.testing.assert_close(normal_means(result, mean), reference.params["loc"], atol=1e-7, rtol=0)


def normal_start(name: str) -> Tensor:
    return LOC if name == "exp, scaled and shifted" else LOC + 2


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum of two elements": lambda z: loc()[z] + loc()[0],
    "product": lambda z: loc()[z] * loc()[1],
    "tanh of a sum": lambda z: torch.tanh(loc().sum()) + 0.0 * z,
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_link_is_not_given_a_closed_form_and_still_ascends(name: str) -> None:
    result = step(spelled(OTHERS[name], LOC))
    assert result.plan.rule_of("loc") != "closed form"
    assert bool((result.history.diff() >= -1e-9).all())
    assert float(result.history[-1] - result.history[0]) > 1e-3


@pytest.mark.parametrize(
    "make",
    [
        lambda w: dist.Categorical(w),
        lambda w: dist.Categorical(probs=w / w.sum()),
        lambda w: dist.Categorical(logits=w.log()),
        lambda w: dist.Categorical(logits=w.log() + 3.0),
    ],
    ids=["probs", "normalised", "logits of probs", "shifted logits"],
)
def test_probabilities(make: Callable[[Tensor], dist.Categorical]) -> None:
    def model(x: Tensor) -> None:
        w = pyro.param("w", WEIGHTS, constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", make(w))
            pyro.sample("x", dist.Normal(LOC[z], 1.0), obs=x)

    result = step(model)
    w = result.params["w"]
    probs = make(w).probs
    responsibilities = result.posterior().marginal("z").probs
    again = ppl_em.fit(model, X, init=result, method=EM(max_steps=1, tol=0))
    torch.testing.assert_close(make(again.params["w"]).probs, responsibilities.mean(0), atol=1e-7, rtol=0)
    assert probs.shape == (2,)
