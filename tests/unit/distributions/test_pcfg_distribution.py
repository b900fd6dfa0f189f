"""PCFG as a Pyro distribution: shapes, batches, dtypes, derivatives, impossible sentences, draws."""

from __future__ import annotations

import pyro
import pytest
import torch
from torch import Tensor

from ppl_em.distributions import PCFG
from ppl_em.distributions.inside_reference import inside_reference
from ppl_em.errors import DataError, ModelError
from tests.tolerances import BRUTE_FORCE, EXACT, STATISTICAL
from tests.unit.distributions.brute_force import random_grammar


def tables(grammar: PCFG) -> tuple[Tensor, Tensor, Tensor]:
    return grammar.root, grammar.rules, grammar.emissions


def log_prob_one_by_one(grammar: PCFG, value: Tensor, lengths: Tensor) -> Tensor:
    """Scores each element of a batch alone, by the slow twin."""
    batch = torch.broadcast_shapes(grammar.batch_shape, value.shape[:-1], lengths.shape)
    root, rules = grammar.root_symbols.expand(*batch, -1), grammar.rules.expand(*batch, -1, -1, -1)
    emissions, words = grammar.emissions.expand(*batch, -1, -1), value.expand(*batch, -1)
    result = torch.empty(batch)
    for index in torch.ones(batch).nonzero().tolist():
        at = tuple(index)
        n = lengths.expand(batch)[at]
        terminals = emissions[at].T[words[at][:n]]
        result[at] = inside_reference(root[at][None], rules[at][None], terminals[None, None], n[None, None])
    return result


@pytest.mark.parametrize(
    ("grammars", "sentences"), [((), (5,)), ((3, 1), (5,)), ((4,), (4,)), ((2, 1, 3), (4, 1)), ((), ())]
)
def test_batches_equal_single_sentences(grammars: tuple[int, ...], sentences: tuple[int, ...]) -> None:
    grammar = random_grammar(3, 4, 6, *grammars)
    value = torch.randint(6, (*sentences, 7))
    lengths = torch.randint(1, 8, sentences)
    expected = log_prob_one_by_one(grammar, value, lengths)
    found = PCFG(*tables(grammar), lengths).log_prob(value)
    torch.testing.assert_close(found, expected, rtol=0, atol=BRUTE_FORCE)
    # Padding says the same as lengths.
    blank = value.masked_fill(torch.arange(7) >= lengths.unsqueeze(-1), -1)
    torch.testing.assert_close(grammar.log_prob(blank), expected, rtol=0, atol=BRUTE_FORCE)


def test_arguments_may_vary_separately() -> None:
    grammar, many = random_grammar(2, 3, 4), random_grammar(2, 3, 4, 3)
    mixed = PCFG(grammar.root, many.rules, grammar.emissions)
    value = torch.randint(4, (3, 5))
    expected = [PCFG(grammar.root, many.rules[i], grammar.emissions).log_prob(value[i]) for i in range(3)]
    torch.testing.assert_close(mixed.log_prob(value), torch.stack(expected))
    counts = mixed.expected_counts(value)
    assert {name: table.shape for name, table in counts.items()} == {
        "root": grammar.root.shape,
        "rules": many.rules.shape,
        "emissions": grammar.emissions.shape,
    }


def test_shapes_and_expand() -> None:
    grammar = random_grammar(2, 3, 4, 5)
    assert (grammar.batch_shape, grammar.event_shape) == ((5,), (1,))
    expanded = grammar.expand((2, 5))
    assert expanded.batch_shape == (2, 5)
    assert expanded.rules is grammar.rules
    value = torch.randint(4, (2, 5, 6))
    torch.testing.assert_close(expanded.log_prob(value), grammar.log_prob(value))
    assert PCFG(*tables(grammar), torch.tensor([1, 2, 3, 4, 5])).event_shape == (5,)


def test_gradients_of_first_and_second_order() -> None:
    grammar = random_grammar(2, 2, 3)
    value = torch.tensor([[0, 1, 2, 0], [1, 1, -1, -1], [2, -1, -1, -1]])
    inputs = tuple(table.clone().requires_grad_() for table in tables(grammar))

    def log_prob(*arguments: Tensor) -> Tensor:
        return PCFG(*arguments, validate_args=False).log_prob(value)

    assert torch.autograd.gradcheck(log_prob, inputs)
    assert torch.autograd.gradgradcheck(log_prob, inputs)


def test_kernel_equals_its_slow_twin_with_derivatives() -> None:
    for grammars, num_sentences, words in [(1, 4, 9), (2, 3, 6), (3, 1, 2), (1, 2, 1), (1, 5, 3), (1, 5, 4)]:
        grammar = random_grammar(3, 4, 5, grammars)
        lengths = torch.randint(1, words + 1, (grammars, num_sentences))
        value = torch.randint(5, (grammars, num_sentences, words))
        leaves = [table[:, None].clone().requires_grad_() for table in tables(grammar)]
        weights = torch.rand(grammars, num_sentences)
        log_z = PCFG(*leaves, lengths, validate_args=False).log_prob(value)
        found = torch.autograd.grad((log_z * weights).sum(), leaves)
        ordered, order = lengths.sort(dim=-1, descending=True)
        sentences = value.gather(1, order[..., None].expand_as(value))
        inside = torch.arange(words) < ordered[..., None]
        terminals = torch.stack([leaves[2][g, 0].T[sentences[g]] for g in range(grammars)]) * inside[..., None]
        twin = inside_reference(leaves[0][:, 0], leaves[1][:, 0], terminals, ordered)
        twin_total = (twin * weights.gather(1, order)).sum()
        expected = torch.autograd.grad(twin_total, leaves, materialize_grads=True, allow_unused=True)
        torch.testing.assert_close(log_z.gather(1, order), twin)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)


def test_impossible_sentences_have_no_probability_and_no_gradient() -> None:
    root, rules = torch.tensor([1.0]), torch.zeros(1, 3, 3)
    rules[0, 1, 2] = 1  # S → A B only
    leaves = [x.requires_grad_() for x in (root, rules, torch.eye(2))]
    grammar = PCFG(*leaves, validate_args=True)
    value = torch.tensor([[0, 1, -1], [1, 0, -1], [0, -1, -1], [-1, -1, -1], [0, 0, 1]])
    log_prob = grammar.log_prob(value)
    assert log_prob.tolist() == [0.0, *[-torch.inf] * 4]
    whole = torch.autograd.grad(log_prob.sum(), leaves)
    possible = torch.autograd.grad(grammar.log_prob(value[:1]).sum(), leaves)
    for a, b in zip(whole, possible, strict=True):
        torch.testing.assert_close(a, b)
    for gradient in torch.autograd.grad(grammar.log_prob(value[1:]).sum(), leaves):
        assert not gradient.any()
    counts = grammar.expected_counts(value)
    assert counts["rules"].sum() == 1
    assert counts["emissions"].equal(torch.eye(2))
    with pytest.raises(DataError, match=r"cannot derive 4 sentences.*\[\(1,\), \(2,\)"):
        grammar.posterior(value)


def test_float32_keeps_up_with_float64_on_long_sentences() -> None:
    grammar = random_grammar(4, 5, 6)
    value = torch.randint(6, (3, 150))
    single = PCFG(*(table.float() for table in tables(grammar)))
    assert single.log_prob(value).dtype is torch.float32
    exact = PCFG(*(table.float().double() for table in tables(grammar)), validate_args=False)
    torch.testing.assert_close(single.log_prob(value).double(), exact.log_prob(value), rtol=1e-6, atol=0)
    wide, narrow = exact.expected_counts(value), single.expected_counts(value)
    for name, table in wide.items():
        torch.testing.assert_close(narrow[name].double(), table, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("exponent", [-30, -44])
def test_float32_survives_contrasts_beyond_its_range(exponent: int) -> None:
    # Over the first two words X has probability one, Y 10^exponent; only Y can go on to a sentence.
    tiny = 10.0**exponent
    root = torch.tensor([1.0, 0.0, 0.0])
    rules = torch.zeros(3, 5, 5)
    rules[0, 2, 3] = 1.0  # S → Y A
    rules[1, 3, 4] = 1.0  # X → A B
    rules[2, 3, 3], rules[2, 3, 4] = 1 - tiny, tiny  # Y → A A | A B
    grammar = [x.float() for x in (root, rules, torch.eye(2))]
    value = torch.tensor([[0, 1, 0], [0, 0, 0]])
    leaves = [x.requires_grad_() for x in grammar]
    log_prob = PCFG(*leaves).log_prob(value)
    stored = torch.tensor(tiny, dtype=torch.float32).double().log().float()
    torch.testing.assert_close(log_prob, torch.tensor([stored, 0.0]).float(), rtol=1e-6, atol=1e-6)
    counts = PCFG(*grammar).expected_counts(value)
    torch.testing.assert_close(counts["rules"][2, 3, 3:], torch.tensor([1.0, 1.0], dtype=torch.float32))
    assert all(table.isfinite().all() for table in counts.values())


def test_draws_have_the_probability_of_the_sentence() -> None:
    grammar = random_grammar(2, 3, 2)
    rules = grammar.rules.clone()
    rules[:, :2] *= 0.2
    rules[:, :, :2] *= 0.2  # short sentences
    grammar = PCFG(grammar.root, rules / rules.sum((-1, -2), keepdim=True), grammar.emissions)
    draws = 20_000
    value = grammar.sample((draws,))
    assert grammar.support.check(value).all()
    sentences, counts = value[:, :3].unique(dim=0, return_counts=True)
    if value.shape[1] > 3:
        longer = (value[:, 3] >= 0).float().mean()
        whole = ~(sentences >= 0).all(-1)
        sentences, counts = sentences[whole], counts[whole]
        assert 0 < longer < 0.5
    probs = grammar.log_prob(sentences).exp()
    assert ((counts / draws - probs).abs() < STATISTICAL * (probs / draws).sqrt() + 1 / draws).all()


def test_draws_of_a_given_length_follow_the_grammar_given_the_length() -> None:
    grammar = random_grammar(2, 2, 2)
    draws = 20_000
    value = PCFG(*tables(grammar), torch.tensor([3, 1])).sample((draws,))
    assert value.shape == (draws, 2, 3)
    assert (value[:, 1, 1:] == -1).all()
    every = torch.cartesian_prod(*[torch.arange(2)] * 3)
    probs = grammar.log_prob(every).softmax(0)
    counts = torch.bincount(value[:, 0] @ torch.tensor([4, 2, 1]), minlength=8)
    assert ((counts / draws - probs).abs() < STATISTICAL * (probs / draws).sqrt()).all()


def test_draws_that_cannot_be_are_named_errors() -> None:
    root, rules = torch.tensor([1.0]), torch.zeros(1, 2, 2)
    rules[0, 0, 0] = 1  # S → S S for ever
    with pytest.raises(ModelError, match=r"exceeds 10000 words.*Try giving lengths"):
        PCFG(root, rules, torch.ones(1, 2) / 2).sample()
    with pytest.raises(ModelError, match="no sentence of that length at site 'lengths'"):
        PCFG(root, rules, torch.ones(1, 2) / 2, torch.tensor(2)).sample()


def test_wrong_arguments_and_values_are_named_errors() -> None:
    grammar = random_grammar(2, 2, 3)
    root, rules, emissions = tables(grammar)
    with pytest.raises(ModelError, match="emissions must be"):
        PCFG(root, rules, emissions[:1])
    with pytest.raises(ModelError, match="root must be"):
        PCFG(root[:3], rules, emissions)
    with pytest.raises(ModelError, match="rules must be"):
        PCFG(root, rules[..., :3], emissions)
    with pytest.raises(ValueError, match="rules"):
        PCFG(root, 2 * rules, emissions, validate_args=True)
    with pytest.raises(DataError, match="entries outside"):
        grammar.log_prob(torch.tensor([0, 3]))
    with pytest.raises(DataError, match="entries outside"):
        grammar.log_prob(torch.tensor([0, -1, 1]))
    with pytest.raises(DataError, match="integers"):
        grammar.log_prob(torch.tensor([0.0, 1.0]))
    with pytest.raises(DataError, match="exceeds the width"):
        PCFG(root, rules, emissions, torch.tensor([3]), validate_args=True).log_prob(torch.tensor([[0, 1]]))


def test_rule_tables_have_a_parametrisation() -> None:
    constraint = PCFG.arg_constraints["rules"]
    for registry in (torch.distributions.transform_to, torch.distributions.biject_to):
        transform = registry(constraint)
        rules = transform(torch.randn(2, 15 if registry is torch.distributions.biject_to else 16))
        assert rules.shape == (2, 4, 4)
        assert constraint.check(rules).all()
        torch.testing.assert_close(transform(transform.inv(rules)), rules, rtol=0, atol=EXACT)


def test_large_float32_tables_are_valid() -> None:
    tables = torch.randn(40, 20_000, dtype=torch.float32).softmax(-1)
    constraint = PCFG.arg_constraints["emissions"]
    assert constraint.check(tables).all()
    assert not constraint.check(1.01 * tables).any()
    assert constraint.check(torch.distributions.transform_to(constraint)(torch.randn(3, 5))).all()


def test_observed_in_a_pyro_program_with_a_masked_plate() -> None:
    grammar = random_grammar(2, 2, 3)
    value = torch.randint(3, (4, 5))
    used = torch.tensor([True, False, True, True])

    def model() -> None:
        rules = pyro.param("rules", grammar.rules, constraint=PCFG.arg_constraints["rules"])
        with pyro.plate("sentences", 4), pyro.poutine.mask(mask=used):
            pyro.sample("words", PCFG(grammar.root, rules, grammar.emissions), obs=value)

    trace = pyro.poutine.trace(model).get_trace()
    torch.testing.assert_close(trace.log_prob_sum(), grammar.log_prob(value)[used].sum())


def test_predicted_cost_follows_the_operations_counted() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for nt, pt, words, sentences in [(10, 10, 20, 8), (20, 30, 12, 4), (5, 10, 40, 2)]:
        grammar = random_grammar(nt, pt, 8)
        value = torch.randint(8, (sentences, words))
        with FlopCounterMode(display=False) as counter:
            grammar.expected_counts(value)
        predicted = grammar.hidden_cost(value.shape)
        assert 0.5 < predicted.flops / counter.get_total_flops() < 2
        assert predicted.bytes > 0
