"""Cormack–Jolly–Seber: the published maxima of the dippers, and each bird's history by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import ppl_em
from models import capture_recapture
from tests.tolerances import BRUTE_FORCE, PUBLISHED


@pytest.fixture(scope="module")
def constant() -> ppl_em.FitResult:
    return ppl_em.fit(capture_recapture.model, capture_recapture.load())


def test_the_published_maximum(constant: ppl_em.FitResult) -> None:
    assert -2 * constant.log_likelihood == pytest.approx(666.838, abs=PUBLISHED)
    assert float(constant.params["survival"]) == pytest.approx(0.5602, abs=PUBLISHED)
    assert float(constant.params["recapture"]) == pytest.approx(0.9026, abs=PUBLISHED)
    assert constant.converged and constant.exact
    assert constant.num_parameters == 2
    assert constant.num_observations == 294


def test_the_published_maximum_by_year() -> None:
    result = ppl_em.fit(capture_recapture.model, capture_recapture.load(), model_kwargs={"by_year": True})
    assert -2 * result.log_likelihood == pytest.approx(656.9502, abs=PUBLISHED)
    # Survival of 1982-83 and 1983-84, the flood of that spring, is lower than in the other years.
    assert bool((result.params["survival"][1:3] < 0.5).all())


def test_each_history_by_hand(constant: ppl_em.FitResult) -> None:
    """The probability of what follows the first capture: seen or missed while alive, then never again."""
    survival, recapture = (float(constant.params[n]) for n in ("survival", "recapture"))
    for history, log_prob in zip(capture_recapture.load().tolist(), constant.log_prob().tolist(), strict=True):
        first, last = history.index(1.0), len(history) - 1 - history[::-1].index(1.0)
        wanted = 1.0
        for t in range(first + 1, last + 1):
            wanted *= survival * (recapture if history[t] else 1 - recapture)
        never = 1.0
        for _ in range(last, len(history) - 1):
            never = 1 - survival + survival * (1 - recapture) * never
        assert log_prob == pytest.approx(float(torch.tensor(wanted * never).log()), abs=BRUTE_FORCE)


def test_a_bird_seen_later_was_alive(constant: ppl_em.FitResult) -> None:
    seen = capture_recapture.load()
    posterior = constant.posterior()
    alive = torch.stack([posterior.probabilities(f"alive_{t}")[:, 1] for t in range(seen.shape[1])], 1)
    later = seen.flip(1).cummax(1).values.flip(1).bool() & (seen.cumsum(1) > 0)
    torch.testing.assert_close(alive[later], torch.ones(int(later.sum())))
    assert bool((posterior.mode()["alive_6"][seen[:, 6] == 1] == 1).all())


def test_the_plan(golden_plan: Callable) -> None:
    plan = ppl_em.explain(capture_recapture.model, capture_recapture.load())
    assert plan.engine_of("alive") == "chain"
    golden_plan("capture_recapture", plan)
