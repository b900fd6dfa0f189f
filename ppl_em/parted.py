"""Fits by EM whose data come in parts: the machine for a variant, the result without data at hand."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ppl_em.dividing import LoaderParts
from ppl_em.em.incremental import IncrementalMachine
from ppl_em.em.loop import Machine
from ppl_em.em.stepwise import Averages, StepwiseMachine, from_totals
from ppl_em.em.streaming import Demoted, StreamedMachine
from ppl_em.em.updates import Parameters
from ppl_em.plan.saved import SavedPlan
from ppl_em.trace.footprint import isolated

if TYPE_CHECKING:
    from ppl_em.problem import Problem
    from ppl_em.result import FitResult

_KINDS = {"batch": StreamedMachine, "stepwise": StepwiseMachine, "incremental": IncrementalMachine}


def machine_for(problem: Problem, machine: Machine) -> Machine:
    """The machine that goes through the data as the problem asks.

    Args:
        problem: the fit.
        machine: on all data, or on a loader's first batch.
    """
    if problem.parts is None:
        return machine
    made = _KINDS[problem.em.variant](machine.plan, problem.em, machine.generator, problem.parts)
    if isinstance(made, StepwiseMachine):
        made.carried = problem.carried
    return made


def of_parts(result: FitResult, machine: Machine, problem: Problem) -> FitResult:
    """The result of a fit whose data came in parts.

    A loader's data are not at hand afterwards: queries take what ``fit`` took. Averaged statistics are kept for
    ``update``.
    """
    assert isinstance(machine, StreamedMachine) and problem.parts is not None
    with isolated(problem.seed), torch.enable_grad():
        result = replace(result, _averages=averages_of(machine, result))
    if not isinstance(problem.parts, LoaderParts):
        return result
    plan = replace(result.plan, parts=problem.plan.parts)
    return replace(result, _parted=True, _source=None, plan=SavedPlan.of(plan), num_observations=machine.num_seen)


def averages_of(machine: StreamedMachine, result: FitResult) -> Averages | None:
    """Averaged statistics for ``update``; None where some parameters have none of fixed size."""
    if isinstance(machine, StepwiseMachine):
        return machine.averages
    parameters: Parameters = {**result.params, **result.point_estimates}
    try:
        return from_totals(machine, parameters)
    except Demoted:  # what held in every step does not at the end: further steps need the data anew
        return None
