"""PCFG against the sum over all trees: log Z, counts, span marginals, entropy, Viterbi, draws."""

from __future__ import annotations

from collections import Counter

import nltk
import pytest
import torch
from torch import Tensor

from ppl_em.distributions import PCFG
from tests.tolerances import BRUTE_FORCE, STATISTICAL
from tests.unit.distributions.brute_force import bracketed, random_grammar, scored_trees

SENTENCES = [[0], [1, 2], [2, 0, 1], [0, 0, 2, 1]]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=BRUTE_FORCE)


def padded(sentences: list[list[int]]) -> Tensor:
    width = max(map(len, sentences))
    return torch.tensor([words + [-1] * (width - len(words)) for words in sentences])


@pytest.fixture
def grammar() -> PCFG:
    torch.manual_seed(3)
    return random_grammar(2, 2, 3)


def with_structural_zeros(grammar: PCFG) -> PCFG:
    rules = grammar.rules.clone()
    rules[0, 0], rules[1, :, 3], rules[1, 2, :2] = 0, 0, 0
    emissions = grammar.emissions.clone()
    emissions[0, 1] = 0
    rules /= rules.sum((-1, -2), keepdim=True)
    return PCFG(grammar.root, rules, emissions / emissions.sum(-1, keepdim=True), validate_args=True)


@pytest.mark.parametrize("zeros", [False, True])
def test_log_prob_sums_over_all_trees(grammar: PCFG, zeros: bool) -> None:
    grammar = with_structural_zeros(grammar) if zeros else grammar
    expected = [torch.tensor([lp for lp, *_ in scored_trees(grammar, s)]).logsumexp(0) for s in SENTENCES]
    close(grammar.log_prob(padded(SENTENCES)), torch.stack(expected))


@pytest.mark.parametrize("zeros", [False, True])
def test_counts_are_posterior_means_over_all_trees(grammar: PCFG, zeros: bool) -> None:
    grammar = with_structural_zeros(grammar) if zeros else grammar
    value = padded(SENTENCES)
    found = grammar.posterior(value).expected_counts()
    for row, words in enumerate(SENTENCES):
        trees = scored_trees(grammar, words)
        weights = torch.tensor([lp for lp, *_ in trees]).softmax(0).tolist()
        for name, table in found.items():
            expected = torch.zeros_like(table[row])
            for weight, (_, _, count) in zip(weights, trees, strict=True):
                for (which, index), times in count.items():
                    if which == name:
                        expected[index] += weight * times
            close(table[row], expected)
    pooled = grammar.expected_counts(value)
    for name, table in found.items():
        close(pooled[name], table.sum(0))


def test_weights_multiply_counts(grammar: PCFG) -> None:
    value, weights = padded(SENTENCES), torch.tensor([0.5, 0.0, 2.0, 1.5])
    single = grammar.posterior(value).expected_counts()
    for name, table in grammar.expected_counts(value, weights).items():
        close(table, torch.einsum("b,b...->...", weights, single[name]))


def test_span_marginals_entropy_and_mode(grammar: PCFG) -> None:
    posterior = grammar.posterior(padded(SENTENCES))
    marginals, entropies, modes = posterior.span_marginals(), posterior.entropy(), posterior.mode()
    for row, words in enumerate(SENTENCES):
        trees = scored_trees(grammar, words)
        scores = torch.tensor([lp for lp, *_ in trees])
        weights = scores.softmax(0)
        expected = torch.zeros_like(marginals[row])
        for weight, (_, tree, _) in zip(weights.tolist(), trees, strict=True):
            for symbol, first, last in spans(tree):
                expected[first, last, symbol] += weight
        close(marginals[row], expected)
        close(entropies[row], torch.special.entr(weights).sum())
        best = int(scores.argmax())
        assert modes[row].bracketed() == bracketed(trees[best][1], words, 2)
        assert modes[row].log_prob == pytest.approx(float(scores[best]))


def spans(tree: tuple) -> list[tuple[int, int, int]]:
    """Returns (symbol, first word, last word) of a tree's constituents, the root last."""
    if len(tree) == 2:
        return [(tree[0], tree[1], tree[1])]
    left, right = spans(tree[1]), spans(tree[2])
    return [*left, *right, (tree[0], left[-1][1], right[-1][2])]


def test_drawn_trees_have_posterior_frequencies(grammar: PCFG) -> None:
    words, draws = [2, 0, 1], 20_000
    trees = scored_trees(grammar, words)
    probs = torch.tensor([lp for lp, *_ in trees]).softmax(0)
    generator = torch.Generator().manual_seed(1)
    (sampled,) = grammar.posterior(torch.tensor([words])).sample(draws, generator)
    counted = Counter(tree.bracketed() for tree in sampled)
    for prob, (log_prob, tree, _) in zip(probs.tolist(), trees, strict=True):
        name = bracketed(tree, words, 2)
        assert abs(counted.pop(name, 0) / draws - prob) < STATISTICAL * (prob / draws) ** 0.5 + 1 / draws
        drawn = next((t for t in sampled if t.bracketed() == name), None)
        assert drawn is None or drawn.log_prob == pytest.approx(log_prob)
    assert not counted


def test_parses_read_as_nltk_trees(grammar: PCFG) -> None:
    for words, parse in zip(SENTENCES, grammar.posterior(padded(SENTENCES)).mode(), strict=True):
        assert nltk.Tree.fromstring(parse.bracketed()).leaves() == [str(word) for word in words]
        named = nltk.Tree.fromstring(parse.bracketed(["S", "T", "X", "Y"], ["a", "b", "c"]))
        assert named.leaves() == ["abc"[word] for word in words]
        used = Counter(parse.rules())
        assert sum(used.values()) == len(words) - 1


def test_probabilities_of_all_sentences_of_a_length_sum_to_that_of_the_length(grammar: PCFG) -> None:
    # A grammar over one word only: its log-probability is that of the length.
    lengths_only = PCFG(grammar.root, grammar.rules, torch.ones(2, 1))
    for n in range(1, 6):
        every = torch.cartesian_prod(*[torch.arange(3)] * n).reshape(-1, n)
        total = grammar.log_prob(every).logsumexp(0)
        close(total, lengths_only.log_prob(torch.zeros(n, dtype=torch.int64)))
