"""A fitted program and guide on given data: bounds, importance weights, draws."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.errors import PplEmError, message
from ppl_em.ir import Factor
from ppl_em.plan.plan import Plan
from ppl_em.svi.batch import Batch
from ppl_em.svi.bound import Bound
from ppl_em.svi.guides import GuideRun
from ppl_em.svi.isolation import Isolation
from ppl_em.svi.score import Scored

#: Importance samples that are held at once.
CHUNK = 1 << 22


@dataclass(frozen=True)
class Query:
    """A fitted program and guide, and the data that are asked about.

    Args:
        plan: traced on these data (on a loader's first batch).
        model: the program.
        guide: draws the sampled latents.
        values: constrained values of model and guide.
        batches: data, each datum once, without scales.
        seed: of all randomness.
    """

    plan: Plan
    model: object
    guide: GuideRun
    values: Mapping[str, Tensor]
    batches: tuple[Batch, ...]
    seed: int

    def bound(self) -> Bound:
        """The bound of these data's plan."""
        return Bound(self.plan, self.model, self.guide.mean_field)

    def draws(self, batch: Batch, count: int) -> Iterator[list[Scored]]:
        """Draws of the guide for one batch."""
        for _ in range(count):
            yield self.guide.draw(batch, self.values)

    @torch.no_grad()
    def per_datum(self, num_particles: int) -> Tensor:
        """The bound by element of the data plate, nats in float64; a scalar where the data are not separate."""
        bound = self.bound()
        parts = []
        with Isolation(self.seed)():
            for batch in self.batches:
                separate = bound.plate is not None and not shared_latents(self.plan)
                total = torch.zeros(batch.size if separate else (), dtype=torch.float64)
                for draw in self.draws(batch, num_particles):
                    inside, outside = bound.parts(batch, self.values, draw, closed_forms=True)
                    total += inside if separate else inside.sum() + outside
                parts.append(total / num_particles)
        return torch.cat(parts) if parts[0].dim() else torch.stack(parts).sum()

    @torch.no_grad()
    def importance_log_likelihood(self, num_samples: int) -> tuple[float, float]:
        """Importance-weighted estimate of the log marginal likelihood and its standard error, nats.

        For each datum log (1/K) Σ_k p(x, u_k) / q(u_k | x), summed over data; where data share sampled latents the
        weights are those of all data together. The logarithm is biased downwards by about the square of the error.

        Args:
            num_samples: K.

        Reference:
            Burda, Y., Grosse, R. & Salakhutdinov, R. (2016). Importance weighted autoencoders. ICLR.
        """
        bound = self.bound()
        value, variance = 0.0, 0.0
        shared = shared_latents(self.plan) or bound.plate is None
        if shared and len(self.batches) > 1:
            raise PplEmError(
                message("data that share sampled latents must be given at once", hint="one tensor, not a loader")
            )
        with Isolation(self.seed)():
            for batch in self.batches:
                weights = Weights()
                for draw in self.draws(batch, num_samples):
                    inside, outside = bound.parts(batch, self.values, draw, closed_forms=False)
                    weights.add(inside.sum() + outside if shared else inside)
                mean, error = weights.log_mean()
                value += float(mean.sum())
                variance += float(error.sum())
        return value, math.sqrt(variance)

    def log_factors(self, batch: Batch, draw: list[Scored]) -> tuple[dict[str, Factor], dict[str, int]]:
        """Log-factors of the summed blocks at one draw, and the sizes of plates."""
        return self.bound().block_factors(batch, self.values, draw)


class Weights:
    """Running sums of importance weights, in the log domain."""

    def __init__(self) -> None:
        self.count = 0
        self.first: Tensor | None = None
        self.second: Tensor | None = None

    def add(self, log_weight: Tensor) -> None:
        """One weight for each datum."""
        self.count += 1
        if self.first is None or self.second is None:
            self.first, self.second = log_weight, 2 * log_weight
        else:
            self.first = torch.logaddexp(self.first, log_weight)
            self.second = torch.logaddexp(self.second, 2 * log_weight)

    def log_mean(self) -> tuple[Tensor, Tensor]:
        """Logarithm of the mean weight, and the variance of that estimate (delta method)."""
        assert self.first is not None and self.second is not None
        mean = self.first - math.log(self.count)
        spread = (self.second - math.log(self.count) - 2 * mean).exp() - 1  # squared coefficient of variation
        return mean, spread.clamp_min(0.0) / max(1, self.count - 1)


def shared_latents(plan: Plan) -> bool:
    """Whether all data share a latent that is sampled or summed."""
    plate = plan.program.data_plate
    sampled = [plan.program.latents[n] for n in plan.approximated]
    summed = [z for b in plan.blocks for z in b.block.latents]
    return any(plate not in z.plates for z in (*sampled, *summed))
