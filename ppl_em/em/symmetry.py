"""Components that begin alike: EM treats them alike for ever, an exact saddle of the likelihood."""

from __future__ import annotations

from itertools import combinations

import torch
from torch import Tensor

from ppl_em.em.labels import Labels, label_sets
from ppl_em.em.start import perturb
from ppl_em.em.updates import Parameters
from ppl_em.plan.plan import Plan

#: Standard deviation, in unconstrained space, of the move that parts components which are alike.
MOVE = 0.05


def alike(plan: Plan, values: Parameters) -> list[str]:
    """Parameters in which two values of a latent are exchangeable because they are equal, by name.

    Args:
        plan: gives the links from latents to parameters.
        values: constrained values.
    """
    found: list[str] = []
    for labels in label_sets(plan.program):
        for i, j in combinations(range(labels.size), 2):
            order = torch.arange(labels.size)
            order[i], order[j] = j, i
            swapped = labels.permute({n: values[n] for n in labels.axes}, order)
            same = all(_equal(swapped[n], values[n]) for n in labels.axes)
            if same and _exchangeable(plan, labels, values, order):
                found += [n for n in labels.axes if n not in found]
    return found


def _exchangeable(plan: Plan, labels: Labels, values: Parameters, order: Tensor) -> bool:
    """Whether every argument is the same under other labels: predictors and constants can tell values apart too."""
    for site in plan.program.sites.values():
        for argument in site.arguments.values():
            value = argument.evaluate(values).detach()
            moved = value
            for axis, dim in enumerate(argument.value.dims):
                if dim in labels.latents and moved.shape[axis] == len(order):
                    moved = moved.index_select(axis, order)
            if site.name in labels.latents and argument.value.event_dim == 1:
                moved = moved.index_select(moved.dim() - 1, order)
            if not _equal(moved, value):
                return False
    return True


def broken(plan: Plan, values: Parameters, generator: torch.Generator) -> Parameters:
    """Values whose equal components are moved apart a little; the values themselves where none are equal.

    Args:
        plan: the plan.
        values: constrained values.
        generator: randomness.
    """
    names = alike(plan, values)
    if not names or all(plan.program.parameters[n].frozen for n in names):
        return values
    moved = perturb(plan, values, generator, MOVE)
    return {n: moved[n] if n in names else v for n, v in values.items()}


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a.detach() == b.detach()).all())
