"""Dawid and Skene's anaesthetists, 1979: shares and error rates as published, every step as written by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import ppl_em
from models import dawid_skene
from tests.tolerances import TRAJECTORY

# The published estimates are printed with two decimals.
SHARES = torch.tensor([0.40, 0.42, 0.11, 0.07], dtype=torch.float64)
FIRST_OBSERVER = torch.tensor(
    [[0.89, 0.11, 0.0, 0.0], [0.07, 0.88, 0.05, 0.0], [0.0, 0.34, 0.66, 0.0], [0.0, 0.0, 0.56, 0.44]],
    dtype=torch.float64,
)
MAXIMUM = -192.8908


def by_hand(labels: torch.Tensor, observers: torch.Tensor, steps: int) -> tuple[list[float], torch.Tensor]:
    """Objectives from the majority votes on, and the last class shares."""
    seen = torch.nn.functional.one_hot(labels).double()
    who = torch.nn.functional.one_hot(observers).double()
    truth, history = seen.mean(1), []
    for _ in range(steps + 1):
        shares = truth.mean(0)
        counts = torch.einsum("ik,ijl,jw->wkl", truth, seen, who)
        errors = counts / counts.sum(-1, keepdim=True)
        joint = shares.log() + torch.einsum("ijl,jw,wkl->ik", seen, who, errors.clamp_min(1e-300).log())
        history.append(float(joint.logsumexp(-1).sum()))
        truth = joint.softmax(-1)
    return history, shares


def test_the_published_estimates() -> None:
    result = ppl_em.fit(dawid_skene.model, *dawid_skene.load(), init="params")
    assert result.converged and result.exact
    assert result.log_likelihood == pytest.approx(MAXIMUM, abs=1e-3)
    torch.testing.assert_close(result.params["shares"], SHARES, atol=0.005, rtol=0)
    torch.testing.assert_close(result.params["errors"][0], FIRST_OBSERVER, atol=0.0051, rtol=0)


def test_every_step_as_by_hand() -> None:
    labels, observers = dawid_skene.load()
    method = ppl_em.EM(max_steps=12, tol=0, accelerate=False)
    result = ppl_em.fit(dawid_skene.model, labels, observers, init="params", method=method)
    expected, shares = by_hand(labels, observers, 12)
    torch.testing.assert_close(result.history, torch.tensor(expected), atol=TRAJECTORY * len(labels), rtol=0)
    torch.testing.assert_close(result.params["shares"], shares, atol=TRAJECTORY, rtol=0)


def test_the_plan(golden_plan: Callable) -> None:
    plan = ppl_em.explain(dawid_skene.model, *dawid_skene.load())
    assert plan.engine_of("truth") == "mixture"
    assert plan.rule_of("shares") == plan.rule_of("errors") == "closed form"
    golden_plan("dawid_skene", plan)


def test_load_reads_a_table(tmp_path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n2,2\n")
    labels, observers = dawid_skene.load(path)
    assert labels.tolist() == [[0, 1], [1, 1]]
    assert observers.tolist() == [0, 1]
