"""Draws of the global latents from their factors, weighted by the exact joint density: how far q can be trusted.

Reference:
    Yao, Y., Vehtari, A., Simpson, D. & Gelman, A. (2018). Yes, but did it work? Evaluating variational inference. ICML.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_em.diagnostics.draws import OVERSAMPLING, Draws, systematic
from ppl_em.diagnostics.psis import psis, threshold
from ppl_em.em.e_step import objective
from ppl_em.errors import PplEmError, message
from ppl_em.per_datum import contributions, separate
from ppl_em.plan.plan import Plan
from ppl_em.variational_em.density import log_density
from ppl_em.variational_em.posterior import VariationalPosterior

#: Elements of the matrix of draws by data up to which it is formed.
LARGEST = 5e7


@torch.no_grad()
def factor_draws(plan: Plan, values: Mapping[str, Tensor], num: int = 1000, seed: int = 0) -> Draws:
    """Draws of the global latents given the data, summed latents left out.

    Proposals come from the factors; their weights are the exact log p(x, θ) (latents summed at each draw) over q(θ). Where
    their k-hat allows it the draws are resampled with these weights, else they are those of the factors as they are.

    Args:
        plan: the plan on the training data.
        values: parameters, posterior means and hyperparameters of the factors.
        num: number of draws.
        seed: of the draws.
    """
    proposals = OVERSAMPLING * num
    drawn, reached, own = weighed(plan, values, proposals, seed)
    reached = torch.where(torch.isfinite(reached), reached, -torch.inf)
    weights, k_hat = psis(reached - own)
    limit = threshold(proposals)
    corrected = bool(k_hat < limit)
    generator = torch.Generator().manual_seed(seed)
    chosen = systematic(weights.exp(), num, generator) if corrected else torch.arange(num)
    named = {n: v[chosen] for n, v in drawn.items()}
    return Draws(
        torch.cat([v.reshape(num, -1).double() for v in named.values()], 1),
        named,
        reached[chosen],
        float(k_hat),
        limit,
        corrected,
        float(1 / weights.exp().square().sum()),
        proposals,
    )


@torch.no_grad()
def weighed(plan: Plan, values: Mapping[str, Tensor], num: int, seed: int) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """Draws from the factors with both densities, of which importance sampling is made.

    Args:
        plan: the plan on the training data.
        values: parameters, posterior means and hyperparameters of the factors.
        num: number of draws.
        seed: of the draws.

    Returns:
        Values by name (num, *shape); log p(x, θ), summed latents summed at each draw, and log q(θ), (num,), nats.
    """
    q = VariationalPosterior(plan, values)
    drawn = q.sample_globals(num, seed)
    joint = [float(objective(plan, {**values, **{n: v[i] for n, v in drawn.items()}})) for i in range(num)]
    return drawn, torch.tensor(joint, dtype=torch.float64), log_density(q.network, q.factors, drawn)


@torch.no_grad()
def likelihoods(plan: Plan, values: Mapping[str, Tensor], draws: Draws) -> Tensor:
    """Log-likelihood (S, n) of each datum at each draw of the global latents, nats; other latents are summed.

    Raises:
        PplEmError: the data are one unit, or too many.
    """
    if not separate(plan):
        why = "the likelihood is not a product over a data plate"
        raise PplEmError(message("leave-one-out needs independent data", why=why))
    plate = plan.program.data_plate
    assert plate is not None
    count, size = len(draws.objective), plan.program.plates[plate].size
    if count * size > LARGEST:
        raise PplEmError(message("too many data for leave-one-out", value=size, why=f"{count} draws of each are kept"))
    rows = [contributions(plan, {**values, **{n: v[i] for n, v in draws.items()}}) for i in range(count)]
    return torch.stack(rows)
