"""Free coordinates of all parameters of a fit together: one real vector, zero at the estimates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_em.diagnostics.charts import Chart, log_volume, make_chart
from ppl_em.errors import PplEmError, message
from ppl_em.ir import Program

#: Free coordinates up to which matrices over all of them are formed.
LARGEST = 1500


def element_labels(name: str, shape: torch.Size | tuple[int, ...]) -> list[str]:
    """``loc[0,1]`` for each element, in row-major order."""
    places = product(*(range(n) for n in shape))
    return [name + (f"[{','.join(map(str, place))}]" if place else "") for place in places]


@dataclass(frozen=True)
class Coordinates:
    """Charts of all free parameters, laid end to end.

    Args:
        charts: one for each parameter that is not frozen.
        constants: values of the frozen ones.
        modules: the ``nn.Parameter`` behind a module's weight, by name.
        priors: names of those under a prior (point-estimated latents).
    """

    charts: tuple[Chart, ...]
    constants: Mapping[str, Tensor]
    modules: Mapping[str, Tensor]
    priors: frozenset[str]

    @classmethod
    def at(cls, program: Program, values: Mapping[str, Tensor]) -> Coordinates:
        """Coordinates around given constrained values.

        Raises:
            PplEmError: there are too many for matrices over all of them.
        """
        free = {n: p for n, p in program.parameters.items() if not p.frozen}
        total = sum(values[n].numel() for n in free)
        if total > 4 * LARGEST:
            raise PplEmError(_too_many(total))
        charts = tuple(
            make_chart(n, values[n], p.constraint if p.module_tensor is None else constraints.real)
            for n, p in free.items()
        )
        if sum(c.size for c in charts) > LARGEST:
            raise PplEmError(_too_many(sum(c.size for c in charts)))
        constants = {n: values[n].detach() for n in program.parameters if n not in free}
        modules = {n: p.module_tensor for n, p in free.items() if p.module_tensor is not None}
        return cls(charts, constants, modules, frozenset(n for n, p in free.items() if p.origin == "site"))

    @property
    def size(self) -> int:
        """Number of free coordinates."""
        return sum(c.size for c in self.charts)

    @property
    def origin(self) -> Tensor:
        """The zero vector (size,), in float64."""
        return torch.zeros(self.size, dtype=torch.float64)

    @property
    def labels(self) -> list[str]:
        """Names of all elements of all charted parameters, in the order of :meth:`flatten`."""
        return [label for c in self.charts for label in element_labels(c.name, c.origin.shape)]

    @property
    def fixed(self) -> Tensor:
        """Elements (elements,) that lie on the boundary of their constraint and have no standard error."""
        return (
            torch.cat([c.fixed.reshape(-1) for c in self.charts]) if self.charts else torch.zeros(0, dtype=torch.bool)
        )

    def split(self, u: Tensor) -> list[Tensor]:
        """Coordinates of each chart."""
        return list(u.split([c.size for c in self.charts]))

    def values(self, u: Tensor) -> dict[str, Tensor]:
        """Constrained values by name, differentiable in u (modules are not written to)."""
        moved = {c.name: c.to_value(part) for c, part in zip(self.charts, self.split(u), strict=True)}
        return {**self.constants, **moved}

    def coordinates(self, values: Mapping[str, Tensor]) -> Tensor:
        """Coordinates (size,) of constrained values; the inverse of :meth:`values`."""
        parts = [c.from_value(values[c.name].detach()).double() for c in self.charts]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)

    def flatten(self, values: Mapping[str, Tensor]) -> Tensor:
        """All elements of all charted parameters in one vector."""
        return torch.cat([values[c.name].reshape(-1).double() for c in self.charts])

    def jacobian(self, u: Tensor | None = None) -> Tensor:
        """Derivative of the elements (rows) with respect to the coordinates (columns)."""
        blocks = []
        for chart, part in zip(self.charts, self.split(self.origin if u is None else u), strict=True):
            if not chart.size:
                blocks.append(torch.zeros(chart.origin.numel(), 0, dtype=torch.float64))
                continue
            found = torch.autograd.functional.jacobian(lambda x, c=chart: c.to_value(x).reshape(-1).double(), part)
            blocks.append(torch.as_tensor(found).double())
        return torch.block_diag(*blocks) if blocks else torch.zeros(0, 0, dtype=torch.float64)

    def log_volume(self, points: Tensor) -> Tensor:
        """Log-volume (S,) of the parameters under a prior, whose density is one over constrained space, at (S, P)."""
        total = points.new_zeros(len(points))
        for chart, part in zip(self.charts, points.split([c.size for c in self.charts], -1), strict=True):
            if chart.name in self.priors:
                total = total + log_volume(chart, part)
        return total

    @contextmanager
    def leaves(self, u: Tensor) -> Iterator[tuple[dict[str, Tensor], list[Tensor]]]:
        """Values at u and the tensors whose gradients, laid end to end, are those of u.

        A module's weight is its own leaf: its data are overwritten inside the block and restored on the way out.
        """
        values, leaves = dict(self.constants), []
        try:
            for chart, part in zip(self.charts, self.split(u.detach()), strict=True):
                module = self.modules.get(chart.name)
                if module is not None:
                    with torch.no_grad():
                        module.copy_(chart.to_value(part))
                    values[chart.name] = module
                    leaves.append(module)
                else:
                    leaf = part.clone().requires_grad_(True)
                    values[chart.name] = chart.to_value(leaf)
                    leaves.append(leaf)
            yield values, leaves
        finally:
            for chart in self.charts:
                if chart.name in self.modules:
                    with torch.no_grad():
                        self.modules[chart.name].copy_(chart.origin)


def _too_many(count: int) -> str:
    return message(
        "too many free parameters for the observed information",
        value=count,
        why=f"matrices are formed up to {LARGEST}",
        hint="freeze=(...) for those of no interest, or the bootstrap",
    )
