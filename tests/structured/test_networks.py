"""Networks in front of a hidden structure: one expected-gradient step is the gradient of log Z."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import ctc_loss

import ppl_em
from ppl_em.distributions import PCFG
from tests.structured import programs
from tests.tolerances import ASCENT
from tests.unit.distributions.brute_force import scored_trees

RATE = 1e-3


def one_gradient_step(parameters: list[Tensor]) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=RATE)


EXPECTED_GRADIENT = ppl_em.EM(max_steps=1, tol=0, accelerate=False, m_step_steps=1, m_step_optim=one_gradient_step)


def check_step(fit: Callable[[], ppl_em.FitResult], network: nn.Module, log_z: Callable[[], Tensor]) -> None:
    """The step of `fit`, divided by its length, against automatic differentiation of `log_z` at the start."""
    start = {name: weight.detach().clone() for name, weight in network.named_parameters()}
    value = log_z()
    slopes = dict(zip(start, torch.autograd.grad(value, list(network.parameters())), strict=True))
    result = fit()
    assert float(result.history[0]) == pytest.approx(float(value.detach()), abs=1e-10)
    assert result.num_steps == 1
    for name, before in start.items():
        moved = (result.params[f"network$$${name}"] - before) / RATE
        torch.testing.assert_close(moved, slopes[name], rtol=0, atol=1e-10)
        assert result.plan.rule_of(f"network$$${name}") == "gradient"
    assert max(float(slope.abs().max()) for slope in slopes.values()) > 0.1


def test_alignments_against_autograd_of_torchs_own_loss() -> None:
    network = nn.Conv1d(3, 4, 3, padding=1)
    frames, used = torch.randn(5, 3, 9), torch.tensor([9, 7, 8, 9, 5])
    labels = torch.tensor([[1, 2, 3], [1, 1, -1], [3, -1, -1], [2, 3, 2], [1, 2, -1]])

    def log_z() -> Tensor:
        scores = network(frames).permute(2, 0, 1).log_softmax(-1)
        lengths = (labels > 0).sum(-1)
        return -ctc_loss(scores, labels.clamp(min=0), used, lengths, reduction="sum")

    def fit() -> ppl_em.FitResult:
        return ppl_em.fit(programs.aligned, frames, used, labels, network, method=EXPECTED_GRADIENT)

    check_step(fit, network, log_z)


def test_trees_against_autograd_of_the_sum_over_all_trees() -> None:
    network, start = programs.Rules(), programs.tables(1)

    def log_z() -> Tensor:
        rules = network()
        tables = {**start, "rules": rules.detach()}
        total = torch.zeros(())
        for row in programs.SENTENCES.tolist():
            words = [word for word in row if word >= 0]
            scores = []
            for _, _, uses in scored_trees(PCFG(**tables, validate_args=False), words):
                factors = [(rules if name == "rules" else start[name])[index] for name, index in uses.elements()]
                scores.append(torch.stack(factors).log().sum())
            total = total + torch.stack(scores).logsumexp(0)
        return total

    def fit() -> ppl_em.FitResult:
        options = {"method": EXPECTED_GRADIENT, "freeze": ("root", "emissions"), "init": "params"}
        return ppl_em.fit(programs.neural_grammar, programs.SENTENCES, network, start, **options)

    check_step(fit, network, log_z)


def test_tables_beside_a_network_keep_their_closed_form() -> None:
    network, start = programs.Rules(), programs.tables(2)
    result = ppl_em.fit(
        programs.neural_grammar,
        programs.SENTENCES,
        network,
        start,
        init="params",
        method=ppl_em.EM(max_steps=15, tol=0, accelerate=False, m_step_steps=5),
    )
    assert result.plan.rule_of("root") == result.plan.rule_of("emissions") == "closed form"
    assert result.plan.rule_of("network$$$symbols") == "gradient"
    assert (result.history.diff() >= -ASCENT * result.history[0].abs()).all()
    assert result.history[-1] > result.history[0] + 1
    with torch.no_grad():
        fitted = PCFG(result.params["root"], network(), result.params["emissions"], validate_args=False)
    assert float(fitted.log_prob(programs.SENTENCES).sum()) == pytest.approx(result.objective, abs=1e-9)
