"""No latents: plain maximum likelihood, scikit-learn's maximum where the logits are linear."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import ppl_em
from models import classifier


def test_the_maximum_of_scikit_learn() -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = classifier.load()
    result = ppl_em.fit(classifier.Classifier(), x, y)
    peer = LogisticRegression(C=np.inf, tol=1e-12, max_iter=10_000).fit(x.numpy(), y.numpy())
    chosen = peer.predict_log_proba(x.numpy())[np.arange(len(y)), y]
    assert result.log_likelihood == pytest.approx(float(chosen.sum()), abs=1e-6)
    weight = result.params["classifier$$$logits.0.weight"].numpy()
    np.testing.assert_allclose(weight[1:] - weight[0], peer.coef_[1:] - peer.coef_[0], rtol=1e-3)
    assert result.converged


def test_the_plans(golden_plan: Callable) -> None:
    plan = ppl_em.explain(classifier.Classifier(), *classifier.load())
    assert plan.rule_of("classifier$$$logits.0.weight") == "newton"
    assert not plan.blocks
    golden_plan("classifier", plan)
    network = ppl_em.explain(classifier.Classifier(hidden=3), *classifier.load())
    assert network.rule_of("classifier$$$logits.0.weight") == "gradient"


def test_a_network_climbs_beyond_linear_logits() -> None:
    x, y = classifier.load()
    linear = ppl_em.fit(classifier.Classifier(), x, y)
    network = ppl_em.fit(classifier.Classifier(hidden=3), x, y, method=ppl_em.EM(max_steps=20, tol=0))
    assert bool((network.history.diff() >= 0).all())
    assert network.objective > linear.objective
