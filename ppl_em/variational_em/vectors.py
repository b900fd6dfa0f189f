"""Independent normal elements of a vector as one multivariate normal: the prior of a mean of vectors."""

from __future__ import annotations

from dataclasses import replace

import pyro.distributions as dist
import torch

from ppl_em.ir import Argument, Factor, Site


def as_vectors(site: Site) -> Site | None:
    """A normal prior whose last dimension is part of the event, as a multivariate normal prior of vectors.

    Args:
        site: the prior.

    Returns:
        The same density; None where the elements are not those of one vector, or the arguments are not known numbers.
    """
    if len(site.inner) != 1 or any(a.links or a.sources for a in site.arguments.values()):
        return None
    inner = site.inner[0]
    rest = tuple(d for d in site.value.dims if d != inner)
    if site.value.dims != (*rest, inner):
        return None
    shape = site.value.tensor.shape
    wide = {}
    for name in ("loc", "scale"):
        value = site.arguments[name].value
        wide[name] = value.align(site.value.dims).expand(shape)
    arguments = {
        "loc": Argument(Factor(wide["loc"], rest)),
        "covariance_matrix": Argument(Factor(torch.diag_embed(wide["scale"].square()), rest)),
    }
    family: type = dist.MultivariateNormal  # pyright: ignore[reportAssignmentType]
    value = Factor(site.value.tensor, rest)
    return replace(site, family=family, arguments=arguments, value=value, inner=(), dims=rest)
