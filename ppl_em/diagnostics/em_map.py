"""The EM map at a fit: what a few plain steps still gain, and how fast it contracts.

Reference:
    Meng, X.-L. & Rubin, D. (1991). Using EM to obtain asymptotic variance-covariance matrices: the SEM algorithm. JASA
    86(416). The spectral radius of the map's derivative is the largest fraction of missing information.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_em.diagnostics.information import Information
from ppl_em.em.loop import Machine
from ppl_em.em.stopping import remaining_gain
from ppl_em.errors import PplEmError, message
from ppl_em.methods import EM

if TYPE_CHECKING:
    from ppl_em.result import FitResult

#: Plain steps taken to see what is left to gain.
STEPS = 4
#: Power iterations at most, and relative change at which they stop.
ITERATIONS, SETTLED = 60, 1e-4
#: Length of the finite difference, in standard errors.
DIFFERENCE = 1e-4


@dataclass(frozen=True)
class PlainSteps:
    """A few steps of plain EM from the returned parameters.

    Args:
        objectives: at the start and after each step, nats.
        remaining: Aitken's estimate of what is left to gain, nats.
    """

    objectives: list[float]
    remaining: float

    @property
    def largest_fall(self) -> float:
        """Largest loss of one step, nats (0 if none lost)."""
        return max([0.0, *(a - b for a, b in zip(self.objectives, self.objectives[1:], strict=False))])


def plain_steps(result: FitResult) -> PlainSteps:
    """Take a few plain EM steps from the returned parameters; the result is left as it is."""
    machine = _machine(result)
    values, objectives = dict(result._values), []
    try:
        for _ in range(STEPS):
            e = machine.evaluate(values)
            objectives.append(e.objective)
            values = machine.maximise(values, e)
        objectives.append(machine.evaluate(values).objective)
    finally:
        machine.plan.program.leaves(result._values)
    return PlainSteps(objectives, max(remaining_gain(objectives), 0.0))


def missing_information(result: FitResult, seed: int = 0) -> float:
    """Largest fraction of missing information: the spectral radius of the derivative of the EM map.

    Power iteration on finite differences of the map in free coordinates. Elements on the boundary of their
    constraint do not move.

    Args:
        result: a fit of exact EM.
        seed: of the first direction.

    Raises:
        PplEmError: there are no latents, or the map cannot be evaluated near the estimates.
    """
    plan = result._plan_for(())
    if not plan.blocks:
        raise PplEmError(message("there are no latents, so no information is missing"))
    machine = _machine(result)
    try:
        return _power(machine, result.information, torch.Generator().manual_seed(seed))
    finally:
        machine.plan.program.leaves(result._values)


def _machine(result: FitResult) -> Machine:
    return Machine(result._plan_for(()), EM(accelerate=False), torch.Generator().manual_seed(0))


def _power(machine: Machine, information: Information, generator: torch.Generator) -> float:
    coordinates = information.coordinates
    unit = information.conditional_errors
    start = coordinates.values(coordinates.origin)
    image = _map(machine, information, start)
    direction = torch.randn(coordinates.size, generator=generator, dtype=torch.float64)
    rate = 0.0
    for _ in range(ITERATIONS):
        direction = direction / direction.norm()
        moved = coordinates.values(DIFFERENCE * unit * direction)
        change = (_map(machine, information, moved) - image) / (DIFFERENCE * unit)
        new = float(change.norm())
        settled = abs(new - rate) <= SETTLED * new
        rate, direction = new, change
        if settled or new < DIFFERENCE:
            break
    return rate


def _map(machine: Machine, information: Information, values: Mapping[str, Tensor]) -> Tensor:
    given = {n: v.detach() for n, v in values.items()}
    return information.coordinates.coordinates(machine.maximise(given, machine.evaluate(given)))
