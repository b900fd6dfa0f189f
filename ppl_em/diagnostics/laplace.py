"""Draws of the parameters from the Laplace approximation, and how far it can be trusted.

Proposals are normal in free coordinates. Their weights are the exact objective over the proposal's density: the
k-hat of the weights says whether the approximation holds, and resampling with the smoothed weights corrects it.

References:
    Tierney, L. & Kadane, J. (1986). Accurate approximations for posterior moments and marginal densities. JASA 81.
    Magnusson, M., Andersen, M., Jonasson, J. & Vehtari, A. (2019). Bayesian leave-one-out cross-validation for large
    data. ICML.
"""

from __future__ import annotations

import torch

from ppl_em.diagnostics.draws import OVERSAMPLING, Draws, systematic
from ppl_em.diagnostics.evaluate import objectives
from ppl_em.diagnostics.information import Information
from ppl_em.diagnostics.psis import psis, threshold


def laplace_draws(information: Information, num: int = 1000, seed: int = 0) -> Draws:
    """Draws of the parameters given the data.

    Parameters without a prior have a density that is flat in free coordinates (the logarithm of a scale, the
    log-ratios of probabilities), which makes the draws a confidence distribution; those under a prior have the
    posterior density.

    Args:
        information: observed information at the estimates.
        num: number of draws.
        seed: of the draws.

    Raises:
        PplEmError: the fit is not at a maximum.
    """
    coordinates, plan = information.coordinates, information.plan
    root = information.root
    generator = torch.Generator().manual_seed(seed)
    proposals = OVERSAMPLING * num
    normal = torch.randn(proposals, root.shape[1], generator=generator, dtype=torch.float64)
    points = normal @ root.T
    reached = objectives(plan, coordinates, points)
    target = reached + coordinates.log_volume(points)
    target = torch.where(torch.isfinite(target), target, -torch.inf)
    weights, k_hat = psis(target + 0.5 * normal.square().sum(-1))
    limit = threshold(proposals)
    corrected = bool(k_hat < limit)
    chosen = systematic(weights.exp(), num, generator) if corrected else torch.arange(num)
    named = [coordinates.values(u) for u in points[chosen]]
    return Draws(
        points[chosen],
        {c.name: torch.stack([v[c.name].detach() for v in named]) for c in coordinates.charts},
        reached[chosen],
        float(k_hat),
        limit,
        corrected,
        float(1 / weights.exp().square().sum()),
        proposals,
    )
