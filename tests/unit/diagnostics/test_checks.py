"""Checks pass where all is well, fail where something was broken on purpose, and name what to do next."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats

import ppl_em
from models import gmm
from ppl_em.diagnostics import CHECKS, EM_CHECKS, Check, Outcome
from ppl_em.em.updates import ClosedForm
from ppl_em.mstep import weighted_mle
from ppl_em.mstep.registry import Rule
from ppl_em.result import Restart
from ppl_em.status import Status
from tests.tolerances import PUBLISHED
from tests.unit.diagnostics import programs


def outcomes(result: ppl_em.FitResult) -> dict[str, Check]:
    return {c.name: c for c in result.diagnose().checks}


def test_a_good_fit_passes_everything(faithful, no_footprint) -> None:
    with no_footprint():
        found = faithful.diagnose()
    assert found.ok and found.outcome is Outcome.PASS
    assert found.verdict == "This fit can be trusted: all 8 checks passed."
    assert list(found.table().columns) == ["outcome", "question", "found", "wanted", "advice"]
    assert len(found.table()) == len(EM_CHECKS) == 12
    assert "✓ pass      Has it converged?" in str(found)
    assert "<td" in found._repr_html_()


def test_a_series_leaves_out_what_does_not_apply(earthquakes) -> None:
    found = outcomes(earthquakes)
    assert not {"leave-one-out", "calibration"} & set(found)
    assert "on the boundary" in found["curvature"].found
    assert "AIC" in found["criteria"].found


class Doctored(dist.Normal):
    """A normal whose M-step rule is wrong by 1 %."""


@pytest.mark.parametrize("verified", [True, False])
def test_a_rule_corrupted_by_one_percent_is_refused_or_fails(verified: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    right = weighted_mle[dist.Normal]

    def doctored(sample) -> None:
        right(sample)
        sample.proposals["loc"] = sample.proposals["loc"] * 1.01

    def model(x: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([5.0, 9.0]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.6, 0.4])))
            pyro.sample("x", Doctored(loc[z], 1.0), obs=x)

    monkeypatch.setitem(weighted_mle._rules, Doctored, Rule(Doctored, doctored, True, {}, {}))
    if not verified:
        monkeypatch.setattr(ClosedForm, "verify", lambda self, sample: None)
    x = programs.mixture_data(300) + 5
    result = ppl_em.fit(model, x, init="params")
    found = outcomes(result)
    if verified:
        assert result.plan.rule_of("loc") != "closed form" and found["stationary"].ok
    else:
        assert result.plan.rule_of("loc") == "closed form"
        assert found["stationary"].outcome is Outcome.FAIL
        assert not result.diagnose().ok and "Do not trust this fit" in result.diagnose().verdict


def test_an_unfinished_fit_is_told_to_go_on() -> None:
    x = programs.mixture_data(200, gap=2.0)
    result = ppl_em.fit(programs.two_normals, x, init="params", method=ppl_em.EM(max_steps=4, accelerate=False))
    found = outcomes(result)
    assert found["converged"].outcome is Outcome.FAIL
    assert found["stationary"].outcome is Outcome.FAIL
    assert "init=result" in found["converged"].advice
    assert result.diagnose().verdict.startswith("Do not trust this fit")
    done = ppl_em.fit(programs.two_normals, x, init=result)
    assert outcomes(done)["converged"].ok and outcomes(done)["stationary"].ok


def test_a_collapsed_component_is_named() -> None:
    x = torch.cat([torch.randn(30), torch.full((8,), 5.0)])
    result = ppl_em.fit(
        programs.two_normals, x, init={"loc": torch.tensor([0.0, 5.0]), "scale": torch.tensor([1.0, 0.1])}
    )
    assert result.status is Status.DEGENERATE
    assert "collapsed" in outcomes(result)["degenerate"].found or "collapse" in outcomes(result)["converged"].advice
    assert result.diagnose().verdict.startswith("Do not trust this fit")


def test_an_empty_component_is_named(faithful) -> None:
    x = gmm.load()
    far = torch.stack([faithful.params["loc"][0], torch.tensor([300.0, 9000.0])])
    result = ppl_em.fit(gmm.model, x, init={**faithful.params, "loc": far}, method=ppl_em.EM(max_steps=0))
    found = outcomes(result)["degenerate"]
    assert found.outcome is Outcome.FAIL and "empty: z=" in found.found


def test_starts_that_reached_the_best_are_counted_after_aligning(faithful) -> None:
    found = outcomes(faithful)["restarts"]
    assert found.outcome is Outcome.PASS and found.found == "3 of 3 starts reached it"
    flipped = [replace(r, params={n: v.flip(0) for n, v in r.params.items()}) for r in faithful.restarts]
    assert outcomes(replace(faithful, restarts=tuple(flipped)))["restarts"].value == 3
    moved = {**faithful.params, "loc": faithful.params["loc"] + 2.0}
    elsewhere = replace(faithful, restarts=(faithful.restarts[0], replace(faithful.restarts[1], params=moved)))
    assert "1 more reached the same height elsewhere" in outcomes(elsewhere)["restarts"].found
    worse = Restart("random", faithful.objective - 5, Status.CONVERGED, 10)
    alone = replace(faithful, restarts=(faithful.restarts[0], worse, worse))
    found = outcomes(alone)["restarts"]
    assert found.outcome is Outcome.FAIL
    assert found.found == "1 of 3 starts reached it" and found.advice == "fit(..., restarts=20)"
    single = outcomes(replace(faithful, restarts=faithful.restarts[:1]))["restarts"]
    assert single.outcome is Outcome.NOT_RUN and not single.ok


def test_what_the_data_do_not_determine_is_named() -> None:
    def twice(x: torch.Tensor) -> None:
        a, b = pyro.param("a", torch.tensor(0.5)), pyro.param("b", torch.tensor(0.2))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    result = ppl_em.fit(twice, torch.randn(30))
    found = outcomes(result)["curvature"]
    assert found.outcome is Outcome.FAIL and "in a, b" in found.advice
    assert float(result.standard_error(lambda p: p["a"] + p["b"])) == pytest.approx(30**-0.5, rel=1e-6)
    assert result.diagnose().verdict.startswith("The estimates can be trusted, their uncertainty cannot")


def test_a_users_own_check(faithful) -> None:
    def enough(result: ppl_em.FitResult) -> Check:
        n = result.num_observations
        good = n >= 500
        return Check("size", "Enough data?", Outcome.PASS if good else Outcome.FAIL, f"{n} data", "500", "measure more")

    found = faithful.diagnose(checks=(*CHECKS, enough))
    assert found.checks[-1].found == "272 data" and not found.ok
    assert "272 data. Measure more." in found.verdict


def test_a_check_that_cannot_run_is_no_pass(faithful) -> None:
    from ppl_em.errors import PplEmError

    def impossible(result: ppl_em.FitResult) -> Check:
        """Is it impossible?"""
        raise PplEmError("no data\n  Try more")

    found = faithful.diagnose(checks=(impossible,))
    assert found.checks[0].outcome is Outcome.NOT_RUN and found.checks[0].found == "no data Try more"
    assert not found.ok and "impossible not run" in found.verdict


@pytest.mark.parametrize(("covariance", "bic"), [("full", 2322.192), ("tied", 2325.220), ("diagonal", 2346.065)])
def test_criteria_are_mclusts(covariance: str, bic: float) -> None:
    x = gmm.load()
    result = ppl_em.fit(gmm.model, x, model_kwargs={"covariance": covariance}, restarts=2)
    assert result.bic == pytest.approx(bic, abs=PUBLISHED)
    assert result.aic == pytest.approx(result.bic - result.num_parameters * (np.log(272) - 2), abs=1e-9)
    # ICL by its definition: BIC less twice the log-probability of the most probable assignment.
    probs = result.posterior().marginal("z").probs
    assert result.icl == pytest.approx(result.bic - 2 * float(probs.amax(-1).log().sum()), abs=1e-9)


def test_predictions_of_a_right_model_are_calibrated_and_of_a_wrong_one_are_not() -> None:
    right = ppl_em.fit(programs.two_normals, programs.mixture_data(300), restarts=2)
    assert all(p.distance < p.band for p in right.loo_pit.values())
    wrong = ppl_em.fit(programs.normal, programs.mixture_data(300))
    (found,) = wrong.loo_pit.values()
    assert found.distance > found.band
    assert found.distance == pytest.approx(stats.kstest(found.values.numpy(), "uniform").statistic, abs=1e-12)
    assert wrong.predictive_check.table()["p"].min() < 0.05
