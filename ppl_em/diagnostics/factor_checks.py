"""Checks of a fit by variational Bayes: the bound has converged, others starts agree, the factors can be trusted."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, cast

from ppl_em.diagnostics.check import Check, Outcome
from ppl_em.diagnostics.checks import EMPTY, REMAINING, SAME_HEIGHT
from ppl_em.em.stopping import remaining_gain
from ppl_em.status import Status

if TYPE_CHECKING:
    from ppl_em.result import FitResult
    from ppl_em.variational_em.result import VariationalResult

#: Largest standard error, in nats, with which an estimate of the log evidence is said.
ROUGH = 1.0


def _factored(result: FitResult) -> VariationalResult | None:
    factored = (
        result.objective_name == "elbo" and hasattr(result, "_draw_log_likelihoods") and not hasattr(result, "query")
    )
    return cast("VariationalResult", result) if factored else None


def _outcome(good: bool) -> Outcome:
    return Outcome.PASS if good else Outcome.FAIL


def bound_converged(result: FitResult) -> Check | None:
    """Has the bound converged?"""
    if _factored(result) is None:
        return None
    remaining = max(0.0, remaining_gain(result.history.tolist()))
    good = remaining < REMAINING and result.status is Status.CONVERGED
    return Check(
        "converged",
        "Has the bound converged?",
        _outcome(good),
        f"{remaining:.2g} nats still to gain after {result.num_steps} steps "
        f"({result.status.name.lower().replace('_', ' ')})",
        f"less than {REMAINING:g} nats",
        "fit(..., init=result) continues from here",
        value=remaining,
        threshold=REMAINING,
    )


def best_bound(result: FitResult) -> Check | None:
    """Is this the best bound there is?"""
    if _factored(result) is None or not result._plan_for(()).blocks:
        return None
    question, wanted = "Is this the best bound there is?", "at least 2 starts end there"
    total = len(result.restarts)
    advice = f"fit(..., restarts={max(20, 5 * total)})"
    if total < 2:
        return Check("restarts", question, Outcome.NOT_RUN, "only one start was made", wanted, advice)
    same = sum(r.objective > result.objective - SAME_HEIGHT for r in result.restarts if not r.screened)
    dropped = sum(r.screened for r in result.restarts)
    found = f"{same} of {total} starts reached it" + (f" ({dropped} were dropped early)" if dropped else "")
    return Check("restarts", question, _outcome(same >= 2), found, wanted, advice, value=same, threshold=2)


def used_components(result: FitResult) -> Check | None:
    """How many states do the data use?"""
    found = _factored(result)
    if found is None:
        return None
    posterior = found.posterior()
    texts = []
    for entry in result._plan_for(()).blocks:
        for latent in entry.block.latents:
            if latent.plates and entry.block.axis is None:
                probs = posterior.probabilities(latent.name)
                expected = probs.reshape(-1, probs.shape[-1]).sum(0)
                texts.append(f"{int((expected >= EMPTY).sum())} of {len(expected)} of {latent.name}")
    if not texts:
        return None
    return Check(
        "use of states",
        "How many states do the data use?",
        Outcome.REPORTED,
        f"{', '.join(texts)} (at least {EMPTY:g} expected datum)",
        "reported; the prior leaves the others empty",
        about="model",
    )


def factors(result: FitResult) -> Check | None:
    """Are the factors close to the exact posterior of the global latents?"""
    found = _factored(result)
    if found is None:
        return None
    draws = found._draws
    return Check(
        "factors",
        "Are the factors close to the exact posterior of the global latents?",
        _outcome(draws.reliable),
        f"k-hat {draws.k_hat:.2f} of draws from the factors against the exact joint density",
        f"below {draws.threshold:.2f}",
        "estimates stand, intervals are likely too narrow (labels of equal components count as different answers): "
        "fewer components, or MCMC on result.model",
        about="uncertainty",
        value=draws.k_hat,
        threshold=draws.threshold,
    )


def _has_states(result: FitResult) -> bool:
    """Whether there are states whose labels could be exchanged: draws from the factors keep to one labelling."""
    return any(z.cardinality > 1 for b in result._plan_for(()).blocks for z in b.block.latents)


def evidence(result: FitResult) -> Check | None:
    """How far is the bound below the log evidence?"""
    found = _factored(result)
    if found is None:
        return None
    estimate, error = found.estimate_log_likelihood()
    sure = math.isfinite(error) and error < ROUGH and found._draws.reliable
    labelling = " in this labelling" if _has_states(result) else ""
    text = (
        f"{estimate - result.objective:.3g} nats below an estimate of it{labelling} ({estimate:.2f} \u00b1 {error:.2g})"
    )
    return Check(
        "evidence",
        "How far is the bound below the log evidence?",
        Outcome.REPORTED,
        text if sure else "no estimate of the log evidence by importance sampling is precise enough",
        "reported",
        about="model",
        value=estimate - result.objective if sure else None,
    )


FACTOR_CHECKS = (bound_converged, best_bound, factors, evidence, used_components)
"""Checks of a fit by variational Bayes; each is None for other fits."""
