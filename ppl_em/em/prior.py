"""The prior of a point-estimated latent as a distribution, elements as the latent has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

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
