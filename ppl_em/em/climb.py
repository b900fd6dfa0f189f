"""The M-step of parameters about whose densities nothing is known: Newton's method or gradients of Q itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from ppl_em.em.boundary import inside
from ppl_em.em.closed_form import Parameters
from ppl_em.em.e_step import EStep, expected_log_joint
from ppl_em.em.held import find_floors
from ppl_em.em.structured import counted_log_joint
from ppl_em.methods import EM
from ppl_em.mstep.gradient import gradient_ascent, quasi_newton_ascent
from ppl_em.mstep.newton import newton
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update

#: Steps of Newton's method at most; it converges quadratically and starts near.
NEWTON_STEPS = 25


class Climb:
    """Ascent of Q over some parameters in unconstrained space; never downhill.

    Args:
        plan: the plan.
        update: its entry.
        settings: iterations and optimiser.
    """

    def __init__(self, plan: Plan, update: Update, settings: EM) -> None:
        self.plan, self.update, self.settings = plan, update, settings
        self.names = update.parameters
        self.sites = [s for s in plan.sites() if s.parameters & set(self.names)]
        self.constraints = {n: plan.program.parameters[n].constraint for n in self.names}
        self.floors = {n: f for n, f in find_floors(plan).items() if n in self.names}
        #: Q over all data, where these are but a part of them.
        self.pooled: Callable[[Mapping[str, Tensor], EStep], Tensor] | None = None

    def step(self, parameters: Parameters, e: EStep) -> Parameters:
        """New values of these parameters; the old ones where Q cannot be raised."""
        raise NotImplementedError

    def _q(self, parameters: Mapping[str, Tensor], e: EStep) -> Tensor:
        """Q over all data."""
        return self.objective(parameters, e) if self.pooled is None else self.pooled(parameters, e)

    def objective(self, parameters: Mapping[str, Tensor], e: EStep) -> Tensor:
        """Q in terms of these parameters; sites that sum over a hidden structure enter by their counts."""
        counted = [s for s in self.sites if s.name in e.counts]
        others = [s for s in self.sites if s.name not in e.counts]
        total = expected_log_joint(self.plan, others, e.weights, parameters)
        return total + counted_log_joint(self.plan, counted, e.counts, parameters) if counted else total

    def _free(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            n: self.floors[n].unconstrained(parameters[n].detach())
            if n in self.floors
            else _unconstrain(self.constraints[n], parameters[n])
            for n in self.names
        }

    def _constrained(self, name: str, free: Tensor) -> Tensor:
        """A value from unconstrained coordinates, away from boundaries where the parameter's prior is unbounded."""
        if name in self.floors:
            return self.floors[name].constrained(free)
        return transform_to(self.constraints[name])(free)  # pyright: ignore[reportReturnType]


class Newton(Climb):
    """Few parameters: the dense Hessian of Q, by differentiating twice."""

    def step(self, parameters: Parameters, e: EStep) -> Parameters:
        """The maximiser of Q over these parameters, or what the steps allow."""
        if not self.sites:
            return {}
        free = self._free(parameters)
        x0 = torch.cat([t.reshape(-1) for t in free.values()]).double()

        def rebuild(x: Tensor) -> Parameters:
            values, at = {}, 0
            for n, start in free.items():
                piece = x[at : at + start.numel()].reshape(start.shape).to(parameters[n].dtype)
                values[n] = self._constrained(n, piece)
                at += start.numel()
            return values

        best = newton(lambda x: self._q({**parameters, **rebuild(x)}, e), x0, max_steps=NEWTON_STEPS)
        if not float(best.value) >= float(self._q(parameters, e).detach()):
            return {n: parameters[n] for n in self.names}
        return {n: inside(self.constraints[n], v.detach()) for n, v in rebuild(best.x).items()}


class Gradient(Climb):
    """Networks and large tensors: a few steps of an optimiser (generalised EM).

    One step of gradient descent is the expected-gradient algorithm: by Fisher's identity the gradient of Q at the
    current parameters is that of the log-likelihood.

    Reference:
        Salakhutdinov, R., Roweis, S. & Ghahramani, Z. (2003). Optimization with EM and expectation-conjugate-gradient.
    """

    def __init__(self, plan: Plan, update: Update, settings: EM) -> None:
        super().__init__(plan, update, settings)
        self._optimiser: torch.optim.Optimizer | None = None
        self._leaves: dict[str, Tensor] = {}
        self._last: Parameters = {}

    def step(self, parameters: Parameters, e: EStep) -> Parameters:
        """Values after some optimiser steps; the old ones where Q cannot be raised."""
        if not self.sites:
            return {}
        optimiser = self._prepare(parameters)
        fixed = self.plan.program.leaves(parameters)

        def objective() -> Tensor:
            return self._q({**fixed, **self._values()}, e)

        leaves, steps = list(self._leaves.values()), self.settings.m_step_steps
        if optimiser is None:
            quasi_newton_ascent(objective, leaves, steps)
        else:
            gradient_ascent(objective, leaves, steps, optimiser)
        self._last = {n: inside(self.constraints[n], v.detach().clone()) for n, v in self._values().items()}
        return self._last

    def _values(self) -> dict[str, Tensor]:
        """The parameters as functions of the leaves."""
        return {
            n: leaf if self._module(n) is not None else self._constrained(n, leaf) for n, leaf in self._leaves.items()
        }

    def _module(self, name: str) -> Tensor | None:
        return self.plan.program.parameters[name].module_tensor

    def _prepare(self, parameters: Parameters) -> torch.optim.Optimizer | None:
        """Leaves at the current parameters; an optimiser keeps its state along one path only."""
        continued = all(n in self._last and torch.equal(self._last[n], parameters[n]) for n in self.names)
        if continued and self._leaves:
            return self._optimiser
        free = self._free({n: parameters[n] for n in self.names})
        self._leaves = {}
        for n in self.names:
            weight = self._module(n)
            if weight is not None:
                with torch.no_grad():
                    weight.copy_(parameters[n])
            self._leaves[n] = free[n].requires_grad_(True) if weight is None else weight
        make: Any = self.settings.m_step_optim
        self._optimiser = None if make is None else make(list(self._leaves.values()))
        return self._optimiser


def _unconstrain(constraint: Any, value: Tensor) -> Tensor:
    """Unconstrained coordinates; a value on the boundary is taken a little inside it."""
    free = transform_to(constraint).inv(value.detach())
    limit = 50.0 if value.dtype == torch.float64 else 30.0
    return torch.nan_to_num(free, nan=0.0, posinf=limit, neginf=-limit).clone()
