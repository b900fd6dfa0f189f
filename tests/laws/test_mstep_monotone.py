"""Law 4 over the structures of parameters: whatever is tied, frozen, masked or constrained, EM ascends."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

import ppl_em
from tests.tolerances import ASCENT

K, N, D = 2, 24, 2
SHAPES = {"none": (K, D), "components": (1, D), "columns": (K, 1), "all": (1, 1)}
SUPPORTS = {
    "positive": constraints.positive,
    "interval": constraints.interval(0.3, 2.5),
    "above one half": constraints.greater_than(0.5),
    "log": constraints.real,
    "softplus": constraints.real,
}
FAMILIES = ("normal", "gamma", "poisson", "laplace")


def positive(value: Tensor, spelling: str) -> Tensor:
    return {"log": torch.exp, "softplus": torch.nn.functional.softplus}.get(spelling, lambda t: t)(value)


def start(spelling: str, shape: tuple[int, ...]) -> Tensor:
    steps = torch.linspace(0.8, 1.6, shape[0])[:, None].expand(shape).clone()
    return {"log": torch.log, "softplus": lambda t: t.expm1().log()}.get(spelling, lambda t: t)(steps)


def likelihood(family: str, first: Tensor, second: Tensor) -> Any:
    if family == "normal":
        return dist.Normal(first, second)
    if family == "laplace":
        return dist.Laplace(first, second)
    return dist.Gamma(second, first) if family == "gamma" else dist.Poisson(first)


def build(family: str, ties: tuple[str, str], spellings: tuple[str, str], chain: bool, sites: int) -> Any:
    def parameter(i: int) -> Tensor:
        name, shape = f"p{i}", SHAPES[ties[i]]
        value = pyro.param(name, lambda: start(spellings[i], shape), constraint=SUPPORTS[spellings[i]])
        return positive(value, spellings[i]).expand(K, D)

    def model(x: Tensor, keep: Tensor) -> None:
        w = pyro.param("w", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
        a = pyro.param("A", torch.tensor([[0.7, 0.3], [0.0, 1.0]]), constraint=constraints.simplex)
        first, second = parameter(0), parameter(1) if family != "poisson" else torch.ones(K, D)
        z = None
        if chain:
            for t in pyro.markov(range(6)):
                z = pyro.sample(f"z_{t}", dist.Categorical(w if z is None else a[z]))
                with poutine.mask(mask=bool(keep[t])):
                    pyro.sample(f"x_{t}", likelihood(family, first[z], second[z]).to_event(1), obs=x[t])
            return
        with pyro.plate("data", N):
            z = pyro.sample("z", dist.Categorical(w))
            for i in range(sites):  # tied across sites too
                with poutine.mask(mask=keep):
                    pyro.sample(f"x{i}", likelihood(family, first[z], second[z]).to_event(1), obs=x + i * (x > 1))

    return model


@settings(max_examples=40)
@given(
    family=st.sampled_from(FAMILIES),
    ties=st.tuples(*[st.sampled_from(sorted(SHAPES))] * 2),
    spellings=st.tuples(*[st.sampled_from(sorted(SUPPORTS))] * 2),
    frozen=st.sets(st.sampled_from(["p0", "p1", "w", "A"])),
    masked=st.booleans(),
    chain=st.booleans(),
    sites=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_em_ascends(
    family: str,
    ties: tuple[str, str],
    spellings: tuple[str, str],
    frozen: set[str],
    masked: bool,
    chain: bool,
    sites: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    x = torch.distributions.Gamma(2.0, 1.0).sample((N, D)) + 0.05
    x = x.round() if family == "poisson" else x
    keep = torch.rand(N) > 0.3 if masked else torch.ones(N, dtype=torch.bool)
    model = build(family, ties, spellings, chain, sites)
    names = {"p0", "w"} | ({"p1"} if family != "poisson" else set()) | {"A"}
    held = sorted(frozen & names)
    method = ppl_em.EM(max_steps=8, tol=0)
    result = ppl_em.fit(model, x, keep, init="params", freeze=held, method=method)
    assert result.status in (ppl_em.Status.ALL_STEPS, ppl_em.Status.CONVERGED), result.status
    falls = -result.history.diff()
    assert bool((falls <= ASCENT * (1 + result.history[:-1].abs())).all())
    for name in held:
        assert result.plan.rule_of(name) == "frozen"
    for i in range(2):
        if f"p{i}" in result.params:
            assert bool(SUPPORTS[spellings[i]].check(result.params[f"p{i}"]).all())
            assert result.params[f"p{i}"].shape == SHAPES[ties[i]]
    if chain:  # what is impossible stays impossible
        assert float(result.params["A"][1, 0]) == 0.0
    torch.testing.assert_close(result.params["A"].sum(-1), torch.ones(2))
