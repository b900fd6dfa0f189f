"""Locations that share a factor with their precision: the normal-gamma and normal-Wishart distributions."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_em.ir import Factor, Link
from ppl_em.variational_em.nodes import LOCATIONS, PRECISIONS, Child, Joint, Node


def find_joint(node: Node, nodes: Mapping[str, Node]) -> Joint | None:
    """The precision with which a location shares its factor: the prior's, and that of every site that it feeds."""
    scale = node.site.arguments.get("scale" if node.family == "Normal" else "precision_matrix")
    if scale is None or any(k.parameter in nodes for k in node.site.arguments["loc"].links):
        return None
    partners = {k.parameter for k in scale.links if k.parameter in nodes}
    if len(partners) != 1 or nodes[next(iter(partners))].family not in PRECISIONS:
        return None
    partner = next(iter(partners))
    link = next(k for k in scale.links if k.parameter == partner)
    if bool((link.index < 0).any()):
        return None
    value = node.site.value
    owner = _by_value(_entry(link, node.family), scale.value.dims, value, node)
    slope = torch.ones(link.index.shape) if link.slope is None else link.slope
    slope = _entry_of(slope, node.family).double()
    ratio = slope**-2 if node.family == "Normal" else slope
    joint = Joint(partner, owner, _by_value(ratio, scale.value.dims, value, node))
    return joint if all(_shares(c, node, joint) for c in node.children) else None


def _shares(child: Child, node: Node, joint: Joint) -> bool:
    """Whether a site's precision is, for each element of the location, the one that belongs to it."""
    if node.family not in LOCATIONS or child.site.point is not None:
        return False
    scale = child.site.arguments.get("scale" if node.family == "Normal" else "precision_matrix")
    link = None if scale is None else next((k for k in scale.links if k.parameter == joint.partner), None)
    if scale is None or link is None:
        return False
    index = child.link.index
    if node.family == "MultivariateNormal":
        index = torch.where(index[..., 0] >= 0, index[..., 0] // index.shape[-1], -1)
    loc = Factor(index, child.site.arguments["loc"].value.dims)
    mine, theirs = _broadcast(loc, Factor(_entry(link, node.family), scale.value.dims))
    here = mine >= 0
    return bool(((joint.owner[mine.clamp_min(0)] == theirs) | ~here).all())


def _broadcast(a: Factor, b: Factor) -> tuple[Tensor, ...]:
    dims = a.dims + tuple(d for d in b.dims if d not in a.dims)
    return tuple(torch.broadcast_tensors(a.align(dims), b.align(dims)))


def _entry(link: Link, family: str) -> Tensor:
    """Number of the element (or matrix) of a precision behind each element (or matrix) of an argument."""
    if family == "Normal":
        return link.index
    first = link.index[..., 0, 0]
    return torch.where(first >= 0, first // link.index.shape[-1] ** 2, -1)


def _entry_of(tensor: Tensor, family: str) -> Tensor:
    return tensor if family == "Normal" else tensor[..., 0, 0]


def _by_value(tensor: Tensor, dims: tuple[str, ...], value: Factor, node: Node) -> Tensor:
    """Entries by named dimensions spread over the elements (vectors) of a latent, flattened."""
    shape = [value.tensor.shape[i] for i in range(len(value.dims))]
    return Factor(tensor, dims).align(value.dims).expand(shape).reshape(-1)
