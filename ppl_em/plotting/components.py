"""Where the components of a mixture, or the states of a chain, put an observed site: means, covariances, densities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_em.ir import Site
from ppl_em.plan.plan import Plan

if TYPE_CHECKING:
    from ppl_em.result import FitResult


@dataclass(frozen=True, eq=False)
class Components:
    """An observed site that depends on one latent alone.

    Args:
        site: the (stacked) site.
        latent: the latent, or the first state of a chain.
        observed: (N, D) its values; one row for each element of the latent's plates (and time).
        labels: (N,) most probable value of the latent.
        weights: (K,) mean posterior probability of each value.
        kept: (N,) rows that count.
    """

    site: Site
    latent: str
    observed: Tensor
    labels: Tensor
    weights: Tensor
    kept: Tensor


def find_components(result: FitResult) -> Components | None:
    """The first observed site with one value (or vector) for each element of one latent; None if there is none."""
    if result.log_likelihood is None:
        return None
    plan = result._plan_for(())
    posterior = result.posterior()
    for entry in plan.blocks:
        block = entry.block
        if block.axis is not None:
            state, latent = block.axis.now, block.axis.states[0]
            dims = (*block.plates, block.axis.time)
        elif len(block.latents) == 1:
            latent = state = block.latents[0].name
            dims = block.latents[0].plates
        else:
            continue
        for site in block.sites:
            if site.role != "observed" or site.scope != (state,) or not set(dims) <= set(site.value.dims) or not dims:
                continue
            if block.axis is not None and len(block.times[site.name]) != block.sizes[block.axis.time]:
                continue
            if block.axis is not None:
                probs, labels = posterior.path(latent).probs, posterior.mode_path(latent)
            else:
                probs = posterior.probabilities(latent)
                labels = probs.argmax(-1)
            return _rows(site, latent, dims, probs, labels, plan)
    return None


def _rows(site: Site, latent: str, dims: tuple[str, ...], probs: Tensor, labels: Tensor, plan: Plan) -> Components:
    rest = tuple(d for d in site.value.dims if d not in dims)
    value = site.value.align((*dims, *rest))
    value = value.reshape(*value.shape[: len(dims)], -1).double()
    shape = value.shape[: len(dims)]
    kept = torch.ones(shape, dtype=torch.bool)
    if site.mask is not None:
        extra = [d for d in site.mask.dims if d not in dims]
        mask = site.mask.reduce(extra, lambda t, at: torch.amin(t, at))
        kept = mask.align(dims).expand(shape)
    flat = probs.reshape(-1, probs.shape[-1])
    return Components(
        site,
        latent,
        value.reshape(-1, value.shape[-1]),
        labels.reshape(-1),
        flat[kept.reshape(-1)].mean(0),
        kept.reshape(-1),
    )


def moments(found: Components, values: Mapping[str, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Mean (K, D) and covariance (K, D, D) of each component; None where they vary over the data or do not exist."""
    distribution = _distribution(found, values)
    if distribution is None:
        return None
    try:
        mean = distribution.mean
        covariance = getattr(distribution, "covariance_matrix", None)
        variance = distribution.variance
    except NotImplementedError:
        return None
    count, width = found.weights.numel(), found.observed.shape[1]
    if mean.numel() != count * width:
        return None
    mean = mean.reshape(count, width)
    if covariance is not None and covariance.numel() == count * width**2:
        return mean, covariance.reshape(count, width, width)
    return (mean, variance.reshape(count, width).diag_embed()) if variance.numel() == mean.numel() else None


def densities(found: Components, values: Mapping[str, Tensor], points: Tensor) -> Tensor | None:
    """Density of each component (K, M) at points (M,), for scalar observations; None where it varies over the data."""
    distribution = _distribution(found, values)
    count = found.weights.numel()
    if distribution is None or distribution.event_shape or distribution.batch_shape.numel() != count:
        return None
    shape = [1] * len(distribution.batch_shape)
    log_prob = [distribution.log_prob(p.expand(shape)).reshape(-1) for p in points]
    return torch.stack(log_prob, -1).exp().detach()


def _distribution(found: Components, values: Mapping[str, Tensor]) -> Any:
    if not found.site.lowered or found.site.family is None:
        return None
    return found.site.distribution(values)
