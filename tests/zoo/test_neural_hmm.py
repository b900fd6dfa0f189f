"""Vowels and consonants found by an HMM with tables from a network."""

from __future__ import annotations

import pytest
import torch
from pyro.infer import TraceEnum_ELBO, config_enumerate

from models import neural_hmm


@pytest.mark.slow
def test_states_are_vowels_and_consonants() -> None:
    words, lengths = neural_hmm.load()
    neural_hmm.tables.load_state_dict(neural_hmm.new_tables(seed=1).state_dict())
    elbo = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=False)
    program = config_enumerate(neural_hmm.model)
    optimiser = torch.optim.Adam(neural_hmm.tables.parameters(), lr=0.02)
    for _ in range(300):
        loss = elbo.differentiable_loss(program, lambda *args: None, words, lengths)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    emission = neural_hmm.tables()[2].detach()
    used = torch.bincount(words[torch.arange(words.shape[1]) < lengths[:, None]], minlength=26) > 10
    likelier = emission.argmax(0)
    letters = dict(zip(neural_hmm.LETTERS, likelier.tolist(), strict=True))
    vowel = letters["e"]
    common = [letter for letter, often in zip(neural_hmm.LETTERS, used.tolist(), strict=True) if often]
    assert {letter for letter in common if letters[letter] == vowel} >= set("aeiou")
    consonants = [letter for letter in common if letter not in "aeiouy"]
    assert sum(letters[letter] != vowel for letter in consonants) >= len(consonants) - 2


def test_data() -> None:
    words, lengths = neural_hmm.load()
    assert words.shape == (272, 11)  # the address is known to have 272 words
    first = "".join(neural_hmm.LETTERS[letter] for letter in words[0, : lengths[0]])
    assert first == "four"
    assert not words[torch.arange(11) >= lengths[:, None]].any()
