"""Low-rank normal: factor analysis, by EM over the factors within the M-step and Newton's method to rounding."""

from __future__ import annotations

from collections.abc import Mapping

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_em.mstep.inner import maximise
from ppl_em.mstep.multivariate import propose_mean
from ppl_em.mstep.normal import TINY
from ppl_em.mstep.registry import weighted_mle
from ppl_em.mstep.sample import NoClosedForm, WeightedSample

ROUNDS = 50
"""Inner EM rounds of one M-step: they touch scatter matrices alone, not the data."""
POLISHED = 60
"""Elements up to which Newton's dense Hessian ends what EM began; beyond, the M-step ascends."""


@weighted_mle.register(dist.LowRankMultivariateNormal, exact="newton")
def low_rank_multivariate_normal(sample: WeightedSample) -> None:
    """Mean in closed form; cov_factor and cov_diag by EM for factor analysis, then by Newton's method.

    Reference: Rubin, Thayer (1982), EM algorithms for ML factor analysis.
    """
    for name in ("cov_factor", "cov_diag"):
        if sample.free(name) and sample.ties(name).patterned:
            raise NoClosedForm(f"elements of '{name}' are tied or fixed")
    if sample.free("loc"):
        factor, diagonal = sample.rows("cov_factor"), sample.rows("cov_diag")
        propose_mean(sample, torch.linalg.inv(factor @ factor.mT + torch.diag_embed(diagonal)))
    if not sample.free("cov_factor") and not sample.free("cov_diag"):
        return
    count = sample.count()
    scatter = sample.outer(sample.rows("loc"))
    for _ in range(ROUNDS):
        _round(sample, count, scatter)
    free = [n for n in ("loc", "cov_factor", "cov_diag") if sample.free(n)]
    if sum(sample.args[n].value[0].numel() for n in free) > POLISHED:
        sample.partial = True
        return
    centre = sample.rows("loc")
    drift = sample.residual(centre)

    def objective(args: Mapping[str, Tensor]) -> Tensor:
        factor, step = args["cov_factor"], args["loc"] - centre
        cross = step[..., None] * drift[..., None, :]
        moved = scatter - cross - cross.mT + count[:, None, None] * step[..., None] * step[..., None, :]
        root = torch.linalg.cholesky(factor @ factor.mT + torch.diag_embed(args["cov_diag"]))
        half = torch.linalg.solve_triangular(root, moved, upper=False)
        squares = torch.linalg.solve_triangular(root, half.mT, upper=False).diagonal(dim1=-2, dim2=-1).sum(-1)
        return -count * root.diagonal(dim1=-2, dim2=-1).log().sum(-1) - squares / 2

    maximise(sample, dist.LowRankMultivariateNormal, free, objective)


def _round(sample: WeightedSample, count: Tensor, scatter: Tensor) -> None:
    """One EM round given counts (R,) and scatters Σ w (x − loc)(x − loc)ᵀ (R, D, D)."""
    factor, diagonal = sample.rows("cov_factor"), sample.rows("cov_diag")
    scaled = factor / diagonal[..., None]
    eye = torch.eye(factor.shape[-1], dtype=torch.float64, device=factor.device)
    posterior = torch.linalg.inv(eye + factor.mT @ scaled)  # covariance of the factors given a datum
    cross = scatter @ scaled @ posterior  # Σ w (x − loc) E[z]ᵀ
    second = count[:, None, None] * posterior + (scaled @ posterior).mT @ cross  # Σ w E[z zᵀ]
    if sample.free("cov_factor"):
        _propose_factor(sample, cross, second, diagonal)
    if sample.free("cov_diag"):
        factor = sample.rows("cov_factor")
        fitted = 2 * (factor * cross).sum(-1) - ((factor @ second) * factor).sum(-1)
        rest = sample.pool("cov_diag", scatter.diagonal(dim1=-2, dim2=-1) - fitted)
        variance = rest / sample.mass("cov_diag").clamp(min=TINY)[:, None]
        least = torch.finfo(sample.args["cov_diag"].value.dtype).tiny
        sample.propose("cov_diag", variance.clamp(min=least))


def _propose_factor(sample: WeightedSample, cross: Tensor, second: Tensor, diagonal: Tensor) -> None:
    """Regress the data on the factors, one data dimension at a time where rows differ in their noise."""
    weight = 1 / diagonal  # (R, D): rows tied in the factor are weighed by their precision
    left = sample.pool("cov_factor", weight[..., None, None] * second[:, None])
    right = sample.pool("cov_factor", weight[..., None] * cross)
    left[sample.mass("cov_factor") < TINY] = torch.eye(second.shape[-1], dtype=torch.float64, device=left.device)
    scale = left.diagonal(dim1=-2, dim2=-1).amax(-1)[..., None]
    solution = torch.linalg.solve(left / scale[..., None], (right / scale)[..., None])[..., 0]
    sample.propose("cov_factor", solution)
