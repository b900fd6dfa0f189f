"""Vowels and consonants: a hidden Markov model whose tables come from a network.

Plan: the hidden states of each word are a chain and are summed by forward–backward (engine "chain"); the
tables are outputs of a network, which takes gradient steps with the expected counts held fixed (generalised
EM).

Data: the words of the Gettysburg Address, each a sequence of letters. With two states, one comes to emit the
vowels and the other the consonants, as Cave and Neuwirth found on English text.

Reference:
    Cave, R. L. and Neuwirth, L. P. (1980). Hidden Markov models for English.
    Tran, K., Bisk, Y., Vaswani, A., Marcu, D. and Knight, K. (2016). Unsupervised neural hidden Markov
    models.
"""

from __future__ import annotations

import re
from pathlib import Path

import pyro
import torch
from pyro import poutine
from pyro.distributions import Categorical
from torch import Tensor, nn

LETTERS = "abcdefghijklmnopqrstuvwxyz"


class Tables(nn.Module):
    """Initial, transition and emission probabilities from embeddings of states and letters."""

    def __init__(self, num_states: int = 2, num_letters: int = len(LETTERS), width: int = 16) -> None:
        super().__init__()
        self.states = nn.Parameter(torch.randn(num_states, width))
        self.letters = nn.Parameter(torch.randn(num_letters, width) / width**0.5)
        self.initial = nn.Linear(width, 1)
        self.transition = nn.Linear(width, num_states)
        self.emission = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns probabilities (K,), (K, K) from state to state, and (K, letters)."""
        initial = self.initial(self.states).squeeze(-1).softmax(-1)
        transition = self.transition(self.states).softmax(-1)
        emission = (self.emission(self.states) @ self.letters.mT).softmax(-1)
        return initial, transition, emission


def new_tables(seed: int = 0, num_states: int = 2) -> Tables:
    """Returns a network with fresh weights; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Tables(num_states)


tables = new_tables()


def model(words: Tensor, lengths: Tensor) -> None:
    """Observes words letter by letter.

    Args:
        words: (words, longest length) int64, letters from 0, padded with 0.
        lengths: (words,) int64, number of letters of each word.
    """
    initial, transition, emission = pyro.module("tables", tables)()
    with pyro.plate("words", len(words)):
        state = None
        for t in pyro.markov(range(words.shape[1])):
            with poutine.mask(mask=t < lengths):
                probs = initial if state is None else transition[state]
                state = pyro.sample(f"state_{t}", Categorical(probs))
                pyro.sample(f"letter_{t}", Categorical(emission[state]), obs=words[:, t])


def load(path: str | Path | None = None) -> tuple[Tensor, Tensor]:
    """Returns words as numbers of letters, and their lengths.

    Args:
        path: A text; the Gettysburg Address if None. Case and all but the letters a–z are ignored.
    """
    path = path or Path(__file__).parent / "data" / "gettysburg_address.txt"
    found = re.findall("[a-z]+", Path(path).read_text(encoding="utf-8").lower())
    lengths = torch.tensor([len(word) for word in found])
    words = torch.zeros(len(found), int(lengths.max()), dtype=torch.int64)
    for row, word in enumerate(found):
        words[row, : len(word)] = torch.tensor([LETTERS.index(letter) for letter in word])
    return words, lengths
