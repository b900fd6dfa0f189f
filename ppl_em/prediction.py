"""Predictive draws: observed sites drawn anew, latents from their posterior or from the program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_em.plan.plan import Plan
from ppl_em.posterior import Posterior
from ppl_em.trace.footprint import isolated
from ppl_em.trace.run import run_program
from ppl_em.trace.tracing import Source


def predict(
    source: Source,
    parameters: Mapping[str, Tensor],
    posterior: Posterior | None,
    num_samples: int,
    seed: int | None,
) -> dict[str, Tensor]:
    """Draws of every observed site.

    Args:
        source: program and data (observations are not conditioned on, other arguments are used as they are).
        parameters: constrained values, point estimates among them.
        posterior: posterior of the latents; None draws them from the program.
        num_samples: number of draws.
        seed: of the draws; None draws afresh.

    Returns:
        By site, (num_samples, *shape of the observed value).
    """
    fresh = int(torch.Generator().seed() % 2**31) if seed is None else seed
    latents = posterior.sample(num_samples, fresh) if posterior is not None else {}
    draws: dict[str, list[Tensor]] = {}
    with isolated(fresh), torch.no_grad():
        for i in range(num_samples):

            def assign(name: str, fn: Any, i: int = i) -> Tensor:
                if name in latents:
                    return latents[name][i]
                if name in parameters:
                    return parameters[name]
                return fn.sample()

            run = run_program(
                source.model, source.args, source.kwargs, assign=assign, parameters=parameters, unobserve=True
            )
            for name, record in run.records.items():
                if record.role == "observed":
                    draws.setdefault(name, []).append(record.value)
    return {name: torch.stack(values) for name, values in draws.items()}


def predict_draws(
    source: Source,
    parameters: Mapping[str, Tensor],
    draws: Mapping[str, Tensor],
    plan: Plan | None,
    num_samples: int,
    seed: int | None,
) -> dict[str, Tensor]:
    """As :func:`predict`, with other values of the parameters in each sample.

    Args:
        source: program and data.
        parameters: constrained values of those that are not drawn.
        draws: by name, (n, *shape); used in turn.
        plan: latents are drawn from the posterior under it; None draws them from the program.
        num_samples: number of draws.
        seed: of the draws; None draws afresh.
    """
    fresh = int(torch.Generator().seed() % 2**31) if seed is None else seed
    available = min(len(d) for d in draws.values()) if len(draws) else 1
    samples = []
    for i in range(num_samples):
        values = {**parameters, **{n: d[i % available] for n, d in draws.items()}}
        posterior = None if plan is None else Posterior(plan, values)
        samples.append(predict(source, values, posterior, 1, fresh + i))
    return {name: torch.cat([s[name] for s in samples]) for name in samples[0]} if samples else {}
