"""Draws of missing elements given the observed ones of the same event."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppl_em.distributions.compound import MixtureOf
from ppl_em.distributions.observed_normal import conditional_mean
from ppl_em.distributions.partly_observed import mixture_with_gaps
from ppl_em.trace.compounds import compound_parts
from ppl_em.trace.missing import innermost


def conditional_draw(fn: Any, value: Tensor, hidden: Tensor) -> Tensor:
    """One draw of what is missing; what was observed stays.

    Args:
        fn: the site's distribution, given its latents.
        value: the observed value, any numbers where it is missing.
        hidden: True where it is missing.

    Reference:
        Hoffman, Y. & Ribak, E. (1991). Constrained realizations of Gaussian fields. Astrophysical Journal Letters 380.
    """
    base = innermost(fn)
    drawn = fn.sample().to(value.dtype)
    depth = len(base.event_shape)
    whole = hidden.flatten(value.dim() - depth).all(-1) if depth else hidden
    partial = hidden & ~whole.reshape(whole.shape + (1,) * depth)
    if bool(partial.any()):
        seen = torch.where(hidden, torch.nan, value)
        if isinstance(base, torch.distributions.MultivariateNormal):
            factor = base._unbroadcasted_scale_tril
            # A draw of the whole vector, corrected by the regression of the rest on the error in the observed part.
            drawn = conditional_mean(drawn, factor @ factor.mT, seen)
        else:
            drawn = _from_mixture(base, seen)
    return torch.where(hidden, drawn, value)


def _from_mixture(base: Any, seen: Tensor) -> Tensor:
    """A draw from a mixture of vectors: the component given what is observed, then the rest given both."""
    made_of = compound_parts(base)
    assert made_of is not None and issubclass(made_of[0], MixtureOf)
    mixture = mixture_with_gaps(base, made_of[0], made_of[1])
    depth = len(base.event_shape)
    component = torch.distributions.Categorical(logits=mixture.log_joint(seen)).sample()
    parts = base.component_distribution
    drawn = parts.sample(seen.shape[: seen.dim() - depth - len(base.batch_shape)])
    inner = innermost(parts)
    if isinstance(inner, torch.distributions.MultivariateNormal):
        factor = inner._unbroadcasted_scale_tril
        drawn = conditional_mean(drawn, factor @ factor.mT, seen.unsqueeze(-1 - depth))
    axis = -1 - depth
    index = component.reshape(component.shape + (1,) * (1 + depth))
    drawn = drawn.expand((*component.shape, *drawn.shape[drawn.dim() - depth - 1 :]))
    return torch.take_along_dim(drawn, index, axis).squeeze(axis)
