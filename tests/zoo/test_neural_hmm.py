"""Vowels and consonants found by an HMM with tables from a network."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

import ppl_em
from models import neural_hmm
from tests.tolerances import ASCENT


@pytest.fixture
def untrained() -> Iterator[None]:
    """Starts from fresh weights in float64, and leaves fresh ones."""
    neural_hmm.tables.double().load_state_dict(neural_hmm.new_tables(seed=1).state_dict())
    yield
    neural_hmm.tables.float().load_state_dict(neural_hmm.new_tables().state_dict())


@pytest.mark.slow
def test_states_are_vowels_and_consonants(untrained: None) -> None:
    words, lengths = neural_hmm.load()
    result = ppl_em.fit(neural_hmm.model, words, lengths, restarts=1, method=ppl_em.EM(max_steps=100))
    assert (result.history.diff() >= -ASCENT * result.history[0].abs()).all()
    with torch.no_grad():
        emission = neural_hmm.tables()[2]  # the module holds what the fit returned
    used = torch.bincount(words[torch.arange(words.shape[1]) < lengths[:, None]], minlength=26) > 10
    letters = dict(zip(neural_hmm.LETTERS, emission.argmax(0).tolist(), strict=True))
    vowel = letters["e"]
    common = [letter for letter, often in zip(neural_hmm.LETTERS, used.tolist(), strict=True) if often]
    assert {letter for letter in common if letters[letter] == vowel} >= set("aeiou")
    consonants = [letter for letter in common if letter not in "aeiouy"]
    assert sum(letters[letter] != vowel for letter in consonants) >= len(consonants) - 2


def test_the_plan(untrained: None, golden_plan: Callable) -> None:
    plan = ppl_em.explain(neural_hmm.model, *neural_hmm.load())
    assert plan.exact
    assert plan.engine_of("state") == "chain"
    assert plan.rule_of("tables$$$letters") == "gradient"
    golden_plan("neural_hmm", plan)


def test_data() -> None:
    words, lengths = neural_hmm.load()
    assert words.shape == (272, 11)  # the address is known to have 272 words
    first = "".join(neural_hmm.LETTERS[letter] for letter in words[0, : lengths[0]])
    assert first == "four"
    assert not words[torch.arange(11) >= lengths[:, None]].any()
