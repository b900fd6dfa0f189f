"""Leave-one-out predictive accuracy on the exact marginal log-likelihood of each datum.

Reference:
    Vehtari, A., Gelman, A. & Gabry, J. (2017). Practical Bayesian model evaluation using leave-one-out cross-validation
    and WAIC. Statistics and Computing 27.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ppl_em import arviz_bridge
from ppl_em.diagnostics.draws import Draws
from ppl_em.diagnostics.evaluate import log_likelihoods
from ppl_em.diagnostics.information import Information
from ppl_em.diagnostics.psis import psis
from ppl_em.errors import PplEmError, message
from ppl_em.per_datum import separate

#: Elements of the matrix of draws by data up to which it is formed.
LARGEST = 5e7


def log_likelihood_draws(information: Information, draws: Draws) -> Tensor:
    """Log marginal likelihood (S, n) of each datum at each draw, nats; latents are summed, never drawn.

    Raises:
        PplEmError: the data are one unit, or too many.
    """
    plan = information.plan
    if not separate(plan):
        raise PplEmError(
            message("leave-one-out needs independent data", why="the likelihood is not a product over a data plate")
        )
    plate = plan.program.data_plate
    assert plate is not None
    count = plan.program.plates[plate].size
    if count * len(draws.coordinates) > LARGEST:
        raise PplEmError(
            message(
                "too many data for leave-one-out", value=count, why=f"{len(draws.coordinates)} draws of each are kept"
            )
        )
    return log_likelihoods(plan, information.coordinates, draws.coordinates)


def loo(draws: Draws, log_likelihood: Tensor, counts: Tensor | None = None) -> arviz_bridge.Loo:
    """Leave-one-out by ArviZ from importance-corrected draws.

    Args:
        draws: of the parameters.
        log_likelihood: (S, n) at the draws.
        counts: (n,) how many data each stands for: one copy is left out, and the sums are over all copies.

    Raises:
        PplEmError: the draws cannot be trusted.
    """
    if not draws.corrected:
        raise PplEmError(
            message(
                "leave-one-out needs draws that can be trusted",
                value=f"k-hat {draws.k_hat:.2f}",
                why=f"their k-hat should be below {draws.threshold:.2f}",
            )
        )
    dims = arviz_bridge.SAMPLE_DIMS
    posterior = {n: ((*dims, *(f"{n}_dim_{i}" for i in range(v.dim() - 1))), v.numpy()[None]) for n, v in draws.items()}
    scored = {"datum_log_likelihood": ((*dims, "datum"), log_likelihood.numpy()[None])}
    native = arviz_bridge.to_native(
        {"posterior": arviz_bridge.dataset(posterior), "log_likelihood": arviz_bridge.dataset(scored)}
    )
    found = arviz_bridge.loo(native, "datum_log_likelihood")
    return found if counts is None else _of_copies(found, log_likelihood, counts)


def _of_copies(found: arviz_bridge.Loo, log_likelihood: Tensor, counts: Tensor) -> arviz_bridge.Loo:
    """Sums over all copies of the data in place of sums over distinct ones."""
    single = torch.as_tensor(found.elpd_i, dtype=torch.float64).reshape(-1)
    terms = single.repeat_interleave(counts)
    in_sample = log_likelihood.logsumexp(0) - math.log(len(log_likelihood))
    return replace(
        found,
        elpd=float(terms.sum()),
        se=float((len(terms) * terms.var(correction=0)).sqrt()),
        p=float((counts * (in_sample.reshape(-1) - single)).sum()),
        num_copies=len(terms),
    )


def loo_pit(observed: Tensor, predicted: Tensor, log_likelihood: Tensor, seed: int = 0) -> Tensor:
    """Probability of a smaller value of each datum given all others; uniform if the model is right.

    Args:
        observed: (n, ...) values.
        predicted: (S, n, ...) predictive draws, one at each draw of the parameters.
        log_likelihood: (S, n) at these draws of the parameters.
        seed: of the randomisation of ties (discrete data).

    Returns:
        (n, ...), each element by itself.

    Reference:
        Gelfand, A., Dey, D. & Chang, H. (1992). Model determination using predictive distributions. Bayesian Statistics 4.
    """
    weights = psis(-log_likelihood)[0].exp()
    weights = weights.reshape(*weights.shape, *([1] * (observed.dim() - 1)))
    below = (weights * (predicted < observed)).sum(0)
    ties = (weights * (predicted == observed)).sum(0)
    generator = torch.Generator().manual_seed(seed)
    return below + ties * torch.rand(below.shape, generator=generator, dtype=torch.float64)
