"""Kullback–Leibler divergences in closed form: torch's registry, and normal pairs that it leaves out."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta
from torch import Tensor
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence


def analytic_kl(q: Any, p: Any) -> Tensor | None:
    """KL(q ‖ p) by batch element in nats, or None where no closed form is known.

    Args:
        q, p: distributions over the same values; p may count fewer of the dimensions as its event (the divergences
            of independent elements add up).
    """
    if isinstance(q, Delta):
        return None  # torch's rule would forget the density of a change of variables
    extra = len(q.event_shape) - len(p.event_shape)  # torch's own distributions have no event_dim
    if extra > 0:
        if not isinstance(q, Independent) or q.reinterpreted_batch_ndims < extra:
            return None
        rest = q.reinterpreted_batch_ndims - extra
        q = Independent(q.base_dist, rest) if rest else q.base_dist
    if isinstance(q, MultivariateNormal) and isinstance(p, Independent) and isinstance(p.base_dist, Normal):
        return _full_against_diagonal(q, p.base_dist) if p.reinterpreted_batch_ndims == 1 else None
    if isinstance(q, Independent) and isinstance(p, Independent):
        if isinstance(q.base_dist, Normal) and isinstance(p.base_dist, Normal):
            return _normal(q.base_dist, p.base_dist, q.reinterpreted_batch_ndims)
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        return None


def _normal(q: Normal, p: Normal, event_dim: int) -> Tensor:
    """Σ log σp/σq + (σq² + (μq − μp)²) / 2σp² − ½ over the event, in few operations: this is every VAE's prior."""
    ratio = q.scale / p.scale
    shift = (q.loc - p.loc) / p.scale
    terms = torch.addcmul(ratio * ratio, shift, shift).sub(ratio.log(), alpha=2)
    if not event_dim:
        return 0.5 * (terms - 1)
    return 0.5 * (terms.sum(tuple(range(-event_dim, 0))) - terms.shape[-event_dim:].numel())


def _full_against_diagonal(q: MultivariateNormal, p: Normal) -> Tensor:
    root = q._unbroadcasted_scale_tril
    variance = p.scale.square()
    trace = (root.square().sum(-1) / variance).sum(-1)
    distance = ((q.loc - p.loc).square() / variance).sum(-1)
    volume = 2 * (p.scale.log().sum(-1) - root.diagonal(dim1=-2, dim2=-1).log().sum(-1))
    return 0.5 * (trace + distance + volume - q.event_shape[0])
