"""A truncated Dirichlet process mixture on Old Faithful keeps two of ten components."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import ppl_em
from models import bayesian_mixture, gmm
from tests.tolerances import ASCENT

VARIATIONAL = ppl_em.EM(globals="variational")


@pytest.fixture(scope="module")
def result() -> ppl_em.FitResult:
    return ppl_em.fit(bayesian_mixture.model, bayesian_mixture.load(), method=VARIATIONAL)


def test_plan(golden_plan: Callable) -> None:
    plan = ppl_em.explain(bayesian_mixture.model, bayesian_mixture.load(), method=VARIATIONAL)
    assert plan.engine_of("z") == "mixture"
    for name in ("breaks", "precision", "loc"):
        assert plan.engine_of(name) == "variational"
        assert plan.rule_of(name) == "conjugate update"
    assert not plan.exact
    golden_plan("bayesian_mixture", plan)


def test_old_faithful_keeps_two_components(result: ppl_em.FitResult) -> None:
    probs = result.posterior().marginal("z").probs
    data = probs.sum(0).sort(descending=True).values
    assert data[1] > 90
    assert float(data[2:].sum()) < 1e-3
    assert result.converged
    falls = (result.history[:-1] - result.history[1:]).max()
    assert float(falls) <= ASCENT * (1 + abs(result.objective))
    labels = ppl_em.fit(gmm.model, gmm.load()).posterior().marginal("z").probs.argmax(-1)
    mine = probs[:, probs.sum(0).argsort(descending=True)[:2]].argmax(-1)
    agreement = float((mine == labels).double().mean())
    assert max(agreement, 1 - agreement) > 0.98


def test_empty_components_have_their_priors(result: ppl_em.FitResult) -> None:
    empty = result.posterior().marginal("z").probs.sum(0) < 1e-6
    assert int(empty.sum()) >= 7
    assert torch.allclose(result.guide_params["precision.df"][empty], torch.tensor(4.0, dtype=torch.float64))
    centre = bayesian_mixture.load().mean(0)
    torch.testing.assert_close(result.point_estimates["loc"][empty], centre.expand(int(empty.sum()), 2))


def test_eight_empty_components_cost_a_nat(result: ppl_em.FitResult) -> None:
    options = {"num_components": 2}
    two = ppl_em.fit(
        bayesian_mixture.model, bayesian_mixture.load(), method=VARIATIONAL, model_kwargs=options, restarts=4
    )
    assert result.objective < two.objective < result.objective + 2.0
