"""The EM map at the optimum: what is left to gain, and the share of missing information."""

from __future__ import annotations

import pytest
import torch

import ppl_em
from ppl_em.diagnostics.em_map import missing_information, plain_steps
from ppl_em.errors import PplEmError
from tests.unit.diagnostics import programs


def test_the_share_of_missing_information_of_one_proportion() -> None:
    # Complete data give n / (p (1 - p)); Louis (1982): the observed part is what the marginal likelihood has.
    x = programs.mixture_data(400, gap=2.0)
    result = ppl_em.fit(programs.unknown_share, x)
    p = result.params["share"]
    ratio = (torch.exp(2 * x - 2) - 1) / (1 - p + p * torch.exp(2 * x - 2))
    observed, complete = float(ratio.square().sum()), len(x) / float(p * (1 - p))
    assert missing_information(result) == pytest.approx(1 - observed / complete, rel=1e-3)


def test_it_is_the_rate_at_which_plain_em_converges() -> None:
    x = programs.mixture_data(200, gap=2.5)
    result = ppl_em.fit(programs.two_normals, x, method=ppl_em.EM(tol=1e-12))
    slow = ppl_em.fit(
        programs.two_normals, x, init=result.params, method=ppl_em.EM(max_steps=0)
    )  # same optimum, for its plan
    start = {n: v * (1.0 if n == "weights" else 1.01) for n, v in result.params.items()}
    path = ppl_em.fit(
        programs.two_normals, x, init=start, method=ppl_em.EM(max_steps=60, tol=0, accelerate=False)
    ).history
    gaps = result.objective - path[30:40]
    # The objective is quadratic at the optimum: its gap shrinks with the square of the rate.
    assert missing_information(slow) == pytest.approx(float((gaps[-1] / gaps[0]) ** (0.5 / 9)), rel=0.02)


def test_nothing_is_missing_without_latents() -> None:
    result = ppl_em.fit(programs.normal, programs.mixture_data(50))
    with pytest.raises(PplEmError, match="no latents"):
        missing_information(result)


def test_plain_steps_see_what_is_left() -> None:
    x = programs.mixture_data(200, gap=2.5)
    early = ppl_em.fit(programs.two_normals, x, init="params", method=ppl_em.EM(max_steps=5, accelerate=False))
    done = ppl_em.fit(programs.two_normals, x, init=early)
    found = plain_steps(early)
    assert found.largest_fall == 0 and found.objectives[0] == pytest.approx(early.objective)
    gap = done.objective - early.objective
    assert 0.1 * gap < found.remaining
    assert plain_steps(done).remaining < 1e-5
