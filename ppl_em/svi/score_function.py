"""Gradients along draws that have no derivative: the score function, each draw held against the others.

References:
    Williams, R. (1992). Simple statistical gradient-following algorithms for connectionist reinforcement learning.
    Machine Learning 8.
    Kool, W., van Hoof, H. & Welling, M. (2019). Buy 4 REINFORCE samples, get a baseline for free! ICLR workshop.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ppl_em.ir import Factor
from ppl_em.svi.batch import Batch
from ppl_em.svi.bound import Bound, Terms, home_of
from ppl_em.svi.guides import GuideRun
from ppl_em.svi.score import Scored

#: Draws at least, where each is held against the mean of the others.
SCORE_PARTICLES = 8


def without_derivative(draws: Sequence[Scored], summed: Collection[str]) -> list[tuple[Scored, Tensor]]:
    """The guide's draws whose values have no gradient in its parameters, with their log-probabilities, which have.

    Args:
        draws: the guide's sites.
        summed: latents of which the guide runs through all values.
    """
    drawn = [(q, q.fn.log_prob(q.value)) for q in draws if q.name not in summed and not q.fn.has_rsample]
    return [(q, log_prob) for q, log_prob in drawn if log_prob.requires_grad]


def score_function_bound(
    bound: Bound, guide: GuideRun, batch: Batch, parameters: Mapping[str, Tensor], num_particles: int
) -> tuple[Tensor, Terms]:
    """The bound at several draws, with a gradient that is unbiased for draws without derivative too.

    A draw inside the data plate is credited with its own datum's part of the bound and with what lies outside the
    plate; any other draw with all of it.

    Args:
        bound: evaluates the bound.
        guide: draws.
        batch: data.
        parameters: constrained values.
        num_particles: number of draws, at least two.
    """
    values, scores, totals = [], [], []
    terms: Terms = []
    for _ in range(num_particles):
        draws = guide.draw(batch, parameters)
        named = bound.named(batch, parameters, draws)
        scaled = [(t, bound.scaled(t, batch)) for t in named]
        inside, outside = _split(bound, [factor for _, factor in scaled], batch.size)
        terms += [(t.name, f.tensor.sum()) for t, f in scaled]
        totals.append(inside.sum() + outside)
        values.append((inside.detach() + outside.detach(), totals[-1].detach()))
        scores.append(_scores(bound, draws, {t.name: t.site for t in named}, batch.size))
    total = torch.stack(totals).mean()
    surrogate = torch.zeros((), device=total.device)
    local, whole = (torch.stack(v) for v in zip(*values, strict=True))
    for index, (by_datum, rest) in enumerate(scores):
        surrogate = surrogate + (_advantage(local, index) * by_datum).sum() + _advantage(whole, index) * rest
    surrogate = surrogate / num_particles
    return total + surrogate - surrogate.detach(), terms


def _advantage(values: Tensor, index: int) -> Tensor:
    """A draw's value less the mean of the other draws'."""
    return (values[index] - values.mean(0)) * len(values) / (len(values) - 1)


def _scores(bound: Bound, draws: Sequence[Scored], sites: Mapping[str, Scored], size: int) -> tuple[Tensor, Tensor]:
    """Log-probabilities of draws without derivative: summed by element of the data plate, and the rest."""
    drawn = without_derivative(draws, bound.guided)
    return _split(bound, [bound.naming.factor(home_of(q, sites), log_prob) for q, log_prob in drawn], size)


def _split(bound: Bound, factors: Sequence[Factor], size: int) -> tuple[Tensor, Tensor]:
    """Sums over what lies inside the data plate, by its elements (size,), and over what lies outside it."""
    device = factors[0].tensor.device
    inside = torch.zeros(size if bound.plate is not None else (), device=device)
    outside = torch.zeros((), device=device)
    for factor in factors:
        if bound.plate is not None and bound.plate in factor.dims:
            inside = inside + factor.sum([d for d in factor.dims if d != bound.plate]).align((bound.plate,))
        else:
            outside = outside + factor.tensor.sum()
    return inside, outside
