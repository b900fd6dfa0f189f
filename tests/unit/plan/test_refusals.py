"""Programs that are too large to sum: refused with the cost before anything is enumerated, or left to another method."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ppl_em
from ppl_em.errors import PlanError
from ppl_em.trace import tracing

UNITS = 40


def clique(x: Tensor, tables: Tensor) -> None:
    """Twelve latents of sixteen values, every two of them coupled."""
    bias = pyro.param("bias", torch.zeros(16))
    z = [pyro.sample(f"z_{i}", dist.Categorical(logits=bias)) for i in range(12)]
    for i in range(12):
        for j in range(i):
            pyro.factor(f"f_{i}_{j}", tables[i, j][z[i], z[j]])
    pyro.sample("x", dist.Normal(z[0].to(x.dtype), 1.0), obs=x)


def boltzmann(weights: Tensor) -> None:
    """A restricted Boltzmann machine of 40 × 40 units."""
    scale = pyro.param("scale", torch.tensor(1.0))
    hidden = [pyro.sample(f"h_{i}", dist.Bernoulli(0.5)) for i in range(UNITS)]
    visible = [pyro.sample(f"v_{i}", dist.Bernoulli(0.5)) for i in range(UNITS)]
    for i in range(UNITS):
        for j in range(UNITS):
            pyro.factor(f"f_{i}_{j}", scale * weights[i, j] * hidden[i] * visible[j])


def total(x: Tensor) -> None:
    """The sum of forty Bernoulli variables, with noise."""
    p = pyro.param("p", torch.tensor(0.3), constraint=constraints.unit_interval)
    count: Any = 0.0
    for i in range(UNITS):
        count = count + pyro.sample(f"z_{i}", dist.Bernoulli(p))
    pyro.sample("x", dist.Normal(count, 1.0), obs=x)


def arguments(name: str) -> tuple[Callable[..., None], tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    if name == "clique":
        return clique, (torch.tensor(3.0), torch.randn(12, 12, 16, 16, generator=generator))
    if name == "boltzmann":
        return boltzmann, (0.1 * torch.randn(UNITS, UNITS, generator=generator),)
    return total, (torch.tensor(15.0),)


CASES = {
    # K^12 states in the largest bucket; 2^41 for the machine (40 units of one side and one of the other); 2^40 at x.
    "clique": (16.0**12, "z_0", r"K 16→\d"),
    "boltzmann": (2.0**UNITS, "h_0", "max_flops"),
    "total": (2.0**UNITS, "x", "at most"),
}


@pytest.mark.parametrize("name", CASES)
def test_refused_by_em_with_its_cost_before_anything_is_enumerated(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the program was enumerated")

    monkeypatch.setattr(tracing, "Enumeration", never)
    model, args = arguments(name)
    states, site, hint = CASES[name]
    with pytest.raises(PlanError, match=hint) as refused:
        ppl_em.explain(model, *args, method="em")
    text = str(refused.value)
    assert f"site '{site}" in text
    numbers = [
        float(w.strip("(),")) for w in text.split() if w.replace("e+", "").replace(".", "").isdigit() and "e+" in w
    ]
    assert math.isclose(math.log2(max(numbers)), math.log2(states), abs_tol=16)


@pytest.mark.parametrize("name", ["clique", "boltzmann", "total"])
def test_auto_falls_back_and_says_why(name: str) -> None:
    model, args = arguments(name)
    plan = ppl_em.explain(model, *args)
    assert not plan.exact
    latent = "h_0" if name == "boltzmann" else "z_0"
    assert plan.engine_of(latent) == "variational"
    assert "budget" in dict(plan.rejected[latent])["exact"]
    assert plan.certificate.treatment[latent] == "approximated"
    assert "variational" in str(plan)


def test_the_fallback_bounds_a_likelihood_that_is_known() -> None:
    model, args = arguments("total")
    p = 0.3
    counts = torch.arange(UNITS + 1.0)
    log_z = torch.logsumexp(dist.Binomial(UNITS, p).log_prob(counts) + dist.Normal(counts, 1.0).log_prob(args[0]), 0)
    method = ppl_em.SVI(max_steps=120, lr=0.05)
    result = ppl_em.fit(model, *args, method=method, freeze=("p",))
    assert result.log_likelihood is None
    assert result.objective < float(log_z) + 0.05
    value, error = result.estimate_log_likelihood(300)
    assert abs(value - float(log_z)) < 5 * error + 0.1


def test_fewer_states_are_bought_at_the_cost_that_is_said() -> None:
    def ring(x: Tensor, tables: Tensor, states: int) -> None:
        bias = pyro.param("bias", torch.zeros(states))
        z = [pyro.sample(f"z_{i}", dist.Categorical(logits=bias)) for i in range(5)]
        for i in range(5):
            for j in range(i):
                pyro.factor(f"f_{i}_{j}", tables[i, j, :states, :states][z[i], z[j]])
        pyro.sample("x", dist.Normal(z[0].to(x.dtype), 1.0), obs=x)

    tables = torch.zeros(5, 5, 40, 40)
    method = ppl_em.Auto(max_flops=1e6)
    why = dict(ppl_em.explain(ring, torch.tensor(1.0), tables, 40, method=method).rejected["z_0"])["exact"]
    states = int(why.split("K 40→")[1].split(":")[0])
    assert 2 <= states < 40
    assert ppl_em.explain(ring, torch.tensor(1.0), tables, states, method=method).exact
    assert not ppl_em.explain(ring, torch.tensor(1.0), tables, 2 * states, method=method).exact
