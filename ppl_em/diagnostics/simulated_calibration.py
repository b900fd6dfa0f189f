"""Simulation-based calibration of a posterior: the truth's rank among its draws is uniform if the posterior is right.

Reference:
    Talts, S., Betancourt, M., Simpson, D., Vehtari, A. & Gelman, A. (2018). Validating Bayesian inference algorithms with
    simulation-based calibration. arXiv:1804.06788.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ppl_em.diagnostics.particles import some_data
from ppl_em.errors import PplEmError, message
from ppl_em.svi.query import shared_latents
from ppl_em.trace.footprint import isolated
from ppl_em.trace.run import run_program

if TYPE_CHECKING:
    from ppl_em.result import FitResult
    from ppl_em.svi.result import ApproximateResult

#: Draws of the posterior for each simulated datum.
NUM_DRAWS = 99


@dataclass(frozen=True, eq=False)
class Ranks:
    """Ranks of simulated latents among draws of their posterior, as numbers between 0 and 1.

    Args:
        values: by dimension of a latent (``z[3]``), (n,) uniform if the posterior is right.
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
def calibrate(result: FitResult, num_draws: int = NUM_DRAWS, seed: int = 0) -> Ranks:
    """Simulation-based calibration of the posterior of a fit: no refits, parameters at their estimates.

    Latents and data are drawn from the fitted program; for these data latents are drawn from the posterior that the fit
    gives. If that posterior is right, the rank of each simulated latent among its draws is uniform. Equal values of
    discrete latents are ranked at random among each other.

    Args:
        result: a fit with latents of single data (in a data plate), its data at hand.
        num_draws: draws of the posterior for each simulated datum.
        seed: of all draws.

    Returns:
        Ranks, with their distance from uniform and its 95 % band.

    Raises:
        PplEmError: no latent belongs to a single datum, or an observed value is not one of the model's arguments.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_em
        >>> def mixture(x):
        ...     loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
        ...         pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)
        >>> x = torch.tensor([-2.1, -1.8, -2.4, 1.9, 2.2, 2.3])
        >>> ranks = ppl_em.calibrate(ppl_em.fit(mixture, x))
        >>> ranks.distance("z") < ranks.band
        True
    """
    args, kwargs, names = _simulated_from(result)
    values = result._values
    with isolated(seed):
        seen = run_program(result._model, args, kwargs, parameters=values).records

        def anew(name: str, fn: Any) -> Tensor:
            return values[name] if name in values else fn.sample()

        drawn = run_program(result._model, args, kwargs, assign=anew, parameters=values, unobserve=True).records
    observed = {n: (r.value, drawn[n].value) for n, r in seen.items() if r.role == "observed"}
    args = tuple(_replaced(a, observed) for a in args)
    kwargs = {k: _replaced(v, observed) for k, v in kwargs.items()}
    if observed:
        why = "an observed value is not an argument of the model"
        raise PplEmError(message(why, site=next(iter(observed)), hint="pyro.sample(..., obs=argument)"))
    posterior = result.posterior(*args, **kwargs)
    draws = posterior.sample(num_draws, seed + 1)
    ranks = {}
    with isolated(seed + 2):
        for name in names:
            ranks[name] = _rank(drawn[name].value, [posterior.by_step({name: d})[name] for d in draws[name]])
    columns = {}
    for name, rank in ranks.items():
        flat = rank.reshape(-1, drawn[name].fn.event_shape.numel())
        for d in range(flat.shape[1]):
            columns[f"{name}[{d}]" if flat.shape[1] > 1 else name] = flat[:, d]
    return Ranks(columns)


def _simulated_from(result: FitResult) -> tuple[tuple[Any, ...], Mapping[str, Any], list[str]]:
    """The model's arguments, of which some data where there are many, and the latents to be ranked."""
    if hasattr(result, "query"):
        query = some_data(cast("ApproximateResult", result))
        plan, whole = query.plan, len(query.batches) == 1 and not shared_latents(query.plan)
        args, kwargs, names = query.batches[0].args, query.batches[0].kwargs, list(plan.approximated)
    else:
        plan, source, whole = result._plan_for(()), result._source_for(()), True
        args, kwargs, names = source.args, source.kwargs, [z.name for b in plan.blocks for z in b.block.latents]
    names = [n for n in names if plan.program.data_plate in plan.program.latents[n].plates]
    if not whole or plan.program.data_plate is None or not names:
        raise PplEmError(message("calibration by simulation needs latents of single data, in one tensor"))
    return args, kwargs, names


def _rank(truth: Tensor, draws: Sequence[Tensor]) -> Tensor:
    """Rank of each element among its draws, between 0 and 1, ties broken at random."""
    below = sum((d < truth).double() for d in draws)
    ties = sum((d == truth).double() for d in draws)
    return (below + torch.rand(truth.shape, dtype=torch.float64) * (ties + 1)) / (len(draws) + 1)


def _replaced(value: Any, observed: dict[str, tuple[Tensor, Tensor]]) -> Any:
    """An argument, or the simulated value of the site that observes it (which is then done)."""
    if not isinstance(value, Tensor):
        return value
    for name, (before, after) in list(observed.items()):
        if before.shape == value.shape and torch.equal(before, value):
            del observed[name]
            return after.to(value.dtype)
    return value
