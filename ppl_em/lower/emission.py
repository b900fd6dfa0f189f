"""Observed sites of one block lowered together: one statistics matrix, one product for densities, one for counts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from functools import reduce

import torch
from torch import Tensor

from ppl_em.ir import Factor, Site
from ppl_em.lower.families import LOWERINGS, MAX_ONE_HOT, CategoricalLowering, Lowering, SiteMoments


class Emission:
    """Sites x | z of one latent (or of the current state of a chain), over the same data.

    Args:
        sites: observed sites, eligible by :func:`eligible`.
        state: name of the latent's dimension.
        data: names of the data dimensions, in the order in which rows are counted.
        sizes: size of every named dimension.
    """

    def __init__(self, sites: Sequence[Site], state: str, data: tuple[str, ...], sizes: Mapping[str, int]) -> None:
        self.sites, self.state, self.data = tuple(sites), state, data
        self.num_states = sizes[state]
        self.num_data = math.prod(sizes[d] for d in data)
        self.parts: list[tuple[Site, Lowering, Tensor, slice]] = []
        self.dtype = _widest(sites)
        start = 0
        for site in sites:
            lowering, rows = _lower(site, data, sizes, self.dtype)
            self.parts.append((site, lowering, rows, slice(start, start + lowering.width)))
            start += lowering.width
        self.width = start
        bases = [b for _, lowering, rows, _ in self.parts if (b := lowering.base(rows)) is not None]
        self.base = sum(bases[1:], bases[0]) if bases else None

    def of(self, rows: Tensor) -> Emission:
        """The same sites over some of the data, in the order of ``rows``."""
        chosen = copy(self)
        chosen.parts = [(site, lowering, values[rows], span) for site, lowering, values, span in self.parts]
        chosen.base = None if self.base is None else self.base[rows]
        chosen.num_data = len(rows)
        return chosen

    @property
    def symbols(self) -> Tensor | None:
        """Which of the categories (num_data) each datum is, where a single categorical value is all that is seen."""
        _, lowering, values, _ = self.parts[0]
        single = len(self.parts) == 1 and isinstance(lowering, CategoricalLowering) and lowering.elements == 1
        return values.reshape(self.num_data).long() if single else None

    def natural(self, parameters: Mapping[str, Tensor]) -> Tensor | None:
        """Natural parameters and constants in one matrix (K, F + 1); None where digits would be lost."""
        columns, constant = [], torch.zeros(self.num_states, dtype=self.dtype)
        for site, lowering, _, _ in self.parts:
            arguments = {n: self._argument(site, n, parameters) for n in site.arguments}
            natural = lowering.natural(arguments)
            if natural is None or not bool(torch.isfinite(natural[0]).all()):
                return None
            columns.append(natural[0].expand(self.num_states, -1))
            constant = constant + natural[1]
        return torch.cat([*columns, constant[:, None]], 1)

    def _argument(self, site: Site, name: str, parameters: Mapping[str, Tensor]) -> Tensor:
        argument = site.arguments[name]
        factor = Factor(argument.evaluate(parameters).detach(), argument.value.dims)
        order = (self.state, *site.inner)
        tensor = factor.align(order)
        event = tensor.shape[len(order) :]
        elements = [_inner_size(site, d) for d in site.inner]
        wide = tensor.to(self.dtype).expand(self.num_states, *elements, *event)
        return wide.reshape(self.num_states, math.prod(elements), *event)

    def fill(self, start: int, out: Tensor) -> None:
        """Statistics of data start … start+n as columns of ``out`` (F + 1, n); the last row is ones."""
        stop = start + out.shape[1]
        for _, lowering, rows, columns in self.parts:
            lowering.fill(rows[start:stop], out[columns])
        out[-1].fill_(1.0)

    def moments(self, total: Tensor) -> dict[str, SiteMoments]:
        """Expected statistics by site from Σ w T(x), (K, F + 1)."""
        total = total.double()
        return {
            site.name: lowering.moments(total[:, columns], total[:, -1]) for site, lowering, _, columns in self.parts
        }


def eligible(site: Site, state: str, data: tuple[str, ...]) -> bool:
    """Whether an observed site can be lowered: links alone, arguments by state, values by datum, no mask."""
    if site.role != "observed" or not site.lowered or site.family is None or site.mask is not None:
        return False
    if site.family.__name__ not in LOWERINGS or site.scope != (state,) or site.options:
        return False
    if not site.value.tensor.is_floating_point() and site.family.__name__ != "Categorical":
        return False
    varies = {d for a in site.arguments.values() for d in a.value.dims}
    if not varies <= {state, *site.inner} or state not in varies:
        return False
    if set(data) - set(site.value.dims) or set(site.value.dims) - {*data, *site.inner}:
        return False
    if set(site.inner) != varies - {state} or set(site.inner) - set(site.value.dims):
        return False
    if site.family.__name__ == "MultivariateNormal":
        return not site.inner
    if site.family.__name__ == "Categorical":
        argument = next(iter(site.arguments.values()))
        return argument.value.tensor.shape[-1] * math.prod(_inner_size(site, d) for d in site.inner) <= MAX_ONE_HOT
    return True


def _inner_size(site: Site, dim: str) -> int:
    return site.value.sizes[dim]


def _widest(sites: Sequence[Site]) -> torch.dtype:
    """The dtype of densities: the widest among arguments and observed values."""
    tensors = [a.value.tensor for s in sites for a in s.arguments.values()] + [s.value.tensor for s in sites]
    dtypes = [t.dtype for t in tensors if t.is_floating_point()]
    return reduce(torch.promote_types, dtypes[1:], dtypes[0])


def _lower(site: Site, data: tuple[str, ...], sizes: Mapping[str, int], dtype: torch.dtype) -> tuple[Lowering, Tensor]:
    assert site.family is not None
    kind = LOWERINGS[site.family.__name__]
    shape = tuple(_inner_size(site, d) for d in site.inner)
    order = (*data, *site.inner)
    aligned = site.value.align(order)
    event = aligned.shape[len(order) :]
    rows = aligned.expand(*(sizes[d] for d in data), *shape, *event).reshape(
        math.prod(sizes[d] for d in data), math.prod(shape), *event
    )
    rows = rows.to(dtype) if rows.is_floating_point() else rows
    centre = rows.double().mean(0).to(rows.dtype) if kind.centred else torch.zeros(rows.shape[1:])
    lowering = kind(shape, centre)
    if isinstance(lowering, CategoricalLowering):
        lowering.categories = next(iter(site.arguments.values())).value.tensor.shape[-1]
    return lowering, rows
