"""The guide of a fit as an ordinary Pyro guide: fitted values, point estimates, summed latents from their posterior."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_em.fitted_model import FittedModel
from ppl_em.ir import Program
from ppl_em.svi.posterior import AmortisedPosterior
from ppl_em.trace.footprint import isolated

#: The posterior of a call's data, by its arguments.
Ask = Callable[[tuple[Any, ...], Mapping[str, Any]], AmortisedPosterior]


class FittedGuide:
    """Draws every latent of the model: sampled ones by the fitted guide, summed ones from their exact posterior.

    Use it as any Pyro guide, ``Predictive(result.model, guide=result.guide, num_samples=…)(*args)``.

    Args:
        guide: the guide that was trained.
        params: its constrained values by name (modules hold their own).
        points: point estimates by site name.
        summed: whether latents remain that the guide does not draw.
        posterior: gives the posterior for a call's arguments.
    """

    def __init__(
        self, guide: Any, params: Mapping[str, Tensor], points: Mapping[str, Tensor], summed: bool, posterior: Ask
    ) -> None:
        self._guide = FittedModel(guide, params)
        self._points, self._summed, self._posterior = dict(points), summed, posterior
        self._kept: tuple[tuple[Any, ...], AmortisedPosterior] | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Called as the thing that it stands for."""
        for name, value in self._points.items():
            pyro.sample(name, dist.Delta(value, event_dim=value.dim()))
        if not self._summed:
            return self._guide(*args, **kwargs)
        seed = int(torch.randint(2**31 - 1, ()))
        with pyro.poutine.block(), isolated(seed), torch.no_grad():
            posterior = self._ask(args, kwargs)
            values = posterior.one_draw(torch.Generator().manual_seed(seed))
        return give(values, posterior.plan.program)

    def _ask(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> AmortisedPosterior:
        """The posterior for a call, kept for calls with the very same arguments."""
        key = (*args, *kwargs.keys(), *kwargs.values())
        if (
            self._kept is None
            or len(self._kept[0]) != len(key)
            or any(a is not b for a, b in zip(self._kept[0], key, strict=True))
        ):
            with torch.enable_grad():  # tracing differentiates
                self._kept = (key, self._posterior(args, kwargs))
        return self._kept[1]


def give(values: Mapping[str, Tensor], program: Program) -> dict[str, Tensor]:
    """Sample statements that return given values, each in the plates of its latent.

    Args:
        values: by latent, shaped as the program has them.
        program: gives the plates.
    """
    used = dict.fromkeys(p for name in values for p in program.latents[name].plates)
    entries = [program.plates[p] for p in used]
    plates = {e.name: pyro.plate(e.name, e.size, dim=e.dim) for e in entries if e.declared}
    for name, value in values.items():
        latent = program.latents[name]
        with ExitStack() as stack:
            for plate in latent.plates:
                if plate in plates:
                    stack.enter_context(plates[plate])
            pyro.sample(name, dist.Delta(value, event_dim=len(latent.event_shape)))
    return dict(values)
