"""Components permuted everywhere: labels of a mixture or of hidden states are arbitrary."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_em.em.labels import axis_of
from ppl_em.errors import PplEmError, message
from ppl_em.ir import Program
from ppl_em.plan.plan import Plan

if TYPE_CHECKING:
    from ppl_em.result import FitResult


def relabel(result: FitResult, by: str | Sequence[int] | Tensor) -> FitResult:
    """Permute the values of the latents, and with them every parameter that they index.

    Args:
        result: a fit whose discrete latents all have the same number of values.
        by: a permutation (new label k is old label ``by[k]``), or the name of a parameter whose first element by
            component is sorted in increasing order.

    Returns:
        The same fit under other labels, with the same objective.

    Raises:
        PplEmError: no axis of the parameter follows the latents.
    """
    plan = result._plan_for(())
    axes = component_axes(plan)
    if isinstance(by, str):
        if by not in axes or not axes[by]:
            raise PplEmError(
                message("no axis of this parameter follows the latents", site=by, hint=f"one of {sorted(axes)}")
            )
        value = result._values[by].movedim(axes[by][0], 0)
        order = torch.argsort(value.reshape(value.shape[0], -1)[:, 0], stable=True)
    else:
        order = torch.as_tensor(by, dtype=torch.int64)
        if sorted(order.tolist()) != list(range(len(order))):
            raise PplEmError(message("not a permutation", value=order.tolist()))
    moved = {}
    for name, value in result._values.items():
        for axis in axes.get(name, ()):
            if value.shape[axis] != len(order):
                raise PplEmError(message("the permutation has another length than the latents", value=len(order)))
            value = value.index_select(axis, order)
        moved[name] = value
    params = {n: moved[n] for n in result.params}
    points = {n: moved[n] for n in result.point_estimates}
    return replace(result, params=params, point_estimates=points)


def component_axes(plan: Plan) -> dict[str, tuple[int, ...]]:
    """Axes of each parameter along which a latent's values are laid out."""
    program: Program = plan.program
    axes: dict[str, set[int]] = {}
    for site in program.sites.values():
        for argument in site.arguments.values():
            for link in argument.links:
                shape = program.parameters[link.parameter].init.shape
                for position, dim in enumerate(argument.value.dims):
                    if dim in program.latents:
                        found = axis_of(link.index, position, shape)
                        if found is not None:
                            axes.setdefault(link.parameter, set()).add(found)
                if site.role == "latent" and argument.value.event_dim == 1:
                    found = axis_of(link.index, link.index.dim() - 1, shape)
                    if found is not None:
                        axes.setdefault(link.parameter, set()).add(found)
    return {n: tuple(sorted(a)) for n, a in axes.items()}
