"""Whether a distribution's argument is made of whole elements of a latent, in a way that leaves the pair conjugate."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.ir import Factor, Link


def why_no_gather(family: str, sticks: bool, value: Factor, link: Link, width: int) -> str | None:
    """Why an argument is no gather of whole elements of a latent, with an affine map that is conjugate; or None."""
    index, here = link.index, link.index >= 0
    plain = link.slope is None or bool(((link.slope == 1) | ~here).all())
    level = link.offset is None or bool(((link.offset == 0) | ~here).all())
    if family in ("Dirichlet", "MultivariateNormal") or sticks:
        if not (plain and level):
            return "is a multiple of it, or shifted"
        whole = here.all(-1) | ~here.any(-1)
        if family == "MultivariateNormal":
            size = index.shape[-1]
            order = (index % size == torch.arange(size, device=index.device)) | ~here
            one = index // size == (index // size)[..., :1]
            return None if bool(whole.all()) and bool((order & one).all()) else "is not made of whole vectors of it"
        zeros = value.tensor == 0
        return None if bool((here | zeros).all()) and _complete(index, width) else "is not made of whole rows of it"
    if family == "Wishart":
        return _matrices(index, here, link) if level else "is a shifted multiple of it"
    if family == "Beta" and link.slope is not None and link.offset is not None:
        same = (link.slope == 1) & (link.offset == 0)
        swapped = (link.slope == -1) & (link.offset == 1)
        return None if bool((same | swapped | ~here).all()) else "is neither it nor one minus it"
    if family in ("Gamma", "InverseGamma"):
        positive = link.slope is None or bool(((link.slope > 0) | ~here).all())
        return None if level and positive else "is not a positive multiple of it"
    return None


def why_not_two_sides(link: Link) -> str | None:
    """Why an argument is no row of a probability and its complement, in either order; or None."""
    if link.slope is None or link.offset is None or link.index.shape[-1] != 2:
        return "is not made of it and its complement"
    one = (link.index[..., 0] == link.index[..., 1]) & (link.index[..., 0] >= 0)
    sides = (link.slope.sum(-1) == 0) & (link.slope.abs() == 1).all(-1) & (link.offset == (1 - link.slope) / 2).all(-1)
    return None if bool((one & sides).all()) else "is not made of it and its complement"


def _complete(index: Tensor, width: int) -> bool:
    """Whether each row of positions holds the elements of one probability vector, each once."""
    flat = index.reshape(-1, index.shape[-1])
    for row in torch.unique(flat, dim=0):
        used = row[row >= 0].sort().values
        if len(used) and (len(used) != width or bool((used.diff() != 1).any()) or int(used[0]) % width):
            return False
    return True


def _matrices(index: Tensor, here: Tensor, link: Link) -> str | None:
    size = index.shape[-1]
    flat, whole = index.reshape(-1, size**2), here.reshape(-1, size**2)
    if bool((whole.any(-1) != whole.all(-1)).any()):
        return "is not made of whole matrices of it"
    place = torch.arange(size**2, device=index.device)
    mirrored = place % size * size + place // size
    ordered = (flat % size**2 == place) | (flat % size**2 == mirrored) | ~whole
    one = (flat // size**2 == (flat // size**2)[:, :1]) | ~whole
    if not bool((ordered & one).all()):
        return "is not made of whole matrices of it"
    if link.slope is not None:
        slope = link.slope.reshape(-1, size**2)
        if not bool((((slope - slope[:, :1]).abs() <= 1e-9 * slope.abs()) & (slope > 0) | ~whole).all()):
            return "is not a positive multiple of it"
    return None
