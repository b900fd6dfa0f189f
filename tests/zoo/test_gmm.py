"""Mixtures of Gaussians on Old Faithful: R's mclust figures from the defaults of `fit`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import ppl_em
from models import gmm
from tests.tolerances import EXACT, PUBLISHED

# Components, covariance: R's mclust, free optimisation.
MCLUST = {(2, "full"): -1130.264068, (2, "diagonal"): -1147.806353, (2, "tied"): -1140.186760}
FREE = {(2, "full"): 11, (2, "diagonal"): 9, (2, "tied"): 8, (3, "tied"): 11}
FAMILIES = {"full": "cov", "tied": "cov", "diagonal": "scale"}


def fitted(components: int, covariance: str) -> ppl_em.FitResult:
    options = {"num_components": components, "covariance": covariance}
    return ppl_em.fit(gmm.model, gmm.load(), model_kwargs=options)


@pytest.mark.parametrize(("components", "covariance"), MCLUST)
def test_old_faithful_from_the_defaults(components: int, covariance: str) -> None:
    result = fitted(components, covariance)
    assert result.log_likelihood == pytest.approx(MCLUST[components, covariance], abs=PUBLISHED)
    assert result.converged
    assert result.exact
    assert result.num_parameters == FREE[components, covariance]
    assert result.num_observations == 272
    assert result.plan.engine_of("z") == "mixture"
    for name in ("weights", "loc", FAMILIES[covariance]):
        assert result.plan.rule_of(name) == "closed form"


def test_three_tied_components_do_no_worse_than_mclust() -> None:
    result = fitted(3, "tied")
    assert result.log_likelihood is not None and result.log_likelihood >= -1126.327
    assert result.num_parameters == FREE[3, "tied"]
    assert result.converged


@pytest.mark.parametrize("covariance", FAMILIES)
def test_plan(covariance: str, golden_plan: Callable) -> None:
    plan = ppl_em.explain(gmm.model, gmm.load(), model_kwargs={"covariance": covariance})
    golden_plan(f"gmm_{covariance}", plan)


def test_criteria_follow_from_the_likelihood() -> None:
    result = fitted(2, "full")
    assert result.log_likelihood is not None
    assert result.aic == pytest.approx(-2 * result.log_likelihood + 22)
    # mclust prints BIC with the opposite sign: -2322.192 for this model.
    assert result.bic == pytest.approx(2322.192, abs=2e-3)
    responsibilities = result.posterior().marginal("z").probs
    certainty = responsibilities.amax(-1).log().sum()
    assert result.icl == pytest.approx(result.bic - 2 * float(certainty), abs=1e-9)


def test_the_program_is_plain_pyro() -> None:
    from pyro.infer import TraceEnum_ELBO, config_enumerate

    result = fitted(2, "full")
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(
        config_enumerate(result.model), lambda *args, **kwargs: None, gmm.load()
    )
    assert -loss == pytest.approx(result.log_likelihood, abs=EXACT * 1e3)


def test_load_reads_a_table(tmp_path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n3,4\n")
    assert torch.equal(gmm.load(path), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
