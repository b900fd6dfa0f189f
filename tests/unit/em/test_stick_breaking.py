"""Weights that are the pieces of a broken stick have a closed form, as weights on the simplex have."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints
from torch.nn.functional import pad

import ppl_em
from ppl_em.ir.transform import STICK_BREAKING


def cumulative(breaks: Tensor) -> Tensor:
    return pad(breaks, (0, 1), value=1.0) * pad((1 - breaks).cumprod(-1), (1, 0), value=1.0)


def one_by_one(breaks: Tensor) -> Tensor:
    pieces, left = [], torch.ones(breaks.shape[:-1])
    for b in breaks.unbind(-1):
        pieces.append(left * b)
        left = left * (1 - b)
    return torch.stack([*pieces, left], -1)


def data() -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return torch.cat([torch.randn(n, generator=generator) + m for n, m in ((10, 0.0), (25, 3.0), (15, 7.0))])


def mixture(x: Tensor, weights: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor([0.0, 3.0, 6.0]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def on_the_simplex(x: Tensor) -> None:
    mixture(x, pyro.param("weights", torch.ones(3) / 3, constraint=constraints.simplex))


@pytest.mark.parametrize("spelling", [cumulative, one_by_one])
def test_the_maximum_is_that_of_weights_on_the_simplex(spelling) -> None:
    def broken(x: Tensor) -> None:
        breaks = pyro.param("breaks", torch.full((2,), 0.4), constraint=constraints.unit_interval)
        mixture(x, spelling(breaks))

    method = ppl_em.EM(tol=1e-11)
    start = {"loc": torch.tensor([0.0, 3.0, 6.0])}
    mine, plain = (ppl_em.fit(m, data(), init=start, method=method) for m in (broken, on_the_simplex))
    assert mine.plan.rule_of("breaks") == "closed form"
    assert mine.objective == pytest.approx(plain.objective, abs=1e-8)
    torch.testing.assert_close(cumulative(mine.params["breaks"]), plain.params["weights"], rtol=0.0, atol=1e-4)


def test_rows_of_a_table_are_broken_one_by_one() -> None:
    """A chain whose rows are sticks: each move multiplies what is left."""

    def chain(x: Tensor) -> None:
        breaks = pyro.param(
            "breaks", torch.tensor([[0.6, 0.5], [0.3, 0.5], [0.2, 0.3]]), constraint=constraints.unit_interval
        )
        moves, z = cumulative(breaks), 0
        for t in pyro.markov(range(len(x))):
            z = pyro.sample(f"z_{t}", dist.Categorical(moves[z]))
            pyro.sample(f"x_{t}", dist.Normal(3.0 * z, 1.0), obs=x[t])

    result = ppl_em.fit(chain, data()[::2])
    assert result.plan.rule_of("breaks") == "closed form"
    pairs = sum(result.posterior().pairwise(f"z_{t}", f"z_{t + 1}") for t in range(24))
    first = result.posterior().marginal("z_0").probs
    counts = pairs + torch.stack([first, torch.zeros(3), torch.zeros(3)])  # the first state moves from state 0
    torch.testing.assert_close(
        cumulative(result.params["breaks"]), counts / counts.sum(-1, keepdim=True), rtol=0.0, atol=1e-3
    )


def test_breaks_and_pieces_are_each_others_inverse() -> None:
    breaks = torch.rand(4, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(STICK_BREAKING.forward(breaks), cumulative(breaks))
    torch.testing.assert_close(STICK_BREAKING.inverse(cumulative(breaks)), breaks)
