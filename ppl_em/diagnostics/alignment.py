"""Labels of components are arbitrary: two fits are compared after the assignment that brings them closest together.

Reference:
    Stephens, M. (2000). Dealing with label switching in mixture models. JRSS B 62(4).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from ppl_em.em.e_step import e_step
from ppl_em.em.labels import Labels, label_sets
from ppl_em.plan.plan import Plan

#: An assignment whose squared distance exceeds this part of the next best one's is ambiguous.
AMBIGUOUS = 0.5
#: Labels are exchangeable if permuting them changes the objective by less than this, relative to its size.
INVARIANT = 1e-8


@dataclass(frozen=True)
class Alignment:
    """Values under the labels that bring them closest to a reference.

    Args:
        values: by name.
        distance: root of the mean squared distance that is left, in standard errors (or in spreads of the components).
        ambiguous: another assignment is nearly as close.
    """

    values: dict[str, Tensor]
    distance: float
    ambiguous: bool


def exchangeable_labels(plan: Plan, values: Mapping[str, Tensor]) -> list[Labels]:
    """Sets of labels that can be permuted without changing the objective at the given parameters."""
    before = e_step(plan, values).objective
    found = []
    for labels in label_sets(plan.program):
        turned = labels.permute(values, torch.arange(labels.size).roll(1))
        if abs(e_step(plan, turned).objective - before) <= INVARIANT * (1 + abs(before)):
            found.append(labels)
    return found


def align(
    values: Mapping[str, Tensor],
    reference: Mapping[str, Tensor],
    labels: Sequence[Labels],
    errors: Mapping[str, Tensor] | None = None,
) -> Alignment:
    """Permute labels by optimal assignment.

    Args:
        values: constrained values to be moved.
        reference: values to be approached.
        labels: what may be permuted.
        errors: standard errors of the reference, by name: the unit of distance.
    """
    scales = {n: _scale(v, labels, n, (errors or {}).get(n)) for n, v in reference.items()}
    ambiguous = False
    for sweep in range(2 if len(labels) > 1 else 1):
        for group in labels:
            cost = _cost(values, reference, scales, group)
            order = torch.as_tensor(linear_sum_assignment(cost.numpy())[1])
            values = group.permute(values, order)
            ambiguous |= sweep == 0 and _ambiguous(cost, order)
    squares = [((values[n] - reference[n]) / scales[n]).double().square().reshape(-1) for n in reference]
    together = torch.cat(squares) if squares else torch.zeros(1)
    return Alignment(dict(values), float(together.mean().sqrt()), ambiguous)


def _scale(value: Tensor, labels: Sequence[Labels], name: str, error: Tensor | None) -> Tensor:
    """Unit of distance of each element: its standard error where known, else the spread over components."""
    axes = [a for g in labels for a in g.axes.get(name, ())]
    spread = value.std(axes[0], keepdim=True).expand(value.shape) if axes and value.shape[axes[0]] > 1 else value.abs()
    spread = torch.where(spread > 0, spread, torch.ones_like(spread))
    if error is None:
        return spread
    return torch.where(torch.isfinite(error) & (error > 0), error, spread)


def _cost(
    values: Mapping[str, Tensor], reference: Mapping[str, Tensor], scales: Mapping[str, Tensor], labels: Labels
) -> Tensor:
    """Squared distance of each reference component (row) to each component (column)."""
    cost = torch.zeros(labels.size, labels.size, dtype=torch.float64)
    for name, axes in labels.axes.items():
        rows = [_rows(t[name].double(), axes) for t in (reference, values, scales)]
        cost += ((rows[0][:, None] - rows[1][None]) / rows[2][:, None]).square().sum(-1)
    return torch.nan_to_num(cost, nan=1e30, posinf=1e30)


def _rows(value: Tensor, axes: tuple[int, ...]) -> Tensor:
    """(K, features) what a component's labels alone determine: of a transition matrix, its diagonal."""
    if len(axes) == 1:
        return value.movedim(axes[0], 0).reshape(value.shape[axes[0]], -1)
    diagonal = value.diagonal(dim1=axes[0], dim2=axes[1])
    return diagonal.movedim(-1, 0).reshape(value.shape[axes[0]], -1)


def _ambiguous(cost: Tensor, order: Tensor) -> bool:
    """Whether exchanging two labels costs little: nearly the same distance, over the components concerned."""
    chosen = cost.gather(1, order[:, None])[:, 0]
    for i in range(len(order)):
        for j in range(i):
            swapped = cost[i, order[j]] + cost[j, order[i]]
            if float(chosen[i] + chosen[j]) > AMBIGUOUS * float(swapped):
                return True
    return False
