"""Predictive draws: observed sites drawn anew, latents from their posterior or from the program."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_em.errors import PplEmError, message
from ppl_em.plan.plan import Plan
from ppl_em.posterior import Posterior
from ppl_em.trace.footprint import isolated
from ppl_em.trace.run import run_program
from ppl_em.trace.tracing import Source


def check_kinds(latents: str, params: str) -> None:
    """Refuse unknown kinds of predictive draws.

    Raises:
        PplEmError: ``latents`` is neither ``"posterior"`` nor ``"prior"``, or ``params`` neither ``"point"`` nor ``"draws"``.
    """
    if params not in ("point", "draws"):
        raise PplEmError(message("unknown params", value=params, hint='"point" or "draws"'))
    if latents not in ("posterior", "prior"):
        raise PplEmError(message("unknown latents", value=latents, hint='"posterior" or "prior"'))


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
    fresh = _fresh(seed)
    drawn = posterior.sample(num_samples, fresh) if posterior is not None else {}

    def cases() -> Iterable[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
        for i in range(num_samples):
            latents = {n: v[i] for n, v in drawn.items()}
            yield parameters, latents if posterior is None else posterior.by_step(latents)

    return _run(source, cases(), fresh)


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
    fresh = _fresh(seed)
    available = min((len(d) for d in draws.values()), default=1)

    def cases() -> Iterable[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]]:
        for i in range(num_samples):
            values = {**parameters, **{n: d[i % available] for n, d in draws.items()}}
            latents: Mapping[str, Tensor] = {}
            if plan is not None:
                posterior = Posterior(plan, values)
                latents = posterior.by_step({n: v[0] for n, v in posterior.sample(1, fresh + i).items()})
            yield values, latents

    return _run(source, cases(), fresh)


def _fresh(seed: int | None) -> int:
    return int(torch.Generator().seed() % 2**31) if seed is None else seed


def _run(
    source: Source, cases: Iterable[tuple[Mapping[str, Tensor], Mapping[str, Tensor]]], seed: int
) -> dict[str, Tensor]:
    """One run of the program for each (parameters, latents); what is in neither is drawn."""
    draws: dict[str, list[Tensor]] = {}
    with isolated(seed), torch.no_grad():
        for parameters, latents in cases:

            def assign(
                name: str,
                fn: Any,
                parameters: Mapping[str, Tensor] = parameters,
                latents: Mapping[str, Tensor] = latents,
            ) -> Tensor:
                if name in latents:
                    return latents[name]
                return parameters[name] if name in parameters else fn.sample()

            run = run_program(
                source.model, source.args, source.kwargs, assign=assign, parameters=parameters, unobserve=True
            )
            for name, record in run.records.items():
                if record.role == "observed":
                    draws.setdefault(name, []).append(record.value)
    return {name: stacked(values) for name, values in draws.items()}


def stacked(draws: Sequence[Tensor]) -> Tensor:
    """Draws of one site together; sequences whose length is random are padded with −1, as each draw is already.

    Args:
        draws: of shapes that are equal but for the last dimension of whole-numbered sequences.
    """
    longest = max(d.shape[-1] if d.dim() else 0 for d in draws)
    if any(d.dim() and d.shape[-1] < longest for d in draws) and not draws[0].is_floating_point():
        draws = [torch.nn.functional.pad(d, (0, longest - d.shape[-1]), value=-1) for d in draws]
    return torch.stack(tuple(draws))
