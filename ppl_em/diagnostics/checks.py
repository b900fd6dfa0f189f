"""Checks of an exact fit: did it converge, to the best optimum, how sure are the numbers, do they predict."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ppl_em.diagnostics.alignment import align, exchangeable_labels
from ppl_em.diagnostics.check import Check, Outcome
from ppl_em.diagnostics.em_map import missing_information as fraction_of_missing_information
from ppl_em.diagnostics.em_map import plain_steps
from ppl_em.diagnostics.psis import threshold
from ppl_em.em.degenerate import collapsed
from ppl_em.em.loop import ROUNDING
from ppl_em.errors import PplEmError
from ppl_em.free_parameters import redundant_directions
from ppl_em.per_datum import separate
from ppl_em.status import Status

if TYPE_CHECKING:
    from ppl_em.result import FitResult

#: Nats left to gain that a converged fit may have.
REMAINING = 1e-3
#: Starts within this many nats of the best reached the same height; closer than this many standard errors, the same point.
SAME_HEIGHT, SAME_POINT = 1e-2, 0.1
#: Expected number of data below which a state counts as empty.
EMPTY = 1.0


def _outcome(good: bool) -> Outcome:
    return Outcome.PASS if good else Outcome.FAIL


def monotone(result: FitResult) -> Check | None:
    """Did every step raise the objective?"""
    history = result.history
    if result.log_likelihood is None or result.status is Status.EVALUATED:
        return None
    double = all(v.dtype == torch.float64 for v in result._values.values())
    slack = (ROUNDING if double else 1e-4) * (1 + float(history.abs().max()))
    fall = float((history[:-1] - history[1:]).max().clamp_min(0)) if len(history) > 1 else 0.0
    steps = plain_steps(result)
    worst = max(fall, steps.largest_fall)
    good = worst <= slack and result.status is not Status.NOT_MONOTONE and math.isfinite(worst)
    found = f"no fall in {len(history) - 1} steps" if good else f"a fall of {worst:.3g} nats"
    if result.status is Status.NOT_MONOTONE:
        found = f"a fall {result.detail}"
    return Check(
        "monotone",
        "Did every step raise the objective?",
        _outcome(good),
        found,
        f"no fall beyond rounding ({slack:.1g} nats)",
        "an M-step rule or an engine is wrong for this program: fit(..., verify=True) names it",
        value=worst,
        threshold=slack,
    )


def converged(result: FitResult) -> Check | None:
    """Has it converged?"""
    if result.log_likelihood is None:
        return None
    steps = plain_steps(result)
    bad_end = result.status in (Status.DEGENERATE, Status.NON_FINITE, Status.NOT_MONOTONE)
    good = steps.remaining < REMAINING and not bad_end
    return Check(
        "converged",
        "Has it converged?",
        _outcome(good),
        f"{_nats(steps.remaining)} still to gain after {result.num_steps} steps ({result.status.name.lower().replace('_', ' ')})",
        f"less than {REMAINING:g} nats",
        "fit(..., init=result) continues from here" if not bad_end else f"another init or model: {result.status}",
        value=steps.remaining,
        threshold=REMAINING,
    )


def stationary(result: FitResult) -> Check | None:
    """Is the exact likelihood flat at the estimates, whatever rule found them?"""
    if result.log_likelihood is None or not result.information.coordinates.size:
        return None
    gain = result.information.predicted_gain
    return Check(
        "stationary",
        "Is the exact likelihood flat at the estimates?",
        _outcome(gain < REMAINING),
        f"a Newton step would gain {_nats(gain)}",
        f"less than {REMAINING:g} nats",
        "more steps; if that does not help, a registered M-step rule is wrong: fit(..., verify=True)",
        value=gain,
        threshold=REMAINING,
    )


def curvature(result: FitResult) -> Check | None:
    """Is it a maximum, and do the data identify every parameter?"""
    if result.log_likelihood is None or not result.information.coordinates.size:
        return None
    information = result.information
    smallest = float(information.eigenvalues[0])
    extra = information.num_unidentified - redundant_directions(information.plan.program)
    fixed = int(information.coordinates.fixed.sum())
    where = f"; {fixed} elements lie on the boundary of their constraint and are held there" if fixed else ""
    if information.is_saddle:
        found = f"the objective curves upwards (scaled eigenvalue {smallest:.2g}){where}"
        advice = "more steps or restarts: this is a saddle"
    elif extra > 0:
        found = f"{extra} directions along which the objective does not change{where}"
        names = ", ".join(_unidentified(result))
        advice = f"fix or drop what the data do not determine in {names}; standard_error(function) serves what they do"
    else:
        found, advice = f"positive definite (smallest scaled eigenvalue {smallest:.2g}){where}", ""
    return Check(
        "curvature",
        "Is it a maximum, and is every parameter identified?",
        _outcome(not information.is_saddle and extra <= 0),
        found,
        "observed information positive definite",
        advice,
        about="fit" if information.is_saddle else "uncertainty",
        value=smallest,
        threshold=0.0,
    )


def _unidentified(result: FitResult) -> list[str]:
    null = result.information.null
    weight = result.information.conditional_errors
    charts = result.information.coordinates.charts
    parts = (null / weight[:, None]).square().sum(-1).split([c.size for c in charts])
    return [c.name for c, p in zip(charts, parts, strict=True) if p.numel() and float(p.max()) > 1e-4]


def restarts(result: FitResult) -> Check | None:
    """Is this the best optimum there is?"""
    complete = [r for r in result.restarts if not r.screened]
    if result.log_likelihood is None or not result._plan_for(()).blocks:
        return None
    question = "Is this the best optimum there is?"
    wanted = "at least 2 starts end there"
    total = len(result.restarts)
    more = max(20, 5 * total)
    if total < 2:
        found = "only one start was made"
        return Check("restarts", question, Outcome.NOT_RUN, found, wanted, f"fit(..., restarts={more})")
    best = [r for r in complete if r.objective > result.objective - SAME_HEIGHT]
    same, distinct = _same_point(result, best)
    found = f"{same} of {total} starts reached it"
    if distinct:
        found += f", {distinct} more reached the same height elsewhere"
    dropped = total - len(complete)
    if dropped:
        found += f" ({dropped} were dropped early)"
    better = max(r.objective for r in complete) > result.objective + SAME_HEIGHT
    good = same >= 2 and not better
    return Check(
        "restarts", question, _outcome(good), found, wanted, f"fit(..., restarts={more})", value=same, threshold=2
    )


def _same_point(result: FitResult, best: list) -> tuple[int, int]:
    """Starts that ended at the returned parameters after aligning labels, and at the same height elsewhere."""
    known = [r for r in best if r.params]
    if not known:
        return len(best), 0
    labels = exchangeable_labels(result._plan_for(()), result._values)
    try:
        errors = result.standard_errors()
        identified = result.information.num_unidentified == 0
    except PplEmError:
        errors, identified = {}, False
    if not identified:
        return len(best), 0
    near = [align(r.params, result._values, labels, errors).distance < SAME_POINT for r in known]
    return sum(near), len(near) - sum(near)


def degenerate(result: FitResult) -> Check | None:
    """Has a component collapsed, or is one empty?"""
    if result.log_likelihood is None:
        return None
    plan = result._plan_for(())
    where = collapsed(plan, result._values)
    empty, smallest = _smallest_count(result)
    if where:
        found = f"collapsed: {where}"
    elif empty:
        found = f"empty: {empty} ({smallest:.2g} expected data)"
    else:
        known = math.isfinite(smallest)
        found = f"the smallest expected count of a state is {smallest:.3g}" if known else "no scale has collapsed"
    return Check(
        "degenerate",
        "Has a component collapsed, or is one empty?",
        _outcome(not where and not empty),
        found,
        f"no variance at zero, at least {EMPTY:g} expected datum in each state",
        "fewer states, a prior on the scale, or more restarts",
        value=smallest if math.isfinite(smallest) else None,
        threshold=EMPTY if math.isfinite(smallest) else None,
    )


def _smallest_count(result: FitResult) -> tuple[str, float]:
    """The emptiest state of any latent that lives in a plate or on a time axis, named if it is empty."""
    plan = result._plan_for(())
    posterior = result.posterior()
    smallest, name = math.inf, ""
    for entry in plan.blocks:
        block = entry.block
        if block.axis is not None:
            first = block.axis.states[0]
            counts = [(first.rstrip("_0123456789") or first, posterior.path(first).probs)]
        else:
            local = [z for z in block.latents if z.plates]
            counts = [(z.name, posterior.probabilities(z.name)) for z in local]
        for latent, probs in counts:
            totals = probs.reshape(-1, probs.shape[-1]).sum(0)
            if float(totals.min()) < smallest:
                smallest, name = float(totals.min()), f"{latent}={int(totals.argmin())}"
    return (name if smallest < EMPTY else ""), smallest


def laplace(result: FitResult) -> Check | None:
    """Can the intervals be trusted?"""
    if result.log_likelihood is None or not result.information.coordinates.size:
        return None
    draws = result._draws
    return Check(
        "intervals",
        "Can the intervals and draws be trusted?",
        _outcome(draws.reliable),
        f"k-hat {draws.k_hat:.2f} of the Laplace draws against the exact objective",
        f"below {draws.threshold:.2f}",
        "bootstrap() or profile() in place of normal intervals, or a prior on what is weakly determined",
        about="uncertainty",
        value=draws.k_hat,
        threshold=draws.threshold,
    )


def leave_one_out(result: FitResult) -> Check | None:
    """How well does it predict a datum that it has not seen?"""
    if result.log_likelihood is None or not _leaves_data(result):
        return None
    found = result.loo
    limit = threshold(len(result._draws.coordinates))
    high = int((found.pareto_k > limit).sum())
    return Check(
        "leave-one-out",
        "How well does it predict a datum that it has not seen?",
        _outcome(high == 0),
        f"elpd {found.elpd:.1f} ± {found.se:.1f} nats, {found.p:.1f} effective parameters; "
        f"k-hat above {limit:.2f} for {high} of {found.pareto_k.size} data"
        + (f", which stand for {found.num_copies}" if found.num_copies is not None else ""),
        "k-hat below its limit for each datum",
        "refit without these data, or look at them: they are influential",
        about="uncertainty",
        value=float(found.pareto_k.max()),
        threshold=limit,
    )


def _leaves_data(result: FitResult) -> bool:
    """Whether one datum can be left out: data in a plate, and parameters that they determine."""
    return separate(result._plan_for(())) and bool(result.information.coordinates.size)


def missing_information(result: FitResult) -> Check | None:
    """How much do the latents hide?"""
    if result.log_likelihood is None or not result._plan_for(()).blocks or not result.information.coordinates.size:
        return None
    rate = fraction_of_missing_information(result)
    slow = (
        f": plain EM needs about {math.log(1e-6) / math.log(rate):.0f} steps for six digits" if 0.5 < rate < 1 else ""
    )
    return Check(
        "missing information",
        "How much information do the latents hide?",
        Outcome.REPORTED,
        f"at most {rate:.0%} in any direction{slow}",
        "reported",
        about="model",
        value=rate,
    )


def criteria(result: FitResult) -> Check | None:
    """How does it compare with other models of these data?"""
    if result.log_likelihood is None:
        return None
    plan = result._plan_for(())
    icl = f", ICL {result.icl:.2f}" if plan.blocks else ""
    return Check(
        "criteria",
        "How does it compare with other models of these data?",
        Outcome.REPORTED,
        f"AIC {result.aic:.2f}, BIC {result.bic:.2f}{icl} ({result.num_parameters} parameters, {result.num_observations} observations)",
        "smaller is better: ppl_em.compare({...})",
        about="model",
        value=result.bic,
    )


def predictive(result: FitResult) -> Check | None:
    """Do data drawn from the fit look like the data?"""
    table = result.predictive_check.table()
    if table.empty:
        return None
    worst = table.loc[table["p"].idxmin()]
    name = " ".join(str(worst[k]) for k in ("site", "column", "statistic") if worst[k] != "")
    return Check(
        "predictive",
        "Do data drawn from the fit look like the data?",
        Outcome.REPORTED,
        f"of {len(table)} statistics the least typical is the {worst['statistic']} of {name.rsplit(' ' + worst['statistic'], 1)[0]}: "
        f"{worst['observed']:.4g} against {worst['predicted']:.4g}, tail probability {worst['p']:.2g}",
        "reported; small probabilities show what the model misses",
        about="model",
        value=float(worst["p"]),
    )


def calibration(result: FitResult) -> Check | None:
    """Are leave-one-out predictions calibrated?"""
    if result.log_likelihood is None or not _leaves_data(result):
        return None
    pit = result.loo_pit
    if not pit:
        return None
    name, worst = max(pit.items(), key=lambda item: item[1].distance / item[1].band)
    return Check(
        "calibration",
        "Are leave-one-out predictions calibrated?",
        Outcome.REPORTED,
        f"the distribution of LOO-PIT values of {name} is at most {worst.distance:.3f} from uniform (95 % band {worst.band:.3f})",
        "reported; within the band if calibrated",
        about="model",
        value=worst.distance,
        threshold=worst.band,
    )


def _nats(value: float) -> str:
    return f"{value:.1e} nats" if value < 0.01 else f"{value:.3g} nats"


EM_CHECKS = (
    converged,
    monotone,
    stationary,
    restarts,
    curvature,
    degenerate,
    laplace,
    leave_one_out,
    missing_information,
    criteria,
    predictive,
    calibration,
)
"""Checks of an exact fit, in the order of the report; each is None where it does not apply."""
