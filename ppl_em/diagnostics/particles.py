"""Draws of an approximate posterior, weighted by the exact joint density: how good the approximation is, datum by datum.

References:
    Yao, Y., Vehtari, A., Simpson, D. & Gelman, A. (2018). Yes, but did it work? Evaluating variational inference. ICML.
    Burda, Y., Grosse, R. & Salakhutdinov, R. (2016). Importance weighted autoencoders. ICLR.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_em.diagnostics.divergences import Divergences
from ppl_em.diagnostics.psis import psis, threshold
from ppl_em.errors import PplEmError, message
from ppl_em.svi.isolation import Isolation
from ppl_em.svi.query import Query, shared_latents

if TYPE_CHECKING:
    from ppl_em.svi.result import ApproximateResult

#: Importance samples for each datum, and data that are looked at.
NUM_DRAWS, MOST_DATA = 300, 2000
#: Draws over which divergences from the prior are averaged.
DIVERGENCE_DRAWS = 50
#: A latent dimension that carries less than this many nats about a datum, on average, is not used.
UNUSED = 0.01


@dataclass(frozen=True, eq=False)
class Particles:
    """Importance samples on data of the fit.

    Args:
        log_weights: (S, n) log p(x, z) − log q(z | x) of each draw and datum, nats; (S, 1) where no latent belongs to
            a datum.
        divergences: by latent, (D,) mean over data of KL(q ‖ prior) of each dimension, nats; of the whole latent,
            (1,), where its dimensions depend on each other. Of a prior that depends on summed latents, the mean over
            their posterior.
        means: by latent, (n, D) posterior means.
    """

    log_weights: Tensor
    divergences: Mapping[str, Tensor]
    means: Mapping[str, Tensor]

    @property
    def threshold(self) -> float:
        """Limit of k-hat for so many draws."""
        return threshold(len(self.log_weights))

    @cached_property
    def k_hat(self) -> Tensor:
        """(n,) tail shape of each datum's weights."""
        return psis(self.log_weights)[1]

    @property
    def elbo(self) -> float:
        """The bound on these data, nats."""
        return float(self.log_weights.mean(0).sum())

    @property
    def log_likelihood(self) -> float:
        """Importance-weighted estimate of the log marginal likelihood of these data, nats."""
        return float((torch.logsumexp(self.log_weights, 0) - math.log(len(self.log_weights))).sum())

    def unused(self) -> list[str]:
        """Dimensions of latents whose posterior is their prior for almost every datum, e.g. ``z[3]``."""
        found = []
        for name, divergence in self.divergences.items():
            spread = self.means[name].var(0) if len(self.means[name]) > 1 else torch.full_like(divergence, math.inf)
            for d in (divergence < UNUSED).nonzero()[:, 0].tolist():
                if len(spread) != len(divergence) or float(spread[d]) < UNUSED:
                    found.append(f"{name}[{d}]" if len(divergence) > 1 else name)
        return found


@torch.no_grad()
def particles(result: ApproximateResult, num_draws: int = NUM_DRAWS) -> Particles:
    """Draw from the approximate posterior of the training data and weigh the draws.

    Args:
        result: a fit by SVI with its data.
        num_draws: draws for each datum.

    Raises:
        PplEmError: local latents hang on global ones that are drawn too, so that no datum has weights of its own.
    """
    query = some_data(result)
    plan = query.plan
    shared = shared_latents(plan)
    if shared and any(plan.program.data_plate in plan.program.latents[n].plates for n in plan.approximated):
        raise PplEmError(
            message(
                "data have no importance weights of their own",
                why="their latents and global ones are drawn together",
                hint="a point estimate for the global ones: SVI(globals='point')",
            )
        )
    bound = query.bound()
    bound.watched = True
    weights, kept = [], Divergences()
    with Isolation(query.seed)():
        for batch in query.batches:
            rows = []
            for index, draw in enumerate(query.draws(batch, num_draws)):
                inside, outside = bound.parts(batch, query.values, draw, closed_forms=False)
                rows.append((inside.sum() + outside).reshape(1) if shared or not inside.dim() else inside)
                if index < DIVERGENCE_DRAWS and bound.seen is not None:
                    kept.add(draw, bound, bound.seen)
            weights.append(torch.stack(rows))
            kept.close()
    return Particles(torch.cat(weights, 1), kept.mean(), kept.locations())


def some_data(result: ApproximateResult, count: int = MOST_DATA) -> Query:
    """A query on the training data, or on the first of them where there are many.

    Raises:
        PplEmError: there are many, and the arguments cannot be cut.
    """
    query = result.query()
    plate = query.plan.program.data_plate
    if plate is None or len(query.batches) > 1:
        kept, total = [], 0
        for batch in query.batches:
            kept.append(batch)
            total += batch.size
            if total >= count:
                break
        return replace(query, batches=tuple(kept))
    size = query.plan.program.plates[plate].size
    if size <= count:
        return query
    source = result._source_for(())

    def cut(value: Any) -> Any:
        return value[:count] if isinstance(value, Tensor) and value.dim() and len(value) == size else value

    smaller = result.query(*(cut(a) for a in source.args), **{k: cut(v) for k, v in source.kwargs.items()})
    if smaller.plan.program.plates[plate].size != count:
        raise PplEmError(message("too many data to be drawn for", value=size, hint="diagnose a fit to fewer"))
    return smaller
