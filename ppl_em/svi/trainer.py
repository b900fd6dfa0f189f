"""One gradient step on the bound: draw, score, differentiate, move."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppl_em.errors import PlanError, message
from ppl_em.methods import SVI
from ppl_em.plan.plan import Plan
from ppl_em.svi.batch import Batch
from ppl_em.svi.batches import empty_loader
from ppl_em.svi.bound import Bound, Terms
from ppl_em.svi.closed_form import Averaged, expected_weights
from ppl_em.svi.guides import GuideRun
from ppl_em.svi.score_function import SCORE_PARTICLES, score_function_bound, without_derivative
from ppl_em.svi.variables import Variables


class NonFinite(ArithmeticError):
    """A loss that is no number; carries the site that made it so.

    Attributes:
        site: its name.
    """

    def __init__(self, site: str) -> None:
        super().__init__(f"the bound is not finite at site '{site}'")
        self.site = site


@dataclass
class Trainer:
    """Everything that a gradient step needs.

    Args:
        plan: the plan.
        model: the program.
        guide: draws the sampled latents.
        variables: parameters of both.
        settings: of SVI.
        closed: groups of parameters with a closed form.
    """

    plan: Plan
    model: Any
    guide: GuideRun
    variables: Variables
    settings: SVI
    closed: list[Averaged] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.bound = Bound(self.plan, self.model, self.guide.mean_field)
        self.bound.watched = bool(self.closed)
        self._scores: bool | None = None
        make: Callable[[list[Tensor]], torch.optim.Optimizer] | None = self.settings.optim
        trained = self.variables.trained
        self.optimiser = (make or self._adam)(trained) if trained else None
        self.trained = trained
        #: Parameters whose closed form did not hold at the last step; they kept their values.
        self.stuck: tuple[str, ...] = ()

    def _adam(self, tensors: list[Tensor]) -> torch.optim.Optimizer:
        fused = all(t.is_floating_point() and t.device.type in ("cpu", "cuda") for t in tensors)
        return torch.optim.Adam(tensors, lr=self.settings.lr, fused=fused)

    def anneal(self, step: int) -> None:
        """Set the learning rate of the default optimiser for a step: half a cosine down to zero."""
        if self.settings.optim is not None or self.settings.schedule == "constant" or self.optimiser is None:
            return
        rate = 0.5 * self.settings.lr * (1 + math.cos(math.pi * step / max(1, self.settings.max_steps)))
        for group in self.optimiser.param_groups:
            group["lr"] = rate

    def step(self, batch: Batch) -> float:
        """One gradient step.

        Returns:
            The estimate of the bound on all data before the step, nats.

        Raises:
            NonFinite: the estimate is no number; nothing has been moved.
        """
        objective, terms = self.estimate(batch, self.settings.num_particles)
        value = float(objective.detach())
        if not math.isfinite(value):
            raise NonFinite(first_non_finite(terms))
        if self.optimiser is not None:
            for tensor in self.trained:
                tensor.grad = None
            (-objective).backward()
            self.optimiser.step()
        if self.closed:
            self._solve(batch)
        return value

    @torch.no_grad()
    def _solve(self, batch: Batch) -> list[str]:
        """Closed forms at what the last estimate saw; the parameters for which none was found."""
        failed: list[str] = []
        assert self.bound.seen is not None
        weights = expected_weights(self.plan, self.bound.seen, self.bound, batch)
        for group in self.closed:
            found = group.step(self.bound.seen, self.bound, weights, self.variables.constrained())
            self.variables.set(found)
            failed += [] if found else group.names
        self.stuck = tuple(failed)
        return failed

    @torch.no_grad()
    def rehearse(self, batch: Batch) -> list[str]:
        """Try every closed form once, leaving all values as they are; the parameters for which it does not hold."""
        before = self.variables.snapshot()
        parameters = self.variables.constrained()
        self.bound.terms(batch, parameters, self.guide.draw(batch, parameters))
        failed = self._solve(batch)
        for group in self.closed:
            group.forget()
        self.variables.restore(before)
        return failed

    def estimate(self, batch: Batch, num_particles: int) -> tuple[Tensor, Terms]:
        """Differentiable estimate of the objective on all data, with its summands."""
        parameters = self.variables.constrained()
        if self.settings.loss == "iwae" and num_particles > 1:
            if self._needs_scores(batch, parameters):
                why = "the guide draws latents whose values have no derivative"
                raise PlanError(message('loss="iwae" cannot be had', why=why, hint='loss="elbo"'))
            return self._importance_weighted(batch, parameters, num_particles)
        if torch.is_grad_enabled() and self._needs_scores(batch, parameters):
            draws = num_particles if num_particles > 1 else SCORE_PARTICLES
            return score_function_bound(self.bound, self.guide, batch, parameters, draws)
        terms: Terms = []
        for _ in range(num_particles):
            terms += self.bound.terms(batch, parameters, self.guide.draw(batch, parameters))
        total = sum_terms(terms)
        return (total if num_particles == 1 else total / num_particles), terms

    def _needs_scores(self, batch: Batch, parameters: Mapping[str, Tensor]) -> bool:
        """Whether the guide draws latents whose values have no derivative in its parameters."""
        if self._scores is None:
            self._scores = bool(without_derivative(self.guide.draw(batch, parameters), self.bound.guided))
        return self._scores

    def _importance_weighted(
        self, batch: Batch, parameters: Mapping[str, Tensor], num_particles: int
    ) -> tuple[Tensor, Terms]:
        """Σ_n log (1/K) Σ_k p(x_n, z_nk) / q(z_nk | x_n), plus what lies outside the data plate.

        Reference:
            Burda, Y., Grosse, R. & Salakhutdinov, R. (2016). Importance weighted autoencoders. ICLR.
        """
        weights, outside = [], []
        for _ in range(num_particles):
            draws = self.guide.draw(batch, parameters)
            inside, rest = self.bound.parts(batch, parameters, draws, closed_forms=False, priors=True)
            weights.append(inside)
            outside.append(rest)
        bound = torch.logsumexp(torch.stack(weights), 0) - math.log(num_particles)
        scaled = bound * self.bound.data_scale(batch)
        total = scaled.sum() + torch.stack(outside).mean()
        return total, [("importance weights", scaled.sum()), ("priors", torch.stack(outside).mean())]

    @torch.no_grad()
    def evaluate(self, shares: Iterable[tuple[float, Batch]], num_particles: int) -> float:
        """The bound on all data at the present parameters, nats, in float64.

        Args:
            shares: batches with their share of the data, up to a common factor.
            num_particles: draws for each datum.
        """
        parameters = self.variables.constrained()
        total, seen = 0.0, 0.0
        for share, batch in shares:
            seen += share
            part = 0.0
            for _ in range(num_particles):
                terms = self.bound.terms(batch, parameters, self.guide.draw(batch, parameters))
                part += float(sum_terms([(n, t.double()) for n, t in terms]))
            total += share * part / num_particles
        if not seen:
            raise empty_loader()
        return total / seen

    @torch.no_grad()
    def per_datum(self, batch: Batch, num_particles: int) -> Tensor:
        """The bound of each datum of a batch, mean over draws, (size,) float64 nats."""
        parameters = self.variables.constrained()
        total = torch.zeros(batch.size, dtype=torch.float64)
        for _ in range(num_particles):
            total += self.bound.parts(batch, parameters, self.guide.draw(batch, parameters))[0]
        return total / num_particles


def sum_terms(terms: Terms) -> Tensor:
    """Sum of all summands."""
    total = terms[0][1]
    for _, value in terms[1:]:
        total = total + value
    return total


def first_non_finite(terms: Terms) -> str:
    """Name of the first summand that is no number."""
    return next((n for n, v in terms if not math.isfinite(float(v.detach()))), "the sum")
