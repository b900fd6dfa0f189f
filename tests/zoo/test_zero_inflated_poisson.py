"""Zero-inflated counts: the maximum of statsmodels, with the idle units latent or inside the distribution."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest

import ppl_em
from models import zero_inflated_poisson as inflated


@pytest.fixture(scope="module")
def peer() -> tuple[np.ndarray, float]:
    import statsmodels.api as sm

    x, y = (t.numpy() for t in inflated.load())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own line search
        found = sm.ZeroInflatedPoisson(y, x, exog_infl=x).fit(disp=0, maxiter=1000, method="bfgs", gtol=1e-8)
    return np.asarray(found.params), float(found.llf)


@pytest.mark.parametrize("latent", [True, False])
def test_the_maximum_of_statsmodels(latent: bool, peer: tuple[np.ndarray, float]) -> None:
    method = ppl_em.EM(tol=1e-10)
    result = ppl_em.fit(inflated.model, *inflated.load(), init="params", method=method, model_kwargs={"latent": latent})
    params, maximum = peer
    assert result.log_likelihood == pytest.approx(maximum, abs=1e-6)
    np.testing.assert_allclose([*result.params["gate"], *result.params["coef"]], params, atol=1e-3)
    assert result.converged and result.exact


def test_the_plan(golden_plan: Callable) -> None:
    plan = ppl_em.explain(inflated.model, *inflated.load())
    assert plan.engine_of("idle") == "mixture"
    assert plan.rule_of("gate") == plan.rule_of("coef") == "newton"
    golden_plan("zero_inflated_poisson", plan)


def test_load_reads_a_table(tmp_path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,y\n0.5,2\n1.5,0\n")
    x, y = inflated.load(path)
    assert x.tolist() == [[1.0, 0.5], [1.0, 1.5]]
    assert y.tolist() == [2.0, 0.0]
