"""Pareto-smoothed importance sampling: stable weights, and a number that says whether they can be trusted.

References:
    Vehtari, A., Simpson, D., Gelman, A., Yao, Y. & Gabry, J. (2024). Pareto smoothed importance sampling. JMLR 25.
    Zhang, J. & Stephens, M. (2009). A new and efficient estimation method for the generalized Pareto distribution.
    Technometrics 51(3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

#: Log-ratios that differ by less than this are equal: the proposal is the target.
EQUAL = 1e-6


def threshold(num_draws: int) -> float:
    """The k-hat above which weights of so many draws cannot be trusted: min(1 − 1/log10 S, 0.7)."""
    return min(1 - 1 / math.log10(max(num_draws, 11)), 0.7)


def psis(log_ratios: Tensor) -> tuple[Tensor, Tensor]:
    """Smoothed, normalised log-weights and the shape of their tail.

    Args:
        log_ratios: (S, ...) log of target density over proposal density, up to a constant, at S draws.

    Returns:
        Log-weights (S, ...) that sum to one over the draws, and k-hat (...).

    Example:
        >>> import torch
        >>> _ = torch.manual_seed(0)
        >>> x = torch.distributions.StudentT(5.0).sample((1000,))
        >>> _, k = psis(torch.distributions.Normal(0.0, 1.0).log_prob(x) - torch.distributions.StudentT(5.0).log_prob(x))
        >>> bool(k < 0.7)
        True
    """
    draws = log_ratios.shape[0]
    flat = log_ratios.double().reshape(draws, -1)
    smoothed, shapes = [], []
    for column in flat.T:
        weights, k = _smooth(column)
        smoothed.append(weights)
        shapes.append(k)
    return torch.stack(smoothed, 1).reshape(log_ratios.shape), torch.tensor(shapes, dtype=torch.float64).reshape(
        log_ratios.shape[1:]
    )


def _smooth(log_ratios: Tensor) -> tuple[Tensor, float]:
    """One set of ratios (S,)."""
    draws = len(log_ratios)
    shifted = log_ratios - log_ratios.max()
    if not bool(torch.isfinite(shifted).any()):
        return torch.full_like(shifted, -math.log(draws)), math.inf
    if float(shifted.min()) > -EQUAL:
        return torch.full_like(shifted, -math.log(draws)), 0.0
    tail = math.ceil(min(0.2 * draws, 3 * math.sqrt(draws)))
    k = math.inf
    if tail > 4:
        ordered, places = shifted.sort()
        cutoff = max(float(ordered[-tail - 1]), math.log(torch.finfo(torch.float64).tiny))
        above = places[ordered > cutoff]
        if len(above) > 4:
            floor = math.exp(cutoff)
            k, scale = fit_generalised_pareto(shifted[above].exp() - floor)
            if math.isfinite(k):
                rank = (torch.arange(len(above), dtype=torch.float64) + 0.5) / len(above)
                quantiles = scale * torch.expm1(-k * torch.log1p(-rank)) / k if k else -scale * torch.log1p(-rank)
                shifted = shifted.clone()
                shifted[above] = (quantiles + floor).log().clamp_max(0.0)
    return shifted - torch.logsumexp(shifted, 0), k


def fit_generalised_pareto(exceedances: Tensor) -> tuple[float, float]:
    """Shape and scale of a generalised Pareto distribution, the shape regularised towards 0.5 as in PSIS.

    Args:
        exceedances: positive values (n,), in increasing order.
    """
    n = len(exceedances)
    points = 30 + int(math.sqrt(n))
    grid = 1 - torch.sqrt(points / (torch.arange(1, points + 1, dtype=torch.float64) - 0.5))
    quarter = float(exceedances[int(n / 4 + 0.5) - 1])
    grid = grid / (3 * quarter) + 1 / float(exceedances[-1])
    shapes = torch.log1p(-grid[:, None] * exceedances).mean(1)
    profile = n * (torch.log(-grid / shapes) - shapes - 1)
    weights = torch.softmax(profile, 0)
    weights = torch.where(weights >= 10 * torch.finfo(torch.float64).eps, weights, torch.zeros_like(weights))
    best = float((grid * weights).sum() / weights.sum())
    k = float(torch.log1p(-best * exceedances).mean())
    scale = -k / best
    return (n * k + 10 * 0.5) / (n + 10), scale
