"""One stepwise-EM step of a finished fit on new data, as a new result.

Reference:
    Cappé, O. & Moulines, E. (2009). On-line expectation–maximization for latent data models. JRSS B 71(3).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from ppl_em.em.degenerate import collapsed
from ppl_em.em.partition import divided_plate
from ppl_em.em.shards import Shard, inside, unscaled
from ppl_em.em.stepwise import Averages, StepwiseMachine, evaluated, from_totals
from ppl_em.em.streaming import Demoted
from ppl_em.errors import PlanError, PplEmError, message
from ppl_em.methods import EM
from ppl_em.plan.plan import Plan
from ppl_em.status import Status
from ppl_em.trace.footprint import isolated

if TYPE_CHECKING:
    from ppl_em.result import FitResult


class OnePart:
    """All data of a plan as the only part.

    Args:
        plan: the plan.
        plate: the plate along which data come in.
    """

    kept = True

    def __init__(self, plan: Plan, plate: str) -> None:
        self.plan, self.plate = plan, plate
        self.shard = Shard(inside(plan, plate), plan.program.plates[plate].size)
        self.num_data = float(self.shard.size)

    def __iter__(self) -> Iterator[Shard]:
        """The part."""
        yield self.shard

    def epoch(self, generator: torch.Generator) -> Iterator[Shard]:
        """The part."""
        yield self.shard

    def sample(self, generator: torch.Generator) -> Plan:
        """All data."""
        return self.plan

    def describe(self) -> str:
        """Nothing is divided."""
        return "all data at once"


def update_em(result: FitResult, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> FitResult:
    """The result after one stepwise-EM step on new data.

    The new data enter the averaged statistics with a weight that falls with the amount of data seen so far; an M-step
    follows. The data of the new result, and its objective, are those of the batch.

    Args:
        result: a fit by exact EM.
        args, kwargs: the model's arguments, with the new data.

    Raises:
        PplEmError: the statistics of the fit are not at hand, or some parameters have none of fixed size.
    """
    with isolated(result.seed), torch.enable_grad():
        averages = result._averages if result._averages is not None else averages_of_data(result)
        source = result._source_for(args, kwargs)
        plan = result._plan_for(args, kwargs)
        program = unscaled(plan.program, averages.plate) if averages.plate in plan.program.plates else None
        if program is None:
            why = "the data of the fit lie in it"
            raise PplEmError(message(f"the batch has no plate '{averages.plate}'", why=why))
        plan = plan if program is plan.program else result._plan_of(program)
        machine = _machine(plan, averages)
        machine.resume(averages)
        old = {**result.params, **result.point_estimates}
        try:
            part = next(iter(machine.parts()))
            statistics = machine.statistics(part, old, part.machine.evaluate(old))
            rate = averages.rate_for(part.size)
            averages = averages.mixed(statistics, rate, part.size)
            new = machine.solve(averages, old, averages.num_data)
        except Demoted as error:
            why = str(error.__cause__)
            raise PplEmError(message("the fit cannot be updated", why=why, hint="fit(..., init=result)")) from error
        averages = machine.recentre(averages)
        state = evaluated(machine, result.num_steps + 1, new, Status.ALL_STEPS)
        where = collapsed(machine.plan, new, machine.watched)
    points = {n: v for n, v in new.items() if n in result.point_estimates}
    return replace(
        result,
        params={n: new[n].detach().clone() for n in result.params},
        point_estimates={n: v.detach().clone() for n, v in points.items()},
        objective=state.objective,
        log_likelihood=state.log_likelihood,
        plan=plan,
        history=torch.cat([result.history, torch.tensor([state.objective], dtype=torch.float64)]),
        status=Status.DEGENERATE if where else Status.ALL_STEPS,
        detail=where,
        num_steps=result.num_steps + 1,
        num_observations=part.size,
        _source=source,
        _averages=averages,
    )


def averages_of_data(result: FitResult) -> Averages:
    """Averaged statistics of a fit that took all data at once.

    Raises:
        PplEmError: the data are not at hand, or some parameters have no statistics of fixed size.
    """
    if not isinstance(result.plan, Plan) or not result.exact:
        why = "the data of the fit are not at hand" if result.exact else "the fit is not exact"
        hint = "result.with_data(x).update(batch)" if result.exact else None
        raise PplEmError(message("the statistics of the fit are not known", why=why, hint=hint))
    plate = divided_plate(result.plan, None)
    exponent, offset = result._schedule
    machine = _machine(result.plan, Averages(plate=plate, exponent=exponent, offset=offset))
    try:
        found = from_totals(machine, {**result.params, **result.point_estimates})
    except Demoted as error:
        why = str(error.__cause__)
        raise PplEmError(message("the fit cannot be updated", why=why, hint="fit(..., init=result)")) from error
    if found is None:
        rules = [u for u in result.plan.updates if u.rule in ("newton", "gradient")] or list(result.plan.updates)
        names = ", ".join(n for u in rules for n in u.parameters)
        why = f"{names}: no statistics of fixed size stand for the data"
        raise PplEmError(message("the fit cannot be updated", why=why, hint="fit(..., init=result)"))
    return found


def _machine(plan: Plan, averages: Averages) -> StepwiseMachine:
    settings = EM(step_exponent=averages.exponent, step_offset=averages.offset)
    try:
        parts = OnePart(plan, averages.plate)
    except PlanError as error:
        raise PplEmError(message("the fit cannot be updated", why=str(error))) from error
    return StepwiseMachine(plan, settings, torch.Generator(), parts)
