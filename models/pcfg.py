"""Grammar induction: a probabilistic context-free grammar learnt from sentences alone.

Plan: the parse tree of each sentence is summed out by the inside algorithm (engine "structured"); root, rules
and emissions are updated in closed form, each table to its normalised expected counts. This is the
inside–outside algorithm. EM has many local maxima here: use restarts.

Default data: palindromes over two letters from the grammar of Lari and Young, which restarts recover up to
the names of the symbols and the order in which a palindrome is built. `load(path)` reads any text, one
sentence a line, such as ``data/the_house_that_jack_built.txt``, whose relative clauses nest to any depth.

Reference:
    Lari, K. and Young, S. J. (1990). The estimation of stochastic context-free grammars using the
    inside–outside algorithm. Computer Speech and Language 4.
"""

from __future__ import annotations

from pathlib import Path

import pyro
import torch
from pyro.distributions import Dirichlet, constraints
from torch import Tensor

from ppl_em.distributions import PCFG, from_text

PALINDROMES = """
S -> A C [0.3] | B D [0.3] | A A [0.2] | B B [0.2]
C -> S A
D -> S B
A -> 'a'
B -> 'b'
"""


def model(sentences: Tensor, num_nonterminals: int = 3, num_preterminals: int = 2) -> None:
    """Observes sentences.

    Args:
        sentences: (sentences, longest length) int64, numbers of words, padded with −1.
        num_nonterminals: Number of symbols that rewrite to pairs.
        num_preterminals: Number of word classes.
    """
    num_symbols, vocabulary = num_nonterminals + num_preterminals, int(sentences.max()) + 1

    def table(name: str, *shape: int) -> Tensor:
        return pyro.param(name, lambda: Dirichlet(torch.ones(shape)).sample(), constraint=constraints.simplex)

    root = table("root", num_nonterminals)
    rules = table("rules", num_nonterminals, num_symbols * num_symbols)
    emissions = table("emissions", num_preterminals, vocabulary)
    grammar = PCFG(root, rules.reshape(-1, num_symbols, num_symbols), emissions)
    with pyro.plate("sentences", len(sentences)):
        pyro.sample("words", grammar, obs=sentences)


def load(path: str | Path | None = None) -> Tensor:
    """Returns sentences as numbers of words, padded with −1.

    Args:
        path: A text, one sentence a line, words apart by blanks and numbered as they turn up; palindromes if
            None.
    """
    if path is None:
        return palindromes(300)
    lines = [line.split() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.split()]
    vocabulary = dict.fromkeys(word for line in lines for word in line)
    number = {word: index for index, word in enumerate(vocabulary)}
    longest = max(map(len, lines))
    rows = [[number[word] for word in line] + [-1] * (longest - len(line)) for line in lines]
    return torch.tensor(rows)


def palindromes(count: int, longest: int = 10, seed: int = 1) -> Tensor:
    """Returns `count` draws from the palindrome grammar, without those longer than `longest`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = from_text(PALINDROMES).distribution().sample((count,))
    return drawn[(drawn >= 0).sum(-1) <= longest, :longest]
