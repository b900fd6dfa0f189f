"""Arguments that are linear predictors: the design matrix is read off from derivatives, whatever the spelling."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ppl_em.ir import Factor
from ppl_em.ir.design import Design
from ppl_em.ir.transform import ELEMENTWISE, Transform
from ppl_em.trace.links import Probe, directional_derivatives

#: Coefficients, and elements of all derivative columns together, up to which a design matrix is made.
MAX_COEFFICIENTS, MAX_ELEMENTS = 400, 1e8

_LINKS = {t.name: t for t in ELEMENTWISE if t.name in ("identity", "exp", "sigmoid")}


def affine_link(first: Probe, second: Probe, sources: Sequence[str]) -> Transform | None:
    """The link function under which an argument is affine in its sources, or None.

    Args:
        first, second: the argument at two random settings of all parameters, with derivatives along the same
            directions: an affine function's do not change.
        sources: parameters that feed it.
    """
    if sum(first.leaves[n].numel() for n in sources) > MAX_COEFFICIENTS or not first.value.is_floating_point():
        return None
    for transform in _LINKS.values():
        if all(_constant(first, second, n, transform) for n in sources):
            return transform
    return None


def _constant(first: Probe, second: Probe, name: str, transform: Transform) -> bool:
    for direction in (1, 2):
        a, b = (p.tangents[name][direction] / _slope(p.value, transform) for p in (first, second))
        tolerance = 1e-9 if a.dtype == torch.float64 else 1e-4
        if not bool(((a - b).abs() <= tolerance * (1 + a.abs())).all()):
            return False
    return True


def _slope(value: Tensor, transform: Transform) -> Tensor:
    """Derivative of the inverse link function at its image ``value``."""
    if transform.name == "exp":
        return value
    if transform.name == "sigmoid":
        return value * (1 - value)
    return torch.ones_like(value)


def make_design(
    argument: Factor,
    leaves: Mapping[str, Tensor],
    sources: Sequence[str],
    transform: Transform,
    latents: Collection[str],
) -> Design | None:
    """The design of one argument, one derivative column for each coefficient.

    Args:
        argument: differentiable value at ``leaves``, named dimensions, no event dimensions.
        leaves: parameters.
        sources: those that feed it.
        transform: the link function found by :func:`affine_link`.
        latents: names of the enumerated latents.
    """
    count = sum(leaves[n].numel() for n in sources)
    if argument.event_dim or count * argument.tensor.numel() > MAX_ELEMENTS:
        return None
    cells = tuple(d for d in argument.dims if d in latents)
    data = tuple(d for d in argument.dims if d not in latents)
    value = argument.align((*cells, *data))
    shape = tuple(value.shape)
    rows = math.prod(shape[: len(cells)])
    slope = _slope(value.detach(), transform)
    columns = []
    for name in sources:
        leaf = leaves[name]
        units = torch.eye(leaf.numel(), dtype=leaf.dtype).reshape(-1, *leaf.shape)
        for (column,) in directional_derivatives([value], leaf, list(units)):
            columns.append((column / slope).reshape(rows, -1))
    design = torch.stack(columns, -1)  # (G, N, P)
    theta = torch.cat([leaves[n].detach().reshape(-1) for n in sources])
    linear = (design @ theta).reshape(shape)
    offset = _inverse(value.detach(), transform) - linear
    scale = 1e-9 if offset.dtype == torch.float64 else 1e-4
    offset = None if bool((offset.abs() <= scale * (1 + linear.abs())).all()) else offset.reshape(rows, -1)
    index, features = _by_cell(design)
    return Design(tuple(sources), index, features, offset, cells, data, shape, transform)


def _inverse(value: Tensor, transform: Transform) -> Tensor:
    return value if transform.name == "identity" else transform.inverse(value)


def _by_cell(design: Tensor) -> tuple[Tensor, Tensor]:
    """Keep, for each cell, the coefficients that it uses; share the features where all cells have the same."""
    used = (design != 0).any(1)  # (G, P)
    width = int(used.sum(1).max())
    index = torch.full((len(used), max(width, 1)), -1, dtype=torch.int64)
    features = design.new_zeros(len(used), design.shape[1], max(width, 1))
    for g, row in enumerate(used):
        chosen = row.nonzero()[:, 0]
        index[g, : len(chosen)] = chosen
        features[g, :, : len(chosen)] = design[g][:, chosen]
    if bool((used.sum(1) == width).all()) and all(torch.equal(features[0], f) for f in features[1:]):
        features = features[:1].clone()
    return index, features
