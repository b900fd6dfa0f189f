"""Fisher's identity and EM with structured distributions, by a plain loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppl_em.distributions import CTC, PCFG, StructuredDistribution
from tests.tolerances import ASCENT, EXACT, GRADIENT
from tests.unit.distributions.brute_force import random_grammar


def pcfg_and_value() -> tuple[PCFG, Tensor]:
    return random_grammar(3, 3, 5, one_word=False), torch.randint(5, (12, 7))


def em_step(distribution: StructuredDistribution, value: Tensor) -> StructuredDistribution:
    return type(distribution)(**distribution.normalised(distribution.expected_counts(value)))


def test_em_on_a_grammar_ascends_and_stays_normalised() -> None:
    grammar, value = pcfg_and_value()
    history = [grammar.log_prob(value).sum()]
    for _ in range(30):
        grammar = em_step(grammar, value)
        history.append(grammar.log_prob(value).sum())
    gains = torch.stack(history).diff()
    assert (gains > -ASCENT * history[0].abs()).all()
    assert gains.sum() > 10
    for name in PCFG.counted:
        assert PCFG.arg_constraints[name].check(getattr(grammar, name)).all()


def test_em_on_shared_logits_ascends() -> None:
    logits, value = torch.randn(8, 4), torch.tensor([[1, 2, 3], [1, 1, -1], [2, 3, -1]])
    distribution = CTC(logits)
    history = [distribution.log_prob(value).sum()]
    for _ in range(30):
        distribution = em_step(distribution, value)
        history.append(distribution.log_prob(value).sum())
    gains = torch.stack(history).diff()
    assert (gains > -ASCENT * history[0].abs()).all()
    assert gains.sum() > 1


def test_counts_have_the_totals_that_the_model_fixes() -> None:
    grammar, value = pcfg_and_value()
    counts = grammar.expected_counts(value)
    sentences, words = value.shape
    assert float(counts["root"].sum()) == pytest.approx(sentences, abs=EXACT * sentences)
    assert float(counts["rules"].sum()) == pytest.approx(sentences * (words - 1), rel=EXACT)
    expected = torch.bincount(value.flatten(), minlength=5).double()
    torch.testing.assert_close(counts["emissions"].sum(0), expected)
    # A nonterminal is rewritten as often as it is made, by a root or by a rule.
    made = counts["root"] + counts["rules"].sum((0, 2))[:3] + counts["rules"].sum((0, 1))[:3]
    torch.testing.assert_close(counts["rules"].sum((1, 2)), made)


def test_a_row_without_counts_keeps_its_value() -> None:
    grammar, value = pcfg_and_value()
    counts = grammar.expected_counts(value)
    counts["emissions"][1] = 0
    assert grammar.normalised(counts)["emissions"][1].equal(grammar.emissions[1])


def test_expected_gradient_of_a_grammar_is_the_gradient_of_log_z() -> None:
    grammar, value = pcfg_and_value()
    network = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3 * 36))
    features = torch.randn(4)
    rules = network(features).reshape(3, 36).softmax(-1).reshape(3, 6, 6)
    current = PCFG(grammar.root, rules, grammar.emissions)
    counts = current.expected_counts(value)["rules"]
    parameters = list(network.parameters())
    expected_gradient = torch.autograd.grad((counts * rules.log()).sum(), parameters, retain_graph=True)
    direct = torch.autograd.grad(current.log_prob(value).sum(), parameters)
    for a, b in zip(expected_gradient, direct, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_expected_gradient_of_ctc_is_the_gradient_of_log_z() -> None:
    network = torch.nn.Conv1d(3, 5, 3, padding=1)
    logits = network(torch.randn(4, 3, 10)).mT
    value = torch.randint(1, 5, (4, 3))
    counts = CTC(logits).expected_counts(value)["logits"]
    parameters = list(network.parameters())
    q = (counts * logits.log_softmax(-1)).sum()
    expected_gradient = torch.autograd.grad(q, parameters, retain_graph=True)
    direct = torch.autograd.grad(CTC(logits).log_prob(value).sum(), parameters)
    for a, b in zip(expected_gradient, direct, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


def test_observed_information_of_a_table_through_double_backward() -> None:
    """Second derivatives of log Z by free rule weights equal finite differences of expected counts."""
    grammar, value = pcfg_and_value()
    weights = grammar.rules.log()

    def counts(log_weights: Tensor) -> Tensor:
        changed = PCFG(grammar.root, log_weights.exp(), grammar.emissions, validate_args=False)
        return changed.expected_counts(value)["rules"]

    def log_z(log_weights: Tensor) -> Tensor:
        return PCFG(grammar.root, log_weights.exp(), grammar.emissions, validate_args=False).log_prob(value).sum()

    direction = torch.randn_like(weights)
    leaf = weights.clone().requires_grad_()
    (slope,) = torch.autograd.grad(log_z(leaf), leaf, create_graph=True)
    (product,) = torch.autograd.grad((slope * direction).sum(), leaf)
    step = 1e-5
    numeric = (counts(weights + step * direction) - counts(weights - step * direction)) / (2 * step)
    torch.testing.assert_close(product, numeric, rtol=0, atol=GRADIENT * float(product.abs().max()) * 10)
