"""Components that collapse onto too few data: the likelihood is unbounded there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_em.ir import Site
from ppl_em.plan.plan import Plan

#: A scale below this part of the data's own is a collapse, far above where float64 overflows.
FLOOR = 1e-6

_SCALES = {"Normal": "scale", "LogNormal": "scale", "Laplace": "scale", "StudentT": "scale"}
_MATRICES = ("covariance_matrix", "scale_tril", "precision_matrix")


def collapsed(plan: Plan, parameters: Mapping[str, Tensor]) -> str:
    """Which component has collapsed, as text for the status; empty if none has.

    A scale is held against the spread of the site's data. Only scales that the fit estimates are looked at.
    """
    for site in plan.sites():
        if site.role != "observed" or not site.lowered or site.family is None:
            continue
        spread = _spread(site)
        if spread is None:
            continue
        name = _SCALES.get(site.family.__name__)
        if name is not None and site.arguments[name].links:
            scale = site.arguments[name].evaluate(parameters)
            if bool((scale < FLOOR * spread.min()).any()) or not bool(torch.isfinite(scale).all()):
                return _where(site, name, scale)
        for matrix in _MATRICES:
            if matrix in site.arguments and site.arguments[matrix].links:
                value = site.arguments[matrix].evaluate(parameters)
                if not bool(torch.isfinite(value).all()):
                    return _where(site, matrix, value)
                root = _root_diagonal(matrix, value)
                if bool((root < FLOOR * spread).any()):
                    return _where(site, matrix, root)
    return ""


def _root_diagonal(name: str, value: Tensor) -> Tensor:
    """Conditional standard deviations: the diagonal of the Cholesky factor of the covariance."""
    if name == "scale_tril":
        return value.diagonal(dim1=-2, dim2=-1)
    if name == "precision_matrix":
        value = torch.linalg.inv(value)
    factor, bad = torch.linalg.cholesky_ex(value)
    diagonal = factor.diagonal(dim1=-2, dim2=-1)
    return torch.where(bad.unsqueeze(-1) > 0, torch.zeros_like(diagonal), diagonal)


_SPREADS: dict[int, tuple[Tensor, Tensor | None]] = {}


def _spread(site: Site) -> Tensor | None:
    value = site.value.tensor
    kept = _SPREADS.get(id(value))
    if kept is not None and kept[0] is value:
        return kept[1]
    result = None
    if value.is_floating_point() and value.numel() > 2:
        event = value.shape[-1] if site.value.event_dim == 1 else 1
        flat = value.reshape(-1, event)
        spread = flat.std(0)
        result = spread if bool((spread > 0).all()) else None
    if len(_SPREADS) > 64:
        _SPREADS.clear()
    _SPREADS[id(value)] = (value, result)
    return result


def _where(site: Site, argument: str, value: Tensor) -> str:
    axis = site.arguments[argument].value.dims
    worst = int(value.reshape(value.shape[0], -1).amin(1).argmin()) if axis and value.dim() else 0
    which = f", {axis[0].split('@')[0]}={worst}" if axis else ""
    return f"{argument} of site '{site.members[0]}'{which}"
