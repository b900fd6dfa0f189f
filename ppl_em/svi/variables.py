"""What gradient steps move: parameters in unconstrained space, modules' weights in place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import constraints, transform_to

from ppl_em.ir import Parameter


@dataclass(frozen=True)
class Snapshot:
    """Values of all variables at one step, to be restored later."""

    values: Mapping[str, Tensor]


class Variables:
    """Differentiable values of all parameters of a model and a guide.

    Args:
        parameters: by name; module weights are the modules' own tensors.
        values: constrained start values by name.
        fixed: names that no gradient moves (frozen, or updated in closed form).
    """

    def __init__(
        self, parameters: Mapping[str, Parameter], values: Mapping[str, Tensor], fixed: Iterable[str] = ()
    ) -> None:
        self.parameters = dict(parameters)
        self.fixed = set(fixed) | {n for n, p in parameters.items() if p.frozen}
        self.constants: dict[str, Tensor] = {}
        self.leaves: dict[str, Tensor] = {}
        self._transforms = {}
        for name, parameter in self.parameters.items():
            value = values.get(name, parameter.init).detach()
            if parameter.module_tensor is not None:
                with torch.no_grad():
                    parameter.module_tensor.copy_(value)
                self.leaves[name] = parameter.module_tensor
            elif name in self.fixed:
                self.constants[name] = value.clone()
            else:
                self._transforms[name] = transform_to(parameter.constraint)
                self.leaves[name] = self._free(name, value).requires_grad_(True)
        self._real = {
            n for n, p in self.parameters.items() if p.constraint in (constraints.real, constraints.real_vector)
        }

    def _free(self, name: str, value: Tensor) -> Tensor:
        free = self._transforms[name].inv(value)
        limit = 50.0 if value.dtype == torch.float64 else 30.0
        return torch.nan_to_num(free, nan=0.0, posinf=limit, neginf=-limit).detach().clone()

    @property
    def trained(self) -> list[Tensor]:
        """The tensors that an optimiser moves, each once."""
        found = {id(t): t for n, t in self.leaves.items() if n not in self.fixed}
        return list(found.values())

    def constrained(self) -> dict[str, Tensor]:
        """Values by name, differentiable in the leaves."""
        values = dict(self.constants)
        for name, leaf in self.leaves.items():
            plain = self.parameters[name].module_tensor is not None or name in self._real
            values[name] = leaf if plain else self._transforms[name](leaf)
        return values

    def set(self, values: Mapping[str, Tensor]) -> None:
        """Overwrite some values (constrained)."""
        with torch.no_grad():
            for name, value in values.items():
                if name in self.constants:
                    self.constants[name] = value.detach().clone()
                elif self.parameters[name].module_tensor is not None:
                    self.leaves[name].copy_(value)
                else:
                    self.leaves[name].copy_(self._free(name, value))

    def detached(self) -> dict[str, Tensor]:
        """Constrained values by name, apart from the graph and from later steps."""
        with torch.no_grad():
            return {n: v.detach().clone() for n, v in self.constrained().items()}

    def snapshot(self) -> Snapshot:
        """A copy of everything that steps change."""
        return Snapshot({**{n: t.detach().clone() for n, t in self.leaves.items()}, **self.constants})

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot."""
        with torch.no_grad():
            for name, value in snapshot.values.items():
                if name in self.constants:
                    self.constants[name] = value
                else:
                    self.leaves[name].copy_(value)
