"""Simulation-based calibration of an encoder: the truth's rank among its draws is uniform if the posterior is right.

Reference:
    Talts, S., Betancourt, M., Simpson, D., Vehtari, A. & Gelman, A. (2018). Validating Bayesian inference algorithms with
    simulation-based calibration. arXiv:1804.06788.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_em.diagnostics.particles import some_data
from ppl_em.errors import PplEmError, message
from ppl_em.svi.isolation import Isolation
from ppl_em.svi.query import shared_latents
from ppl_em.trace.run import run_program

if TYPE_CHECKING:
    from ppl_em.svi.result import ApproximateResult

#: Draws of the encoder for each simulated datum.
NUM_DRAWS = 99


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of simulated latents among the encoder's draws, as numbers between 0 and 1.

    Args:
        values: by dimension of a latent (``z[3]``), (n,) uniform if the encoder's posterior is right.
    """

    values: dict[str, Tensor]

    def distance(self, name: str) -> float:
        """Largest distance of the ranks' distribution function from the uniform one."""
        ordered = self.values[name].sort().values
        steps = torch.arange(len(ordered) + 1, dtype=torch.float64) / len(ordered)
        return float(torch.maximum((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))

    @property
    def band(self) -> float:
        """Distance that none of the dimensions exceeds with a probability of 95 % if all are uniform."""
        count = len(next(iter(self.values.values())))
        return math.sqrt(math.log(2 * len(self.values) / 0.05) / (2 * count))

    @property
    def worst(self) -> str:
        """The dimension that is farthest from uniform."""
        return max(self.values, key=self.distance)


@torch.no_grad()
def calibrate(result: ApproximateResult, seed: int = 0) -> Ranks:
    """Draw latents and data from the fitted program, and rank the latents among draws of the encoder for these data.

    Raises:
        PplEmError: data share latents, or an observed value is not one of the model's arguments.
    """
    query = some_data(result)
    if shared_latents(query.plan) or query.plan.program.data_plate is None or len(query.batches) != 1:
        raise PplEmError(message("calibration by simulation needs latents of single data, in one tensor"))
    (batch,) = query.batches
    latents = [n for n in query.plan.approximated if query.plan.program.latents[n].kind == "continuous"]
    with Isolation(seed)():
        seen = run_program(result._model, batch.args, batch.kwargs, parameters=query.values).records

        def anew(name: str, fn: Any) -> Tensor:
            return query.values[name] if name in query.values else fn.sample()

        drawn = run_program(
            result._model, batch.args, batch.kwargs, assign=anew, parameters=query.values, unobserve=True
        ).records
    observed = {n: (r.value, drawn[n].value) for n, r in seen.items() if r.role == "observed"}
    args = tuple(_replaced(a, observed) for a in batch.args)
    kwargs = {k: _replaced(v, observed) for k, v in batch.kwargs.items()}
    if observed:
        raise PplEmError(
            message(
                "an observed value is not an argument of the model",
                site=next(iter(observed)),
                hint="pyro.sample(..., obs=argument)",
            )
        )
    fresh = result.query(*args, **kwargs)
    below: dict[str, Tensor] = {n: torch.zeros_like(drawn[n].value, dtype=torch.float64) for n in latents}
    with Isolation(seed + 1)():
        for draw in fresh.draws(fresh.batches[0], NUM_DRAWS):
            for site in draw:
                if site.name in below:
                    below[site.name] += (site.value < drawn[site.name].value).double()
        ranks = {n: (b + torch.rand_like(b)) / (NUM_DRAWS + 1) for n, b in below.items()}
    columns = {}
    for name, rank in ranks.items():
        flat = rank.reshape(-1, drawn[name].fn.event_shape.numel())
        for d in range(flat.shape[1]):
            columns[f"{name}[{d}]" if flat.shape[1] > 1 else name] = flat[:, d]
    return Ranks(columns)


def _replaced(value: Any, observed: dict[str, tuple[Tensor, Tensor]]) -> Any:
    """An argument, or the simulated value of the site that observes it (which is then done)."""
    if not isinstance(value, Tensor):
        return value
    for name, (before, after) in list(observed.items()):
        if before.shape == value.shape and torch.equal(before, value):
            del observed[name]
            return after.to(value.dtype)
    return value
