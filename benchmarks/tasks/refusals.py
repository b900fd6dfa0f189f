"""Programs that no exact engine can sum, refused by ``method="em"``: a clique, a Boltzmann machine, a sum of many."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from benchmarks.task import Contender, Finish, Run, Task

UNITS, NODES, STATES = 40, 12, 16


def boltzmann(weights: torch.Tensor) -> None:
    """A restricted Boltzmann machine of 40 × 40 units."""
    scale = pyro.param("scale", torch.tensor(1.0))
    hidden = [pyro.sample(f"h_{i}", dist.Bernoulli(0.5)) for i in range(UNITS)]
    visible = [pyro.sample(f"v_{i}", dist.Bernoulli(0.5)) for i in range(UNITS)]
    for i in range(UNITS):
        for j in range(UNITS):
            pyro.factor(f"f_{i}_{j}", scale * weights[i, j] * hidden[i] * visible[j])


def clique(weights: torch.Tensor) -> None:
    """Twelve latents of sixteen values, every two of them coupled."""
    bias = pyro.param("bias", torch.zeros(STATES))
    z = [pyro.sample(f"z_{i}", dist.Categorical(logits=bias)) for i in range(NODES)]
    for i in range(NODES):
        for j in range(i):
            pyro.factor(f"f_{i}_{j}", weights[z[i], z[j]])


def total(weights: torch.Tensor) -> None:
    """The sum of forty Bernoulli variables, with noise."""
    p = pyro.param("p", torch.tensor(0.3), constraint=dist.constraints.unit_interval)
    count: Any = 0.0
    for i in range(UNITS):
        count = count + pyro.sample(f"z_{i}", dist.Bernoulli(p))
    pyro.sample("x", dist.Normal(count, 1.0), obs=10 + weights[0, 0])


def refusals(model: Callable[[torch.Tensor], None]) -> Run:
    """``explain(model, weights, method="em")`` up to its error."""
    import ppl_em
    from ppl_em.errors import PlanError

    weights = torch.randn(UNITS, UNITS, generator=torch.Generator().manual_seed(0))

    def run(num_steps: int) -> Finish:
        for _ in range(num_steps):
            try:
                ppl_em.explain(model, weights, method="em")
            except PlanError as error:
                assert "budget" in str(error)
            else:
                raise AssertionError("the program was not refused")
        return lambda: 0.0

    return run


TASK = Task(
    what="refusal of a Boltzmann machine with 40 × 40 units, beside a clique of 12 latents and a sum of 40",
    contenders={
        "ppl_em": Contender(partial(refusals, boltzmann), same_algorithm=False),
        "clique": Contender(partial(refusals, clique), same_algorithm=False),
        "sum of 40": Contender(partial(refusals, total), same_algorithm=False),
    },
    num_steps=(1, 3),
    threads=(1,),
    limit_seconds=1.0,
)
