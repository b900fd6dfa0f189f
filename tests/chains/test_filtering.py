"""Filtering and step-by-step evidence against enumeration of shorter data."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import ppl_em
from ppl_em.plan.plan import Plan
from ppl_em.posterior import Posterior
from tests.chains.cases import CASES, SINGLE
from tests.styles.checks import random_values
from tests.styles.oracle import Truth, enumerate_program
from tests.tolerances import BRUTE_FORCE


@cache
def prepared(name: str) -> tuple[Plan, dict[str, Tensor], Posterior]:
    case = CASES[name]
    plan = ppl_em.explain(case.model, *case.args, method="em")
    values = random_values(plan, 23)
    return plan, values, Posterior(plan, values)


def enumerated(name: str, x: Tensor, *rest: Any) -> Truth:
    return enumerate_program(CASES[name].model, (x, *rest), prepared(name)[1])


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=BRUTE_FORCE, rtol=0)


@pytest.mark.parametrize("name", SINGLE)
def test_filtered_and_evidence_by_step(name: str) -> None:
    case = CASES[name]
    plan, _, posterior = prepared(name)
    x, before = case.args[0], torch.zeros(())
    names = {f: [z for z in plan.program.latents if z.startswith((f"{f}_", f"{f}["))] for f in case.families}
    evidence = posterior.log_prob_by_step(case.families[0])
    skipped = len(x) - len(evidence)  # a chain of longer memory begins with several steps at once
    sums = []
    for t in range(len(x)):
        truth = enumerated(name, x[: t + 1])
        sums.append(truth.log_z)
        for family, members in names.items():
            support = plan.program.latents[members[t]].support
            assert support is not None
            close(posterior.filtered(family).probs[t], truth.marginal(members[t], support, 0).reshape(-1))
    if name == "third order":  # its latents go one step beyond what is seen
        return
    close(evidence.cumsum(0), torch.stack(sums[skipped:]) - before)
