"""Arguments that are linear predictors: the design matrix is read off from derivatives, whatever the spelling."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from ppl_em.ir import Factor
from ppl_em.ir.design import Design
from ppl_em.ir.transform import ELEMENTWISE, ROWWISE, Transform
from ppl_em.trace.links import Probe, Tangents

#: Coefficients, and elements of all derivative columns together, up to which a design matrix is made.
MAX_COEFFICIENTS, MAX_ELEMENTS = 400, 1e8

_LINKS = {t.name: t for t in ELEMENTWISE if t.name in ("identity", "exp", "sigmoid")}
_SOFTMAX = {t.name: t for t in ROWWISE if t.name in ("softmax", "log_softmax")}


def affine_link(first: Probe, second: Probe, sources: Sequence[str], normalised: bool = False) -> Transform | None:
    """The link function under which an argument is affine in its sources, or None.

    Args:
        first, second: the argument at two random settings of all parameters, with derivatives along the same
            directions: an affine function's do not change.
        sources: parameters that feed it.
        normalised: the argument is a vector of probabilities or of log-probabilities (its log-odds are looked at).
    """
    if sum(first.leaves[n].numel() for n in sources) > MAX_COEFFICIENTS or not first.value.is_floating_point():
        return None
    if not all(bool(torch.isfinite(p.value).all()) for p in (first, second)):
        return None
    links = _LINKS
    if normalised:
        links = {n: t for n, t in _SOFTMAX.items() if (n == "softmax") == bool((first.value >= 0).all())}
    for transform in links.values():
        if all(_constant(first, second, n, transform) for n in sources):
            return transform
    return None


def _constant(first: Probe, second: Probe, name: str, transform: Transform) -> bool:
    for direction in (1, 2):
        a, b = (_linearised(p.tangents[name][direction], p.value, transform) for p in (first, second))
        tolerance = 1e-9 if a.dtype == torch.float64 else 1e-4
        if not bool(((a - b).abs() <= tolerance * (1 + a.abs())).all()):
            return False
    return True


def _linearised(tangent: Tensor, value: Tensor, transform: Transform) -> Tensor:
    """Derivative of the linear predictor, from that of its image ``value`` under the inverse link function."""
    if transform.name == "exp":
        # A constant zero (the rate of those that never have an event) is a predictor of minus infinity.
        return torch.where((value == 0) & (tangent == 0), 0.0, tangent / value)
    if transform.name == "sigmoid":
        return tangent / (value * (1 - value))
    if transform.elementwise:
        return tangent
    # Of log-odds against the first category: what all categories have in common cancels.
    tangent = tangent / value if transform.name == "softmax" else tangent
    return tangent - tangent[..., :1]


def make_design(
    argument: Factor,
    leaves: Mapping[str, Tensor],
    sources: Sequence[str],
    transform: Transform,
    latents: Collection[str],
) -> Design | None:
    """The design of one argument, one derivative column for each coefficient.

    Args:
        argument: differentiable value at ``leaves``, named dimensions, one event dimension for categories.
        leaves: parameters.
        sources: those that feed it.
        transform: the link function found by :func:`affine_link`.
        latents: names of the enumerated latents.
    """
    if argument.event_dim != (0 if transform.elementwise else 1):
        return None
    cells = tuple(d for d in argument.dims if d in latents)
    data = tuple(d for d in argument.dims if d not in latents)
    value = argument.align((*cells, *data))
    shape = tuple(value.shape[: len(argument.dims)])
    event = 0 if transform.elementwise else value.shape[-1]
    rows = math.prod(shape[: len(cells)])
    used = [leaves[n] for n in sources]
    if not value.requires_grad or any(not leaf.requires_grad for leaf in used):
        return None  # what reaches the argument is cut off from its derivatives
    if event:
        found = _categories(value, used, rows, len(cells), transform)
    else:
        found = _columns(value, used, rows, transform)
    if found is None:
        return None
    index, features = found
    theta = torch.cat([leaf.detach().reshape(-1) for leaf in used])
    by_cell = torch.where(index >= 0, theta[index.clamp_min(0)], 0.0)
    linear = (features @ by_cell[..., None])[..., 0]
    offset = _inverse(value.detach(), transform)
    offset = offset.movedim(-1, len(cells)) if event else offset
    offset = offset.reshape(len(index), -1) - linear
    if event:
        by_category = offset.reshape(-1, event, offset.shape[-1])
        offset = (by_category - by_category[:, :1]).reshape(offset.shape)
    scale = 1e-9 if offset.dtype == torch.float64 else 1e-4
    none = bool((offset.abs() <= scale * (1 + linear.abs())).all())
    alike = bool((index >= 0).all()) and all(torch.equal(features[0], f) for f in features[1:])
    features = features[:1].clone() if alike else features
    return Design(tuple(sources), index, features, None if none else offset, cells, data, shape, transform, event)


def _columns(value: Tensor, leaves: Sequence[Tensor], rows: int, transform: Transform) -> tuple[Tensor, Tensor] | None:
    """Coefficients (G, F) of each cell and their features (G, N, F).

    Coefficients that share no cell are differentiated by together (a mixture of K regressions on F covariates takes F
    derivatives, not K · F).

    Reference:
        Curtis, A., Powell, M. & Reid, J. (1974). On the estimation of sparse Jacobian matrices. IMA J. Appl. Math. 13.
    """
    by_cell = value.reshape(rows, -1)
    seed = torch.zeros_like(by_cell, requires_grad=True)
    pulled = torch.autograd.grad(by_cell, leaves, seed, create_graph=True, allow_unused=True)
    touched = torch.stack([_touched(by_cell, leaves, g) for g in range(rows)])  # (G, P)
    width = max(int(touched.sum(1).max()), 1)
    if width * by_cell.numel() > MAX_ELEMENTS:
        return None
    index = torch.full((rows, width), -1, dtype=torch.int64)
    features = by_cell.detach().new_zeros(rows, by_cell.shape[1], width)
    filled = [0] * rows
    for together in _apart(touched):
        tangent = _joint_derivative(pulled, seed, leaves, together)
        tangent = _linearised(tangent, by_cell.detach(), transform)
        for p in together:
            for g in touched[:, p].nonzero()[:, 0].tolist():
                index[g, filled[g]] = p
                features[g, :, filled[g]] = tangent[g]
                filled[g] += 1
    return index, features


def _touched(by_cell: Tensor, leaves: Sequence[Tensor], cell: int) -> Tensor:
    """Whether each coefficient (P,) has a part in a cell: a random combination of its data depends on it."""
    generator = torch.Generator().manual_seed(cell)
    mix = torch.randn(by_cell.shape[1], generator=generator, dtype=torch.float64).to(by_cell)
    found = torch.autograd.grad(by_cell[cell], leaves, mix, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True)]
    return torch.cat([g.reshape(-1) for g in parts]) != 0


def _apart(touched: Tensor) -> list[list[int]]:
    """Coefficients in groups whose members share no cell, each cell's in ascending order."""
    groups: list[list[int]] = []
    taken: list[Tensor] = []
    for p in touched.any(0).nonzero()[:, 0].tolist():
        mine = touched[:, p]
        place = next((i for i, cells in enumerate(taken) if not bool((cells & mine).any())), None)
        if place is None:
            groups.append([p])
            taken.append(mine.clone())
        else:
            groups[place].append(p)
            taken[place] |= mine
    return groups


def _joint_derivative(
    pulled: Sequence[Tensor | None], seed: Tensor, leaves: Sequence[Tensor], chosen: Sequence[int]
) -> Tensor:
    """Directional derivative along several coefficients at once."""
    flat = torch.zeros(sum(leaf.numel() for leaf in leaves), dtype=leaves[0].dtype, device=leaves[0].device)
    flat[list(chosen)] = 1.0
    directions = flat.split([leaf.numel() for leaf in leaves])
    live = [
        (g, d.reshape(x.shape).to(x))
        for g, d, x in zip(pulled, directions, leaves, strict=True)
        if g is not None and g.requires_grad
    ]
    if not live:
        return torch.zeros_like(seed)
    outputs, tangents = zip(*live, strict=True)
    (result,) = torch.autograd.grad(outputs, seed, tangents, retain_graph=True, allow_unused=True)
    return torch.zeros_like(seed) if result is None else result


def _categories(
    value: Tensor, leaves: Sequence[Tensor], rows: int, inner: int, transform: Transform
) -> tuple[Tensor, Tensor] | None:
    """As :func:`_columns` for log-odds of E categories, each a cell of its own."""
    if sum(leaf.numel() for leaf in leaves) * value.numel() > MAX_ELEMENTS:
        return None
    columns = []
    for leaf in leaves:
        units = torch.eye(leaf.numel(), dtype=leaf.dtype).reshape(-1, *leaf.shape)
        for (column,) in Tangents([value], leaf, list(units)):
            column = _sparsest(_linearised(column, value.detach(), transform))
            columns.append(column.movedim(-1, inner).reshape(rows * value.shape[-1], -1))
    return _by_cell(torch.stack(columns, -1))


def _sparsest(column: Tensor) -> Tensor:
    """Derivatives of log-odds (…, E) against the category that leaves most of them zero.

    Softmax does not see what is added to all categories: the user's ``X @ G`` is recovered, whose columns are apart.
    """
    rows = column.reshape(-1, column.shape[-1])
    counts = [int((rows != rows[:, e : e + 1]).sum()) for e in range(rows.shape[1])]
    least = counts.index(min(counts))
    return column - column[..., least : least + 1]


def _inverse(value: Tensor, transform: Transform) -> Tensor:
    if transform.name == "exp":
        return value.log()
    return value if transform.name in ("identity", "log_softmax") else transform.inverse(value)


def _by_cell(design: Tensor) -> tuple[Tensor, Tensor]:
    """Keep, for each cell, the coefficients that it uses."""
    used = (design != 0).any(1)  # (G, P)
    width = int(used.sum(1).max())
    index = torch.full((len(used), max(width, 1)), -1, dtype=torch.int64)
    features = design.new_zeros(len(used), design.shape[1], max(width, 1))
    for g, row in enumerate(used):
        chosen = row.nonzero()[:, 0]
        index[g, : len(chosen)] = chosen
        features[g, :, : len(chosen)] = design[g][:, chosen]
    return index, features
