"""Checks of a fit by SVI: has the bound stopped rising, is the approximate posterior right, does it use its latents."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from ppl_em.diagnostics.check import Check, Outcome
from ppl_em.diagnostics.exact_gap import exact_gap
from ppl_em.diagnostics.iterates import LIMIT, iterates_r_hat
from ppl_em.status import Status

if TYPE_CHECKING:
    from ppl_em.result import FitResult
    from ppl_em.svi.result import ApproximateResult

#: Part of the history whose slope is looked at, and groups that it is averaged in.
TAIL, GROUPS = 0.25, 10
#: A slope that promises less than this part of the bound in as many steps again is flat.
FLAT = 1e-3
#: Share of data whose k-hat may be above its limit.
FEW = 0.02


def _approximate(result: FitResult) -> ApproximateResult | None:
    return cast("ApproximateResult", result) if hasattr(result, "query") else None


def _outcome(good: bool) -> Outcome:
    return Outcome.PASS if good else Outcome.FAIL


def stopped_rising(result: FitResult) -> Check | None:
    """Has the bound stopped rising?"""
    if _approximate(result) is None:
        return None
    question, wanted = "Has the bound stopped rising?", "slope within two of its standard errors, or negligible"
    advice = "more steps: fit(..., init=result, method=SVI(max_steps=...))"
    if result.status is Status.NON_FINITE:
        return Check("bound", question, Outcome.FAIL, f"{result.status} ({result.detail})", wanted, "a smaller rate")
    tail = result.history[-max(20, int(TAIL * len(result.history))) :]
    if len(tail) < 20:
        return Check("bound", question, Outcome.NOT_RUN, f"only {len(tail) - 1} steps were taken", wanted, advice)
    means = torch.stack([part.mean() for part in tail.tensor_split(GROUPS)])
    time = torch.linspace(-0.5, 0.5, GROUPS, dtype=torch.float64)
    slope = float((means * time).sum() / time.square().sum())
    residual = means - means.mean() - slope * time
    error = float((residual.square().sum() / (GROUPS - 2) / time.square().sum()).sqrt())
    negligible = FLAT * abs(float(means.mean()))
    good = slope < 2 * error or slope < negligible or result.status is Status.HELD_OUT
    found = f"it rose by {slope:.3g} ± {2 * error:.2g} nats over the last {len(tail)} steps"
    if result.status is Status.HELD_OUT:
        found += "; the held-out bound had stopped rising"
    return Check(
        "bound", question, _outcome(good), found, wanted, advice, value=slope, threshold=max(2 * error, negligible)
    )


def settled(result: FitResult) -> Check | None:
    """Have the global variational parameters settled?"""
    found = _approximate(result)
    if found is None:
        return None
    value = iterates_r_hat(found)
    if value is None:
        return None
    return Check(
        "iterates",
        "Have the global variational parameters settled?",
        _outcome(value <= LIMIT),
        f"largest split R-hat {value:.2f} over further steps",
        f"at most {LIMIT:g}",
        "more steps, or a smaller rate",
        value=value,
        threshold=LIMIT,
    )


def approximation(result: FitResult) -> Check | None:
    """Is the approximate posterior of each datum close to the exact one?"""
    found = _approximate(result)
    if found is None or not found._plan_for(()).approximated:
        return None
    drawn = found.particles
    k, limit = drawn.k_hat, drawn.threshold
    high = int((k > limit).sum())
    share = high / k.numel()
    who = f"{high} of {k.numel()} data" if k.numel() > 1 else "the joint posterior"
    return Check(
        "approximation",
        "Is the approximate posterior close to the exact one?",
        _outcome(share <= FEW),
        f"k-hat above {limit:.2f} for {who}, median {float(k.median()):.2f}",
        f"above {limit:.2f} for at most {FEW:.0%}",
        'a richer family (SVI(covariance="full")), a larger encoder, or more steps',
        about="uncertainty",
        value=float(k.quantile(1 - FEW)),
        threshold=limit,
    )


def bound_gap(result: FitResult) -> Check | None:
    """How far is the bound below the log-likelihood, and why?"""
    found = _approximate(result)
    if found is None or not found._plan_for(()).approximated:
        return None
    drawn = found.particles
    count = drawn.log_weights.shape[1]
    total = (drawn.log_likelihood - drawn.elbo) / count
    text = f"{total:.3g} nats per datum"
    split = found.gap
    if split is not None:
        text += (
            f"; of {split.total:.3g} for {split.num_data} of them {split.amortisation:.3g} by the shared encoder, "
            f"{split.approximation:.3g} by the family"
        )
    return Check(
        "gap",
        "How far is the bound below the log-likelihood, and why?",
        Outcome.REPORTED,
        text,
        "reported",
        about="model",
        value=total,
    )


def engines_agree(result: FitResult) -> Check | None:
    """How far is the bound from the exact log-likelihood, where that can be had?"""
    found = _approximate(result)
    gap = exact_gap(found) if found is not None else None
    if gap is None:
        return None
    return Check(
        "exact gap",
        "How far is the bound from the exact log-likelihood?",
        Outcome.REPORTED,
        f"{gap.per_datum:.3g} nats per datum: {gap.bound:.6g} against {gap.log_likelihood:.6g} exactly, "
        f"for {gap.num_data} data at the same parameters",
        "reported where an exact engine can sum the program",
        'method="em", which is exact here',
        about="model",
        value=gap.per_datum,
    )


def use_of_latents(result: FitResult) -> Check | None:
    """Does every latent dimension carry information about the data?"""
    found = _approximate(result)
    if found is None or not found._plan_for(()).approximated:
        return None
    drawn = found.particles
    unused = drawn.unused()
    total = sum(len(d) for d in drawn.divergences.values())
    carried = sum(float(d.sum()) for d in drawn.divergences.values())
    named = ", ".join(unused[:8]) + (" …" if len(unused) > 8 else "")
    text = f"{total - len(unused)} of {total} dimensions are used, {carried:.3g} nats per datum"
    return Check(
        "use of latents",
        "Does every latent dimension carry information about the data?",
        _outcome(not unused),
        text + (f"; collapsed: {named}" if unused else ""),
        "none collapsed to its prior",
        "fewer latent dimensions; or more steps, a smaller decoder, if they should be used",
        about="model",
        value=float(len(unused)),
        threshold=0.0,
    )


def simulated_calibration(result: FitResult) -> Check | None:
    """Is the encoder calibrated on data drawn from the fitted program?"""
    found = _approximate(result)
    if found is None or not found._plan_for(()).approximated or not _local(found):
        return None
    ranks = found.calibration
    worst = ranks.worst
    distance = ranks.distance(worst)
    count = len(ranks.values[worst])
    return Check(
        "calibration",
        "Is the encoder calibrated on data drawn from the fitted program?",
        _outcome(distance <= ranks.band),
        f"ranks of {worst} in {count} simulated data are up to {distance:.3f} from uniform",
        f"within {ranks.band:.3f} for all {len(ranks.values)} dimensions (95 % band)",
        'a richer family (SVI(covariance="full")), a larger encoder, or more steps',
        about="uncertainty",
        value=distance,
        threshold=ranks.band,
    )


def _local(result: ApproximateResult) -> bool:
    plan = result._plan_for(())
    return all(plan.program.data_plate in plan.program.latents[n].plates for n in plan.approximated)


def held_out(result: FitResult) -> Check | None:
    """How well are data compressed that were not trained on?"""
    found = _approximate(result)
    if found is None:
        return None
    trained = f"{found.bits_per_value:.4f} bits per observed value on the training data"
    best = found.held_out_bits_per_value
    if best is None:
        text = f"{trained}; nothing was held out"
    else:
        text = f"{best:.4f} bits per observed value on held-out data, {trained}"
    return Check(
        "held out",
        "How well are data compressed that were not trained on?",
        Outcome.REPORTED,
        text,
        "reported; SVI(validation=0.1) holds data out",
        about="model",
        value=found.bits_per_value,
    )


SVI_CHECKS = (
    stopped_rising,
    settled,
    approximation,
    bound_gap,
    engines_agree,
    use_of_latents,
    simulated_calibration,
    held_out,
)
"""Checks of a fit by SVI; each is None for an exact fit."""
