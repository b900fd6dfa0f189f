"""Gates and experts, linear and neural: which rule each gets, and that none lowers the likelihood."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import ppl_em
from models import mixture_of_experts as experts
from tests.tolerances import ASCENT

GATE, EXPERT = {0: "newton", 4: "gradient"}, {0: "least squares", 4: "gradient"}


@pytest.mark.parametrize("expert_units", [0, 4])
@pytest.mark.parametrize("gate_units", [0, 4])
def test_each_part_has_its_own_rule_and_none_goes_down(gate_units: int, expert_units: int) -> None:
    model = experts.Experts(gate_units=gate_units, expert_units=expert_units)
    result = ppl_em.fit(model, *experts.load(), restarts=1, method=ppl_em.EM(max_steps=8, tol=0))
    last = "weight" if not gate_units else "0.weight"
    assert result.plan.rule_of(f"experts$$$gate.{last}") == GATE[gate_units]
    last = "weight" if not expert_units else "0.weight"
    assert result.plan.rule_of(f"experts$$$experts.1.{last}") == EXPERT[expert_units]
    assert result.plan.rule_of("scale") == "closed form"
    assert result.exact
    assert bool((result.history.diff() >= -ASCENT * (1 + result.history[:-1].abs())).all())
    assert result.history[-1] > result.history[0]


def test_the_plan(golden_plan: Callable) -> None:
    model = experts.Experts(gate_units=4, expert_units=0)
    golden_plan("mixture_of_experts", ppl_em.explain(model, *experts.load()))


def test_the_scale_of_a_neural_mean_is_the_residual_deviation() -> None:
    x, y = experts.load()
    model = experts.Experts(num_experts=1, expert_units=3)
    result = ppl_em.fit(model, x, y, init="params", method=ppl_em.EM(max_steps=4, tol=0, accelerate=False))
    assert result.plan.rule_of("scale") == "closed form"
    with torch.no_grad():
        mean = model.experts[0](x)[:, 0]
    torch.testing.assert_close(result.params["scale"][0], (y - mean).square().mean().sqrt())


def test_the_m_step_of_a_linear_gate_is_a_weighted_logistic_regression() -> None:
    from sklearn.linear_model import LogisticRegression

    x, y = experts.load()
    seen: list[ppl_em.iterates.Iterate] = []
    method = ppl_em.EM(max_steps=3, tol=0, accelerate=False, callback=seen.append)
    model = experts.Experts()
    ppl_em.fit(model, x, y, restarts=1, method=method)
    before, after = seen[-2], seen[-1]
    weights = before.posterior().marginal("z").probs.numpy()
    peer = LogisticRegression(C=np.inf, tol=1e-10, max_iter=1000)
    peer.fit(np.repeat(x.numpy(), 2, 0), np.tile([0, 1], len(y)), sample_weight=weights.reshape(-1))
    gate = after.params["experts$$$gate.weight"]
    bias = after.params["experts$$$gate.bias"]
    np.testing.assert_allclose(gate[1] - gate[0], peer.coef_[0], rtol=1e-5)
    np.testing.assert_allclose(bias[1] - bias[0], peer.intercept_[0], rtol=1e-5)


def test_constant_gates_make_a_mixture_of_regressions() -> None:
    from models import mixture_of_regressions

    x, y = experts.load()
    model = experts.Experts()
    torch.nn.init.zeros_(model.gate.weight)
    gated = ppl_em.fit(model, x, y, freeze=["experts$$$gate.weight"], seed=1)
    design = torch.cat([torch.ones_like(x), x], 1)
    mixture = ppl_em.fit(mixture_of_regressions.model, design, y, seed=1)
    assert gated.objective == pytest.approx(mixture.objective, abs=1e-4)
