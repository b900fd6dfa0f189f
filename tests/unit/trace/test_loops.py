"""Loops of any length, with or without ``pyro.markov``, need as many dimensions as they are wide."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ppl_em
from ppl_em import EM
from tests.tolerances import BRUTE_FORCE
from tests.unit.programs import chain

X = torch.randn(120, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def plain_loop(x: Tensor) -> None:
    """`chain` without any hint that steps may be forgotten."""
    init = pyro.param("init", torch.tensor([0.6, 0.4]), constraint=constraints.simplex)
    trans = pyro.param("trans", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
    z = None
    for t in range(len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(init if z is None else trans[z]))
        pyro.sample(f"x_{t}", dist.Normal(loc[z], 1.0), obs=x[t])


def test_a_long_loop_without_markov_is_a_chain() -> None:
    one = ppl_em.fit(chain, X, init="params", method=EM(max_steps=2, tol=0))
    two = ppl_em.fit(plain_loop, X, init="params", method=EM(max_steps=2, tol=0))
    assert two.plan.engine_of("z") == "chain"
    torch.testing.assert_close(two.history, one.history, atol=BRUTE_FORCE, rtol=0)
    torch.testing.assert_close(two.params["trans"], one.params["trans"], atol=BRUTE_FORCE, rtol=0)


@pytest.mark.parametrize("order", [2, 3])
def test_longer_memory(order: int) -> None:
    """A state that depends on several before it: log Z against the same chain over tuples of states."""
    steps = 6
    table = torch.softmax(torch.randn([2] * (order + 1), generator=torch.Generator().manual_seed(1)), -1)

    def model(x: Tensor) -> None:
        past: list[Tensor] = []
        for t in range(steps):
            if t < order:
                z = pyro.sample(f"z_{t}", dist.Categorical(torch.tensor([0.4, 0.6])))
            else:
                z = pyro.sample(f"z_{t}", dist.Categorical(table[tuple(past[-order:])]))
            past.append(z)
            pyro.sample(f"x_{t}", dist.Normal(2.0 * z, 1.0), obs=x[t])

    result = ppl_em.fit(model, X[:steps], method=EM(max_steps=0))
    states = torch.cartesian_prod(*[torch.arange(2)] * steps)
    score = dist.Normal(2.0 * states, 1.0).log_prob(X[:steps]).sum(-1)
    score = score + torch.tensor([0.4, 0.6]).log()[states[:, :order]].sum(-1)
    for t in range(order, steps):
        score = score + table[tuple(states[:, t - order : t + 1].unbind(-1))].log()
    assert result.objective == pytest.approx(float(torch.logsumexp(score, 0)), abs=BRUTE_FORCE)
    assert result.exact


def test_two_chains_side_by_side() -> None:
    def model(x: Tensor) -> None:
        for name, sign in (("a", 1.0), ("b", -1.0)):
            z = None
            for t in range(5):
                p = torch.tensor(0.4) if z is None else 0.2 + 0.5 * z
                z = pyro.sample(f"{name}_{t}", dist.Bernoulli(p))
                pyro.sample(f"x_{name}_{t}", dist.Normal(sign * z, 1.0), obs=x[t])

    result = ppl_em.fit(model, X[:5], method=EM(max_steps=0))
    assert result.plan.engine_of("a") == result.plan.engine_of("b") == "chain"
    assert len(result.plan.blocks) == 2
