"""Regimes of the American gross national product: statsmodels' maxima and Hamilton's published one."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

import ppl_em
from models import autoregressive_hmm as regimes
from tests.tolerances import BRUTE_FORCE, PUBLISHED


@pytest.mark.slow
def test_the_maximum_of_statsmodels() -> None:
    """Its maximum, where the series starts in the stationary distribution, lies between two of ours."""
    import statsmodels.api as sm

    x = regimes.load()
    result = ppl_em.fit(regimes.model, x, init="params", restarts=1)
    assert result.exact and result.converged
    trans = result.params["trans"]
    stationary = torch.stack([trans[1, 0], trans[0, 1]])
    at = {**result.params, "init": stationary / stationary.sum()}
    same = ppl_em.fit(regimes.model, x, init=at, restarts=1, method=ppl_em.EM(max_steps=0))

    y, value = x.numpy(), {n: v.numpy() for n, v in result.params.items()}
    peer = sm.tsa.MarkovRegression(y[1:], 2, exog=y[:-1], switching_variance=True)
    params = np.array([*value["trans"][:, 0], *value["loc"], *value["coef"][:, 0], *value["scale"] ** 2])
    assert same.log_likelihood == pytest.approx(float(peer.loglike(params)), abs=BRUTE_FORCE * len(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own line search
        maximum = float(peer.fit(start_params=params, disp=0).llf)
    assert same.log_likelihood <= maximum <= result.log_likelihood
    assert result.log_likelihood - maximum < 1.0


def test_hamiltons_maximum() -> None:
    """His model at statsmodels' maximum: the log-likelihood that he published, the regimes that it finds."""
    import statsmodels.api as sm

    x = regimes.load()
    peer = sm.tsa.MarkovAutoregression(x.numpy(), k_regimes=2, order=4, switching_ar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = peer.fit(disp=0)
    value = dict(zip(peer.param_names, (float(v) for v in found.params), strict=True))
    leave = torch.tensor([1 - value["p[0->0]"], value["p[1->0]"]])
    init = {
        "trans": torch.stack([torch.stack([1 - leave[0], leave[0]]), torch.stack([leave[1], 1 - leave[1]])]),
        "init": leave.flip(0) / leave.sum(),  # the stationary distribution
        "loc": torch.tensor([value["const[0]"], value["const[1]"]]),
        "coef": torch.tensor([value[f"ar.L{lag}"] for lag in range(1, 5)]),
        "scale": torch.tensor(value["sigma2"]).sqrt(),
    }
    options = {"order": 4, "deviations": True}
    result = ppl_em.fit(regimes.model, x, init=init, restarts=1, method=ppl_em.EM(max_steps=0), model_kwargs=options)
    assert result.log_likelihood == pytest.approx(-181.263, abs=PUBLISHED)
    assert result.log_likelihood == pytest.approx(float(found.llf), abs=BRUTE_FORCE)
    smoothed = torch.from_numpy(np.asarray(found.smoothed_marginal_probabilities))
    torch.testing.assert_close(result.posterior().path("z").probs[4:], smoothed, atol=BRUTE_FORCE, rtol=0)


def test_the_plan(golden_plan: Callable) -> None:
    plan = ppl_em.explain(regimes.model, regimes.load()[:30])
    assert plan.engine_of("z") == "chain"
    assert plan.rule_of("coef") == "least squares"
    golden_plan("autoregressive_hmm", plan)


def test_load_reads_the_last_column(tmp_path) -> None:
    path = tmp_path / "series.csv"
    path.write_text("t,x\n0,3\n1,5\n")
    assert regimes.load(path).tolist() == [3.0, 5.0]
