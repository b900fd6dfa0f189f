"""Grammars as text: probabilities and parses of NLTK's parsers on its own example grammars; odd grammars."""

from __future__ import annotations

import inspect
import math
import re

import nltk
import pytest
import torch
from nltk.parse import viterbi

from ppl_em.distributions import from_text
from ppl_em.errors import DataError, ModelError
from tests.tolerances import BRUTE_FORCE, EXACT

# NLTK keeps its two example grammars inside the demo of its parser.
EXAMPLES = re.findall(r'PCFG\.fromstring\(\s*"""(.*?)"""', inspect.getsource(viterbi.demo), re.DOTALL)
SENTENCES = (
    (
        "I saw the man with my telescope",
        "I saw my man",
        "the man saw John under my telescope",
        "John saw I the man",
    ),
    (
        "the boy saw Jack with Bob under the table with a telescope",
        "Jack saw Bob",
        "the table ran with a boy under Bob",
        "Jack ate the telescope",
    ),
)

ODD = """
%start S
# long rules, words among symbols, chains of unary rules with a cycle, a symbol with words and pairs
S -> NP VP [.6] | VP [.3] | 'yes' [.1]
NP -> "the" N 'of' NP [.2] | N [.5] | NP NP [.1] | VP [.05] | 'it' [.15]
N -> 'cat' [.5] | 'dog' [.3] \\
  | N N [.2]
VP -> V NP NP 'now' [.1] | V NP [.3] | V [.4] | NP [.2]
V -> 'is' [.7] | 'has' [.3]
"""
ODD_SENTENCES = ("the cat of dog is it", "yes", "is", "it has cat dog now", "cat dog has it", "it is is it")


def nltk_parses(text: str, sentence: str) -> list[nltk.tree.ProbabilisticTree]:
    return list(nltk.InsideChartParser(nltk.PCFG.fromstring(text)).parse(sentence.split()))


def probability(tree: nltk.Tree, text: str) -> float:
    probs = {(p.lhs(), p.rhs()): p.prob() for p in nltk.PCFG.fromstring(text).productions()}
    return math.prod(probs[production.lhs(), production.rhs()] for production in tree.productions())


@pytest.mark.parametrize(("text", "sentences"), list(zip(EXAMPLES, SENTENCES, strict=True)))
def test_agrees_with_the_parsers_of_nltk(text: str, sentences: tuple[str, ...]) -> None:
    grammar = from_text(text)
    distribution = grammar.distribution()
    value = grammar.encode(sentences)
    log_prob = distribution.log_prob(value)
    for row, sentence in enumerate(sentences):
        parses = nltk_parses(text, sentence)
        assert float(log_prob[row].exp()) == pytest.approx(sum(p.prob() for p in parses), rel=BRUTE_FORCE)
        if not parses:
            assert log_prob[row] == -torch.inf
            continue
        best = next(nltk.ViterbiParser(nltk.PCFG.fromstring(text)).parse(sentence.split()))
        (parse,) = distribution.posterior(value[row]).mode()
        assert math.exp(parse.log_prob) == pytest.approx(best.prob(), rel=BRUTE_FORCE)
        # Parses can tie, so ours need not be NLTK's; it must be as probable under the grammar as written.
        tree = nltk.Tree.fromstring(grammar.tree(parse))
        assert tree.leaves() == sentence.split()
        assert probability(tree, text) == pytest.approx(best.prob(), rel=BRUTE_FORCE)
        assert probability(tree, text) == pytest.approx(math.exp(parse.log_prob), rel=BRUTE_FORCE)


def probability_by_relaxation(text: str, words: list[str]) -> float:
    """Iterates the equations of all spans to their fixpoint; any grammar, unary cycles included."""
    productions = nltk.PCFG.fromstring(text.replace("%start S", "").replace("\\\n", "")).productions()
    n, start = len(words), productions[0].lhs()
    inside: dict = {}

    def sequence(rhs: tuple, i: int, j: int) -> float:
        if not rhs:
            return float(i == j)
        head, rest = rhs[0], rhs[1:]
        ends = range(i + 1, j - len(rest) + 1)
        if isinstance(head, str):
            return sequence(rest, i + 1, j) if i < j and words[i] == head else 0.0
        return sum(inside.get((head, i, k), 0.0) * sequence(rest, k, j) for k in ends)

    for width in range(1, n + 1):
        for _ in range(60):
            for i in range(n - width + 1):
                updated: dict = {}
                for p in productions:
                    key = (p.lhs(), i, i + width)
                    updated[key] = updated.get(key, 0.0) + p.prob() * sequence(p.rhs(), i, i + width)
                inside.update(updated)
    return inside[start, 0, n]


def test_odd_grammars_keep_the_probability_of_every_sentence() -> None:
    grammar = from_text(ODD)
    assert grammar.root.shape == (len(grammar.symbols),)  # one-word sentences exist
    distribution = grammar.distribution()
    for table, dims in [
        (distribution.root, (-1,)),
        (distribution.rules, (-1, -2)),
        (distribution.emissions, (-1,)),
    ]:
        torch.testing.assert_close(table.sum(dims), torch.ones(table.sum(dims).shape), rtol=0, atol=EXACT)
    for sentence in ODD_SENTENCES:
        found = float(distribution.log_prob(grammar.encode([sentence])).exp())
        assert found == pytest.approx(probability_by_relaxation(ODD, sentence.split()), rel=BRUTE_FORCE, abs=0)
        if found > 0:
            (parse,) = distribution.posterior(grammar.encode([sentence])).mode()
            tree = nltk.Tree.fromstring(grammar.tree(parse))
            assert tree.leaves() == sentence.split()
            assert probability(tree, ODD.replace("%start S", "").replace("\\\n", "")) > 0
    assert sum(float(distribution.log_prob(grammar.encode([s])).exp()) > 0 for s in ODD_SENTENCES) >= 5


def test_rules_without_probabilities_are_equally_likely() -> None:
    grammar = from_text("S -> A A | 'x' A\nA -> 'x' | 'y' | 'z'")
    found = grammar.distribution().log_prob(grammar.encode(["x y", "y y"])).exp()
    torch.testing.assert_close(found, torch.tensor([1 / 18 + 1 / 6, 1 / 18]))


def test_encoding_takes_strings_or_words_and_names_unknown_ones() -> None:
    grammar = from_text("S -> A A\nA -> 'x' | 'y'")
    assert grammar.encode(["y x", ["x"]]).tolist() == [[1, 0], [0, -1]]
    with pytest.raises(DataError, match=r"words that the grammar does not have \(value q, z\)"):
        grammar.encode(["x z q"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no rules"),
        ("S A B", "needs a symbol and an arrow"),
        ("S -> A A [0.5]\nA -> 'x'", "do not sum to one"),
        ("S -> A A [0.5] | A\nA -> 'x'", "some have none"),
        ("S -> A B\nA -> 'x'", r"without a rule \(value B\)"),
        ("S -> A A | \nA -> 'x'", "without children"),
        ("S -> A A [two]\nA -> 'x'", "'two' is no probability"),
        ("S -> A [0.5] A\nA -> 'x'", "unexpected 'A'"),
        ("S -> A 'x\nA -> 'x'", "cannot read"),
        ("S -> A\nA -> S", "cycle of unary rules"),
        ("S -> 'x'", "only sentences of one word"),
    ],
)
def test_texts_that_are_no_grammar_are_named_errors(text: str, expected: str) -> None:
    with pytest.raises(ModelError, match=expected):
        from_text(text)
