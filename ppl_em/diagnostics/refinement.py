"""What an encoder loses by serving all data at once: its posterior refined datum by datum.

Reference:
    Cremer, C., Li, X. & Duvenaud, D. (2018). Inference suboptimality in variational autoencoders. ICML.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Normal, TransformedDistribution

from ppl_em.diagnostics.particles import some_data
from ppl_em.errors import PplEmError, message
from ppl_em.svi.isolation import Isolation
from ppl_em.svi.query import shared_latents
from ppl_em.svi.score import Scored

if TYPE_CHECKING:
    from ppl_em.svi.result import ApproximateResult

#: Data that are refined, gradient steps, rate, draws per step, and draws by which the outcome is judged.
NUM_DATA, STEPS, RATE, PER_STEP, JUDGED = 100, 150, 0.05, 2, 200


@dataclass(frozen=True)
class Gap:
    """Where the bound loses against the log-likelihood, nats per datum, averaged over some data.

    Args:
        amortisation: what a posterior of the same family fitted to each datum alone gains over the encoder's.
        approximation: what is left to the log-likelihood (importance weighted): the family's share.
        num_data: data looked at.
    """

    amortisation: float
    approximation: float
    num_data: int

    @property
    def total(self) -> float:
        """Log-likelihood less bound."""
        return self.amortisation + self.approximation


def split_gap(result: ApproximateResult) -> Gap:
    """Refine the encoder's posterior for some data, everything else held.

    Raises:
        PplEmError: a latent's family is not a (transformed) normal with independent elements, or data share latents.
    """
    query = some_data(result, NUM_DATA)
    query = replace(query, batches=query.batches[:1])
    if shared_latents(query.plan) or query.plan.program.data_plate is None:
        raise PplEmError(message("data that share latents cannot be refined one by one"))
    (batch,) = query.batches
    bound = query.bound()
    with Isolation(query.seed)():
        with torch.no_grad():
            sites = query.guide.draw(batch, query.values)
        members = [_Member.of(site) for site in sites]
        leaves = [t for m in members for t in (m.loc, m.log_scale)]
        optimiser = torch.optim.Adam(leaves, lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)

        def value(drawn: list[Scored], closed: bool) -> Tensor:
            return bound.parts(batch, query.values, drawn, closed_forms=closed)[0]

        with torch.enable_grad():
            for _ in range(STEPS):
                total = sum((value([m.draw() for m in members], True).sum() for _ in range(PER_STEP)), torch.zeros(()))
                gradients = torch.autograd.grad(-total / PER_STEP, leaves)
                for leaf, gradient in zip(leaves, gradients, strict=True):
                    leaf.grad = gradient
                optimiser.step()
                schedule.step()
        with torch.no_grad():
            before = torch.stack([value(query.guide.draw(batch, query.values), False) for _ in range(JUDGED)])
            after = torch.stack([value([m.draw() for m in members], False) for _ in range(JUDGED)])
    # Of two importance-weighted estimates the larger is nearer: both are bounds in expectation.
    estimates = [torch.logsumexp(w, 0) - math.log(JUDGED) for w in (before, after)]
    likelihood = torch.maximum(*estimates)
    encoder, refined = before.mean(0), torch.maximum(before.mean(0), after.mean(0))
    return Gap(float((refined - encoder).mean()), float((likelihood - refined).mean()), len(encoder))


@dataclass(frozen=True, eq=False)
class _Member:
    """One latent's normal distribution with parameters of its own for each datum.

    Args:
        site: the encoder's draw.
        loc, log_scale: leaves.
        build: a distribution from a normal one.
    """

    site: Scored
    loc: Tensor
    log_scale: Tensor
    build: Callable[[Any], Any]

    @classmethod
    def of(cls, site: Scored) -> _Member:
        normal, build = _normal(site.fn, site.name)
        loc = normal.loc.detach().clone().requires_grad_(True)
        return cls(site, loc, normal.scale.detach().log().clone().requires_grad_(True), build)

    def draw(self) -> Scored:
        fn = self.build(Normal(self.loc, self.log_scale.exp(), validate_args=False))
        return replace(self.site, fn=fn, value=fn.rsample(), twin=None)


def _normal(fn: Any, name: str) -> tuple[Any, Callable[[Any], Any]]:
    """The normal distribution inside a variational one, and how to put another in its place."""
    if isinstance(fn, torch.distributions.Independent):
        depth = fn.reinterpreted_batch_ndims
        inner, build = _normal(fn.base_dist, name)
        return inner, lambda base: torch.distributions.Independent(build(base), depth)
    if isinstance(fn, torch.distributions.TransformedDistribution):
        transforms = list(fn.transforms)
        inner, build = _normal(fn.base_dist, name)
        return inner, lambda base: TransformedDistribution(build(base), transforms, validate_args=False)
    if isinstance(fn, torch.distributions.Normal):
        return fn, lambda base: base
    raise PplEmError(message("only normal families are refined", site=name, value=type(fn).__name__))
