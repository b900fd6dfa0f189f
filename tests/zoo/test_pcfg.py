"""Grammar induction: Lari and Young's palindromes recovered from restarts; a rhyme parsed."""

from __future__ import annotations

import itertools
from pathlib import Path

import nltk
import pyro
import pytest
import torch
from torch import Tensor
from torch.distributions import Dirichlet

from models import pcfg
from ppl_em.distributions import PCFG, from_text
from tests.tolerances import ASCENT, PUBLISHED

RHYME = Path(pcfg.__file__).parent / "data" / "the_house_that_jack_built.txt"


def em(grammar: PCFG, sentences: Tensor, times: Tensor, num_steps: int) -> PCFG:
    for _ in range(num_steps):
        grammar = PCFG(**grammar.normalised(grammar.expected_counts(sentences, times)), validate_args=False)
    return grammar


def unordered(grammar: PCFG) -> Tensor:
    """Returns the rules by unordered pairs of children: palindromes can be built from either side."""
    return grammar.rules + grammar.rules.mT


@pytest.mark.slow
def test_palindromes_are_recovered_from_restarts() -> None:
    sentences, times = pcfg.palindromes(300, longest=8).unique(dim=0, return_counts=True)
    truth = em(from_text(pcfg.PALINDROMES).distribution(), sentences, times, 50)
    restarts = 16  # at once, as a batch of grammars
    start = PCFG(
        Dirichlet(torch.ones(3)).sample((restarts, 1)),
        Dirichlet(torch.ones(25)).sample((restarts, 1, 3)).reshape(restarts, 1, 3, 5, 5),
        Dirichlet(torch.ones(2)).sample((restarts, 1, 2)),
    )
    found = em(start, sentences, times, 200)
    log_likelihood = (found.log_prob(sentences) * times).sum(-1)
    best = int(log_likelihood.argmax())
    assert abs(log_likelihood[best] - (truth.log_prob(sentences) * times).sum()) < PUBLISHED
    assert log_likelihood.min() < log_likelihood.max() - 50  # restarts are needed
    found = PCFG(found.root[best, 0], found.rules[best, 0], found.emissions[best, 0], validate_args=False)
    distances = []
    for names in itertools.product(itertools.permutations(range(3)), itertools.permutations(range(3, 5))):
        order = torch.tensor([*names[0], *names[1]])
        rules = unordered(found)[order[:3]][:, order][:, :, order]
        emissions = found.emissions[order[3:] - 3]
        distances.append(max((rules - unordered(truth)).abs().max(), (emissions - truth.emissions).abs().max()))
    assert min(distances) < PUBLISHED
    # What it has learnt is the language: palindromes of a length not seen in training, and nothing else.
    every = torch.cartesian_prod(*[torch.arange(2)] * 10)
    palindrome = (every == every.flip(-1)).all(-1)
    assert (found.log_prob(every) > -20).equal(palindrome)


def test_program_scores_what_the_distribution_scores() -> None:
    sentences = pcfg.load()
    trace = pyro.poutine.trace(pcfg.model).get_trace(sentences)
    params = {name: pyro.param(name).detach() for name in ("root", "rules", "emissions")}
    grammar = PCFG(params["root"], params["rules"].reshape(3, 5, 5), params["emissions"])
    torch.testing.assert_close(trace.log_prob_sum(), grammar.log_prob(sentences).sum())


def test_a_rhyme_is_read_fitted_and_parsed() -> None:
    sentences = pcfg.load(RHYME)
    lines = RHYME.read_text().splitlines()
    assert sentences.shape == (len(lines), max(len(line.split()) for line in lines))
    words = [word for line in lines for word in line.split()]
    vocabulary = list(dict.fromkeys(words))
    with torch.no_grad():
        pyro.poutine.trace(pcfg.model).get_trace(sentences, 4, 8)
    root, rules, emissions = (pyro.param(name).detach() for name in ("root", "rules", "emissions"))
    grammar = PCFG(root, rules.reshape(4, 12, 12), emissions)
    before = grammar.log_prob(sentences).sum()
    grammar = em(grammar, sentences, torch.ones(len(sentences)), 5)
    after = grammar.log_prob(sentences).sum()
    assert after > before + ASCENT
    for line, parse in zip(lines, grammar.posterior(sentences).mode(), strict=True):
        assert nltk.Tree.fromstring(parse.bracketed(vocabulary=vocabulary)).leaves() == line.split()
