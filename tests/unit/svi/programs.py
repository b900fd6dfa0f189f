"""Small programs with posteriors that are known, shared by the tests of variational inference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_em.fitting import ENGINES
from ppl_em.plan.plan import Plan, make_plan
from ppl_em.planner import rule_lookup
from ppl_em.trace.tracing import Source, trace_program

LOADING = torch.tensor([[1.0, 0.7], [0.3, -0.4], [0.8, 0.9], [0.0, 0.6], [-0.7, -0.3]], dtype=torch.float64)
NOISE = 0.5


def factors(x: Tensor) -> None:
    """Probabilistic PCA with a fixed loading matrix whose columns are not orthogonal; x (n, 5)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ LOADING.T, NOISE).to_event(1), obs=x)


def factor_data(n: int = 100) -> Tensor:
    return torch.randn(n, 2) @ LOADING.T + NOISE * torch.randn(n, 5)


def factor_log_likelihood(x: Tensor) -> Tensor:
    """Exact log-likelihood of each row, (n,)."""
    covariance = LOADING @ LOADING.T + NOISE**2 * torch.eye(5)
    return dist.MultivariateNormal(torch.zeros(5), covariance).log_prob(x)


def mean_field_gap() -> float:
    """KL from the best diagonal normal to the posterior of one code, nats: ½ (Σ log Λ_ii − log |Λ|)."""
    precision = torch.eye(2) + LOADING.T @ LOADING / NOISE**2
    return 0.5 * float(precision.diagonal().log().sum() - precision.logdet())


def gaussian_mixture(x: Tensor) -> None:
    """Two components; x (n, 2)."""
    weights = pyro.param("weights", torch.ones(2) / 2, constraint=dist.constraints.simplex)
    loc = pyro.param("loc", torch.zeros(2, 2))
    scale = pyro.param("scale", torch.ones(2, 2), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)


def plan_of(model: Callable[..., Any], *args: Any, **tracing: Any) -> tuple[Source, Plan]:
    """A program traced and planned for variational inference."""
    guided = tracing.pop("guided", ())
    source = Source(model, args, {}, time=None)
    program = trace_program(source, **tracing)
    return source, make_plan(program, ENGINES, rule_lookup, max_bytes=1e9, method="svi", guided=guided)
