"""Deterministic annealing: EM on flattened posteriors, whose temperature falls to one.

At a low inverse temperature β the posterior weights p(x, z)^β / Σ p(x, z)^β are nearly equal and the free energy has few
optima; its best one is followed as β rises. At β = 1 it is EM. What comes out is a start for EM.

Reference:
    Ueda, N. & Nakano, R. (1998). Deterministic annealing EM algorithm. Neural Networks 11(2).
"""

from __future__ import annotations

from dataclasses import replace

import torch

from ppl_em.em.e_step import EStep, site_factors
from ppl_em.em.loop import Machine
from ppl_em.em.start import perturb
from ppl_em.em.updates import Parameters
from ppl_em.errors import PlanError, message
from ppl_em.exact.engine import Weights
from ppl_em.ir import Factor

#: Growth of β from one temperature to the next, and steps of EM at each.
GROWTH, STEPS = 1.25, 8
#: Standard deviation of the moves, in unconstrained space, by which components that have met part again.
MOVE = 0.01


def tempered(machine: Machine, parameters: Parameters, beta: float) -> EStep:
    """Expected weights under the posterior to the power β.

    Args:
        machine: plan and updaters.
        parameters: constrained values.
        beta: inverse temperature in (0, 1].
    """
    plan = machine.plan
    if plan.tabulated:
        hint = "EM(anneal=None)"
        raise PlanError(message("annealing of hidden structures is not available", value=beta, hint=hint))
    with torch.no_grad():
        factors = site_factors(plan, parameters)
        weights: dict[str, Weights] = {s.name: Weights(s.scale or Factor(torch.ones(()), ())) for s in plan.plain}
        for entry in plan.blocks:
            flat = {s.name: factors[s.name].map(lambda t: beta * t) for s in entry.block.sites}
            weights.update(entry.engine.expected(entry.block, flat).weights)
    return EStep(0.0, 0.0, weights)


def annealed(machine: Machine, start: Parameters, beta: float, generator: torch.Generator) -> Parameters:
    """Where the best optimum at a high temperature leads as it falls to one.

    Args:
        machine: plan and updaters.
        start: constrained values.
        beta: inverse temperature to begin with, in (0, 1].
        generator: randomness of the small moves at every temperature.
    """
    values = start
    while beta < 1.0:
        values = perturb(machine.plan, values, generator, MOVE)
        for _ in range(STEPS):
            values = machine.maximise(values, tempered(machine, values, beta))
        beta *= GROWTH
    return values


def anneal_starts(machine: Machine, starts: list, seed: int) -> list:
    """Every start (a frozen value with ``values``) annealed, where the settings ask for it; else as they are."""
    beta = machine.settings.anneal
    if beta is None or beta >= 1.0 or not machine.plan.blocks:
        return starts
    moved = []
    for i, start in enumerate(starts):
        generator = torch.Generator().manual_seed(seed * 7919 + i)
        try:
            moved.append(replace(start, kind="annealed", values=annealed(machine, start.values, beta, generator)))
        except (ValueError, RuntimeError):  # an M-step on the way is degenerate
            moved.append(start)
    return moved
