"""The prior of a point-estimated latent as a distribution, elements as the latent has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints

from ppl_em.ir import Factor, Site


def prior_of(site: Site, parameters: Mapping[str, Tensor], shape: Sequence[int]) -> Any:
    """The distribution of a prior's site at given parameters, in float64.

    Args:
        site: the prior, whose arguments follow from the parameters alone.
        parameters: constrained values.
        shape: of the latent.

    Returns:
        The family without wrappers; its batch and event shape together are ``shape``.
    """
    assert site.family is not None
    value = site.value
    sizes = tuple(value.tensor.shape[: len(value.dims)])
    event = value.tensor.dim() - len(value.dims)
    batch = tuple(shape[: len(shape) - event])
    arguments = {}
    for name, argument in site.arguments.items():
        tensor = argument.evaluate(parameters).detach()
        own = tuple(tensor.shape[len(argument.value.dims) :])
        wide = Factor(tensor, argument.value.dims).align(value.dims).expand((*sizes, *own))
        wide = wide.reshape((*batch, *own))
        arguments[name] = wide.double() if wide.is_floating_point() else wide
    return site.family(**arguments, **site.options, validate_args=False)


def at_point(site: Site, parameters: Mapping[str, Tensor]) -> Site:
    """A prior's site with the newest value of its latent; any other site as it is."""
    if site.point is None or site.point not in parameters:
        return site
    value = parameters[site.point].detach().reshape(site.value.tensor.shape)
    return replace(site, value=Factor(value, site.value.dims))


def jacobian(site: Site, constraint: Any, parameters: Mapping[str, Tensor]) -> Factor:
    """Log-derivative |dx / du| of a prior's latent x by its unconstrained coordinates u, by element of the prior.

    The coordinates are those of ``torch.distributions.biject_to``; of a covariance, the elements of its Cholesky factor
    with the logarithms of the diagonal.

    Args:
        site: the prior.
        constraint: the latent's support.
        parameters: constrained values.
    """
    assert site.point is not None
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    value = parameters[site.point]
    if constraint is constraints.positive_definite:
        diagonal = torch.linalg.cholesky(value).diagonal(dim1=-2, dim2=-1)
        size = diagonal.shape[-1]
        power = torch.arange(size + 1, 1, -1, dtype=value.dtype, device=value.device)
        slope = (power * diagonal.log()).sum(-1) + size * math.log(2)
    else:
        transform = biject_to(constraint)
        slope = transform.log_abs_det_jacobian(transform.inv(value), value)
    return site.finish(Factor(slope.reshape(site.value.tensor.shape[: len(site.value.dims)]), site.value.dims))
