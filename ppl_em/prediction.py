"""Predictive draws: observed sites drawn anew, latents from their posterior or from the program."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_em.posterior import Posterior
from ppl_em.trace.footprint import isolated
from ppl_em.trace.run import run_program
from ppl_em.trace.tracing import Source


def predict(
    source: Source, parameters: Mapping[str, Tensor], posterior: Posterior | None, num_samples: int, seed: int | None
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

            run = run_program(source.model, source.args, source.kwargs, assign=assign, parameters=parameters, unobserve=True)
            for name, record in run.records.items():
                if record.role == "observed":
                    draws.setdefault(name, []).append(record.value)
    return {name: torch.stack(values) for name, values in draws.items()}
