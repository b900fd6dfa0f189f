"""Labels of components: which axes of which parameters a latent's values index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.ir import Program


@dataclass(frozen=True)
class Labels:
    """Latents whose values can be renamed together.

    Args:
        latents: their names.
        size: number of values.
        axes: for each parameter that they index, the axes along which.
    """

    latents: tuple[str, ...]
    size: int
    axes: Mapping[str, tuple[int, ...]]

    def permute(self, values: Mapping[str, Tensor], order: Sequence[int] | Tensor) -> dict[str, Tensor]:
        """Values under other labels: the new label k is the old label ``order[k]``."""
        index = torch.as_tensor(order, dtype=torch.int64)
        moved = dict(values)
        for name, axes in self.axes.items():
            for axis in axes:
                moved[name] = moved[name].index_select(axis, index)
        return moved


def label_sets(program: Program) -> list[Labels]:
    """Latents joined wherever they index the same axis of the same parameter."""
    homes: dict[tuple[str, int], set[str]] = {}
    for site in program.sites.values():
        for argument in site.arguments.values():
            for link in argument.links:
                shape = program.parameters[link.parameter].init.shape
                places = [(i, d) for i, d in enumerate(argument.value.dims) if d in program.latents]
                if site.role == "latent" and argument.value.event_dim == 1 and site.name in program.latents:
                    places.append((link.index.dim() - 1, site.name))
                for position, latent in places:
                    axis = axis_of(link.index, position, shape)
                    if axis is not None:
                        homes.setdefault((link.parameter, axis), set()).add(latent)
    groups: list[tuple[set[str], set[tuple[str, int]]]] = []
    for home, latents in homes.items():
        touching = [g for g in groups if g[0] & latents]
        merged = (latents.union(*(g[0] for g in touching)), {home}.union(*(g[1] for g in touching)))
        groups = [g for g in groups if g not in touching] + [merged]
    result = []
    for latents, places in groups:
        sizes = {program.latents[z].cardinality for z in latents}
        names = sorted({n for n, _ in places})
        axes = {n: tuple(sorted(a for m, a in places if m == n)) for n in names}
        # A latent of several elements has more values than the table has entries: these have no labels of their own.
        whole = all(program.parameters[n].init.shape[a] in sizes for n, of in axes.items() for a in of)
        if len(sizes) == 1 and whole:
            result.append(Labels(tuple(sorted(latents)), sizes.pop(), axes))
    return result


def axis_of(index: Tensor, position: int, shape: torch.Size) -> int | None:
    """The axis of a parameter along which its index moves when an argument's dimension moves."""
    along = index.movedim(position, 0).reshape(index.shape[position], -1)
    if len(along) < 2 or bool((along < 0).any()):
        return None
    step = int(along[1, 0] - along[0, 0])
    stride = 1
    for axis in range(len(shape) - 1, -1, -1):
        if step == stride and shape[axis] == len(along):
            return axis
        stride *= shape[axis]
    return None
