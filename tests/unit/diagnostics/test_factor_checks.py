"""Checks and exports of variational Bayes, on programs whose posterior is known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_em
from ppl_em import arviz_bridge
from ppl_em.diagnostics import Check, Outcome

VB = ppl_em.EM(globals="variational")


def outcomes(result: ppl_em.FitResult) -> dict[str, Check]:
    return {c.name: c for c in result.diagnose().checks}


def coin(x: torch.Tensor) -> None:
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Bernoulli(p), obs=x)


def mixture(x: torch.Tensor, num_components: int = 2) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(num_components)))
    with pyro.plate("components", num_components):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    generator = torch.Generator().manual_seed(5)
    side = torch.rand(90, generator=generator, dtype=torch.float64) < 0.4
    return torch.where(side, -4.0, 4.0) + torch.randn(90, generator=generator, dtype=torch.float64)


@pytest.fixture(scope="module")
def fitted(x: torch.Tensor) -> ppl_em.FitResult:
    return ppl_em.fit(mixture, x, method=VB, restarts=4)


def test_exact_factors_pass() -> None:
    heads = torch.tensor([1.0] * 7 + [0.0] * 5)
    result = ppl_em.fit(coin, heads, method=VB)
    draws = result.draws(500)
    assert draws.reliable and draws.effective == pytest.approx(draws.num_proposals)
    assert float(draws["p"].mean()) == pytest.approx(9 / 17, abs=0.02)
    found = outcomes(result)
    assert found["factors"].outcome is Outcome.PASS and found["converged"].outcome is Outcome.PASS
    # The factor is the posterior: the bound is the log evidence.
    assert found["evidence"].value == pytest.approx(0.0, abs=1e-8)
    # Leave-one-out of a Beta-Bernoulli model: Beta(2 + heads, 3 + tails) without the datum.
    exact = 7 * torch.tensor(8 / 16).log() + 5 * torch.tensor(7 / 16).log()
    assert result.loo.elpd == pytest.approx(float(exact), abs=0.02)


def test_factors_made_too_narrow_fail() -> None:
    heads = torch.tensor([1.0] * 7 + [0.0] * 5)
    result = ppl_em.fit(coin, heads, method=VB)
    narrow = replace(result, guide_params={n: 12 * v for n, v in result.guide_params.items()})
    found = outcomes(narrow)
    assert found["factors"].outcome is Outcome.FAIL
    assert "uncertainty cannot" in narrow.diagnose().verdict


def test_a_mixture_is_checked(fitted: ppl_em.FitResult) -> None:
    found = outcomes(fitted)
    assert {n for n, c in found.items() if not c.ok} == set(), fitted.diagnose()
    assert "2 of 2 of z" in found["use of states"].found
    gap = found["evidence"].value
    # The groups do not overlap: given the labelling, weights and locations are independent, and the factors exact.
    assert gap == pytest.approx(0.0, abs=1e-3) and "labelling" in found["evidence"].found


def test_a_single_start_is_no_pass(x: torch.Tensor) -> None:
    found = outcomes(ppl_em.fit(mixture, x, method=VB, restarts=1))
    assert found["restarts"].outcome is Outcome.NOT_RUN


def test_groups_for_arviz(fitted: ppl_em.FitResult, x: torch.Tensor, tmp_path: Path) -> None:
    native = fitted.to_arviz()
    names = set(arviz_bridge.group_names(native))
    assert {"posterior", "variational", "log_likelihood", "prior", "em_trace", "posterior_latent"} <= names
    assert "point_log_likelihood" not in names
    loc = native["posterior"]["loc"]
    assert loc.dims == ("chain", "draw", "loc_dim_0") and loc.shape[1] == 1000
    moments = native["variational"]["loc"]
    assert moments.dims == ("moment", "components")
    means = fitted.posterior().marginal("loc").mean
    assert torch.allclose(torch.tensor(moments.sel(moment="mean").values), means, atol=0.06)
    assert native["posterior"].attrs["method"] == "draws of the factors, importance-resampled"
    # Given the draws of the parameters, data are independent: their sum is the likelihood, the rest of lp the prior.
    total = native["log_likelihood"]["x"].sum("data").values[0]
    prior = (
        dist.Dirichlet(torch.ones(2)).log_prob(torch.tensor(native["posterior"]["weights"].values[0]))
        + dist.Normal(0.0, 10.0).log_prob(torch.tensor(loc.values[0])).sum(-1)
    ).numpy()
    assert abs(total + prior - native["sample_stats"]["lp"].values[0]).max() < 1e-8
    again = arviz_bridge.load(arviz_bridge.save(native, tmp_path / "fit.nc"))
    assert set(arviz_bridge.group_names(again)) == names


def test_the_report_is_written(fitted: ppl_em.FitResult, tmp_path: Path) -> None:
    page = fitted.report(tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Are the factors close to the exact posterior" in page
    assert fitted.diagnose().verdict.split(":")[0] in page
