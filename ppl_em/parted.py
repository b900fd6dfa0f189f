"""Fits by EM whose data come in parts: the machine for a variant, the result without data at hand."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from ppl_em.dividing import LoaderParts
from ppl_em.em.incremental import IncrementalMachine
from ppl_em.em.loop import Machine
from ppl_em.em.restarts import Runs, Start, make_starts
from ppl_em.em.stepwise import Averages, StepwiseMachine, from_totals
from ppl_em.em.streaming import Demoted, StreamedMachine
from ppl_em.em.updates import Parameters
from ppl_em.plan.saved import SavedPlan
from ppl_em.trace.footprint import isolated

if TYPE_CHECKING:
    from ppl_em.problem import Problem
    from ppl_em.result import FitResult

#: Starts that are tried on some of the data, and steps of the best ones there.
NUM_STARTS, START_STEPS = 10, 100

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


def begun(problem: Problem, starts: list[Start]) -> list[Start]:
    """Where a run through parts of the data begins: at the best fit of some of the data, from several starts.

    A run that looks at each batch a few times does not get far from a poor start.

    Args:
        problem: the fit.
        starts: a single one, unless the user asked for several, which are left as they are.

    Reference:
        Biernacki, C., Celeux, G. & Govaert, G. (2003). Choosing starting values for the EM algorithm for getting the
        highest likelihood in multivariate Gaussian mixture models. CSDA 41(3-4).
    """
    latent = bool(problem.plan.blocks) or problem.plan.tabulated
    if problem.parts is None or problem.em.variant == "batch" or problem.init == "params" or not latent:
        return starts
    if len(starts) != 1 or problem.em.max_steps == 0:
        return starts
    plan = problem.parts.sample(torch.Generator().manual_seed(problem.seed))
    settings = replace(problem.em, variant="batch", max_steps=START_STEPS, callback=None)
    machine = Machine(plan, settings, torch.Generator().manual_seed(problem.seed))
    several = make_starts(machine, problem.values, problem.init, NUM_STARTS, problem.seed)
    best = Runs(machine, lambda index, state: False).run(several, screen=True)
    return [Start(best.start.kind, best.state.parameters)]


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
