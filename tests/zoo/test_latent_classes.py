"""Latent classes: the plan, recovery of what was simulated, and the first-order conditions at the end."""

from __future__ import annotations

from collections.abc import Callable

import torch

import ppl_em
from models import latent_classes


def test_the_plan(golden_plan: Callable) -> None:
    plan = ppl_em.explain(latent_classes.model, latent_classes.load())
    assert plan.engine_of("z") == "mixture"
    assert plan.rule_of("weights") == plan.rule_of("probs") == "closed form"
    golden_plan("latent_classes", plan)


def test_the_simulated_classes_are_found() -> None:
    x = latent_classes.load()
    result = ppl_em.fit(latent_classes.model, x)
    assert result.converged and result.exact
    order = result.params["weights"].argsort(descending=True)
    torch.testing.assert_close(result.params["weights"][order], torch.tensor([0.5, 0.3, 0.2]), atol=0.06, rtol=0)
    expected = torch.tensor([[0.9] * 8, [0.9] * 4 + [0.1] * 4, [0.1] * 8])
    torch.testing.assert_close(result.params["probs"][order], expected, atol=0.1, rtol=0)
    assert result.num_parameters == 2 + 24


def test_the_maximum_is_where_expected_shares_stand_still() -> None:
    x = latent_classes.load()
    result = ppl_em.fit(latent_classes.model, x, method=ppl_em.EM(tol=1e-12))
    members = result.posterior().marginal("z").probs
    torch.testing.assert_close(members.mean(0), result.params["weights"], atol=1e-5, rtol=0)
    torch.testing.assert_close(members.T @ x / members.sum(0)[:, None], result.params["probs"], atol=1e-5, rtol=0)
