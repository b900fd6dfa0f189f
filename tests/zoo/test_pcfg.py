"""Grammar induction: Lari and Young's palindromes recovered from restarts; a rhyme fitted and parsed."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import nltk
import pytest
import torch
from torch import Tensor

import ppl_em
from models import pcfg
from ppl_em.distributions import PCFG, from_text
from tests.tolerances import ASCENT, PUBLISHED

RHYME = Path(pcfg.__file__).parent / "data" / "the_house_that_jack_built.txt"
SIZES = {"num_nonterminals": 4, "num_preterminals": 8}


def grammar(params: dict[str, Tensor]) -> PCFG:
    """The fitted tables as a grammar."""
    rules = params["rules"]
    side = round(rules.shape[1] ** 0.5)
    return PCFG(params["root"], rules.reshape(-1, side, side), params["emissions"], validate_args=False)


def unordered(rules: Tensor) -> Tensor:
    """Rules by unordered pairs of children: palindromes can be built from either side."""
    return rules + rules.mT


def distance_up_to_names(found: PCFG, truth: PCFG) -> float:
    """Largest difference of a probability under the best renaming of the symbols."""
    distances = []
    for names in itertools.product(itertools.permutations(range(3)), itertools.permutations(range(3, 5))):
        order = torch.tensor([*names[0], *names[1]])
        rules = unordered(found.rules)[order[:3]][:, order][:, :, order]
        emissions = found.emissions[order[3:] - 3]
        gaps = (rules - unordered(truth.rules)).abs().max(), (emissions - truth.emissions).abs().max()
        distances.append(float(max(gaps)))
    return min(distances)


@pytest.mark.slow
def test_palindromes_are_recovered_from_restarts() -> None:
    """The best of ten restarts is the published grammar's own maximum, up to the names of its symbols."""
    sentences, times = pcfg.palindromes(300, longest=8).unique(dim=0, return_counts=True)
    method, weights = ppl_em.EM(max_steps=300), times.double()
    published = from_text(pcfg.PALINDROMES).distribution()
    start = {"root": published.root[:3], "rules": published.rules.flatten(1), "emissions": published.emissions}
    truth = ppl_em.fit(pcfg.model, sentences, weights=weights, init=start, restarts=1, method=method)
    result = ppl_em.fit(pcfg.model, sentences, weights=weights, method=method)
    assert result.converged
    assert result.objective == pytest.approx(truth.objective, abs=PUBLISHED)
    reached = [restart.objective for restart in result.restarts]
    assert min(reached) < max(reached) - 50  # restarts are needed
    found = grammar(result.params)
    assert distance_up_to_names(found, grammar(truth.params)) < PUBLISHED
    # What it has learnt is the language: palindromes of a length not seen in training, and nothing else.
    every = torch.cartesian_prod(*[torch.arange(2)] * 10)
    palindrome = (every == every.flip(-1)).all(-1)
    assert (found.log_prob(every) > -20).equal(palindrome)


def test_the_plan(golden_plan: Callable) -> None:
    plan = ppl_em.explain(pcfg.model, pcfg.load())
    assert plan.exact
    assert plan.engine_of("words") == "structured"
    for name in ("root", "rules", "emissions"):
        assert plan.rule_of(name) == "closed form"
    golden_plan("pcfg", plan)


@pytest.mark.slow
def test_a_rhyme_is_read_fitted_and_parsed() -> None:
    """A real text: relative clauses nest to any depth, so that later sentences contain the earlier ones."""
    sentences = pcfg.load(RHYME)
    lines = RHYME.read_text().splitlines()
    assert sentences.shape == (len(lines), max(len(line.split()) for line in lines))
    vocabulary = list(dict.fromkeys(word for line in lines for word in line.split()))
    method = ppl_em.EM(max_steps=20, tol=0)
    result = ppl_em.fit(pcfg.model, sentences, model_kwargs=SIZES, restarts=2, method=method)
    assert (result.history.diff() >= -ASCENT * result.history[0].abs()).all()
    # A grammar beats what needs no grammar: words drawn one by one, by their frequency, until a stop.
    words, counts = sentences[sentences >= 0].unique(return_counts=True)
    assert len(words) == len(vocabulary)
    stops = torch.tensor([float(len(lines)), float(counts.sum())])
    unigram = (counts * (counts / counts.sum()).log()).sum() + (stops * (stops / stops.sum()).log()).sum()
    assert result.objective > float(unigram) + 100
    parses = result.posterior().structure("words").mode()
    for line, parse in zip(lines, parses, strict=True):
        assert nltk.Tree.fromstring(parse.bracketed(vocabulary=vocabulary)).leaves() == line.split()
