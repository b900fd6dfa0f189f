"""Checks of a fit to data with holes, and to distinct data with counts as weights."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import ppl_em
from ppl_em.diagnostics.copies import copies, repeated
from ppl_em.errors import PplEmError

NAN = torch.nan


def clouds(x: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([[0.0, 0.0], [3.0, 3.0]]))
    covariance = pyro.param("covariance", torch.eye(2).repeat(2, 1, 1), constraint=constraints.positive_definite)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(loc[z], covariance[z]), obs=x)


def counts(x: Tensor) -> None:
    rate = pyro.param("rate", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


def two_clouds(count: int = 120) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(count, 2, generator=generator) + 3.0 * (torch.rand(count, 1, generator=generator) < 0.5)
    x[torch.rand(count, 2, generator=generator) < 0.2] = NAN
    x[3] = NAN
    return x


@pytest.fixture(scope="module")
def holed() -> ppl_em.FitResult:
    return ppl_em.fit(clouds, two_clouds(), init="params")


def test_wholly_missing_data_are_no_observations(holed: ppl_em.FitResult) -> None:
    x = two_clouds()
    there = ~x.isnan().all(1)
    rest = ppl_em.fit(clouds, x[there], init="params")
    assert holed.num_observations == rest.num_observations == int(there.sum())
    assert holed.bic == pytest.approx(rest.bic, abs=1e-5)


def test_checks_compare_what_is_there(holed: ppl_em.FitResult) -> None:
    x = two_clouds()
    (site,) = holed.predictive_check.sites
    for c in range(2):
        seen, drawn = site.column(c)
        assert torch.equal(seen, x[~x[:, c].isnan(), c]) and drawn.shape[1] == len(seen)
    table = holed.predictive_check.table()
    rows = table[table["statistic"] == "mean"]
    assert np.allclose(rows["observed"].to_numpy(float), x.nanmean(0).numpy())
    assert not table.isna().to_numpy().any() and (table["p"] > 0.01).all()


def test_standard_errors_match_differences_of_the_log_likelihood(holed: ppl_em.FitResult) -> None:
    errors = holed.standard_errors()
    steps = (1e-4, -1e-4)
    plan, values = holed.plan, holed.params

    def at(shift: float) -> float:
        moved = {**values, "loc": values["loc"].clone()}
        moved["loc"][0, 0] += shift
        from ppl_em.em.e_step import objective

        return float(objective(plan, moved))

    curvature = (at(steps[0]) - 2 * at(0.0) + at(steps[1])) / 1e-8
    assert 0 < 1 / np.sqrt(-curvature) <= float(errors["loc"][0, 0]) * 1.0001  # other parameters are free as well
    assert all(bool(e.isfinite().all()) for e in errors.values())


def test_leave_one_out_and_pit(holed: ppl_em.FitResult) -> None:
    found = holed.loo
    assert np.isfinite(found.elpd) and found.elpd_i.reshape(-1)[3] == pytest.approx(0.0, abs=1e-12)
    pits = holed.loo_pit
    x = two_clouds()
    assert [len(p.values) for p in pits.values()] == (~x.isnan()).sum(0).tolist()
    assert all(p.distance < p.band * 1.5 for p in pits.values())


def test_arviz_keeps_the_holes(holed: ppl_em.FitResult) -> None:
    native = holed.to_arviz()
    observed = np.asarray(native["observed_data"]["x"])
    assert np.array_equal(observed, two_clouds().numpy(), equal_nan=True)
    scored = np.asarray(native["point_log_likelihood"]["x"])
    assert np.allclose(scored, holed.log_prob().numpy())
    assert not np.isnan(np.asarray(native["posterior_predictive"]["x"])).any()


def test_predictions_have_no_holes(holed: ppl_em.FitResult) -> None:
    draws = holed.predict(num_samples=3, seed=0)["x"]
    assert draws.shape == (3, 120, 2) and not bool(draws.isnan().any())


@pytest.mark.slow
def test_diagnose_and_report(holed: ppl_em.FitResult, tmp_path) -> None:  # type: ignore[no-untyped-def]
    text = str(holed.diagnose())
    assert "nan" not in text.lower()
    assert holed.report(tmp_path / "fit.html").exists()


# weights


DISTINCT = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 6.0])
COUNTS = torch.tensor([13, 27, 30, 18, 9, 3])


def test_copies_are_independent_draws() -> None:
    draws = torch.arange(12.0).reshape(4, 3, 1)
    found = repeated(draws, torch.tensor([2, 0, 1]))[..., 0]
    assert found.tolist() == [[0.0, 3.0, 2.0], [3.0, 6.0, 5.0], [6.0, 9.0, 8.0], [9.0, 0.0, 11.0]]


def test_counts_as_weights_give_the_checks_of_all_data() -> None:
    short = ppl_em.fit(counts, DISTINCT, weights=COUNTS.double())
    long = ppl_em.fit(counts, DISTINCT.repeat_interleave(COUNTS))
    assert short.num_observations == long.num_observations == 100
    assert short.bic == pytest.approx(long.bic)
    a, b = (r.predictive_check.table() for r in (short, long))
    assert np.allclose(a["observed"], b["observed"])
    assert np.allclose(a["predicted"], b["predicted"], rtol=0.05)
    assert np.allclose(a["p"], b["p"], atol=0.12)  # both by simulation
    assert short.loo.elpd == pytest.approx(long.loo.elpd, abs=0.1)
    assert short.loo.p == pytest.approx(long.loo.p, abs=0.1)
    assert short.loo.se == pytest.approx(long.loo.se, rel=0.02)
    assert short.loo.num_copies == 100 and long.loo.num_copies is None
    with pytest.raises(PplEmError, match="LOO-PIT is not available"):
        short.loo_pit  # noqa: B018
    assert "which stand for 100" in str(short.diagnose())


def test_fractions_as_weights_are_refused_by_name() -> None:
    result = ppl_em.fit(counts, DISTINCT, weights=COUNTS.double() / 7)
    for query in ("predictive_check", "loo"):
        with pytest.raises(PplEmError, match="the weights are not counts at site 'data'"):
            getattr(result, query)
    assert result.num_observations == len(DISTINCT)
    assert str(result.diagnose())


def test_a_weight_that_all_data_share_is_none() -> None:
    result = ppl_em.fit(counts, DISTINCT, weights=torch.full((6,), 0.5))
    assert copies(result.plan) is None
    assert len(result.predictive_check.sites) == 1
