"""flexmix's NPreg data: the free maximum-likelihood fit of two quadratic regressions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import ppl_em
from models import mixture_of_regressions as regressions
from tests.tolerances import PUBLISHED

MAXIMUM = -642.532014
COEFFICIENTS = ((-0.20857, 4.81449, 0.03654), (14.71292, 9.84844, -0.96853))
SCALES = (3.44440, 3.45093)


def test_npreg_from_the_defaults() -> None:
    result = ppl_em.fit(regressions.model, *regressions.load())
    assert result.log_likelihood == pytest.approx(MAXIMUM, abs=PUBLISHED)
    assert result.converged and result.exact
    order = result.params["coef"][:, 0].argsort()
    torch.testing.assert_close(result.params["coef"][order], torch.tensor(COEFFICIENTS), atol=2e-3, rtol=0)
    torch.testing.assert_close(result.params["scale"][order], torch.tensor(SCALES), atol=2e-3, rtol=0)
    assert result.num_parameters == 1 + 6 + 2


def test_the_plan(golden_plan: Callable) -> None:
    plan = ppl_em.explain(regressions.model, *regressions.load())
    assert plan.engine_of("z") == "mixture"
    assert plan.rule_of("coef") == "least squares"
    assert plan.rule_of("weights") == plan.rule_of("scale") == "closed form"
    golden_plan("mixture_of_regressions", plan)


def test_one_regression_is_ordinary_least_squares() -> None:
    x, y = regressions.load()
    result = ppl_em.fit(regressions.model, x, y, model_kwargs={"num_components": 1})
    expected = torch.linalg.lstsq(x, y[:, None]).solution[:, 0]
    torch.testing.assert_close(result.params["coef"][0], expected)
    torch.testing.assert_close(result.params["scale"][0], (y - x @ expected).square().mean().sqrt())
