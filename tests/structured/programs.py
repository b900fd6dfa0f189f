"""Programs whose observed sites sum over a hidden structure, small enough for enumeration."""

from __future__ import annotations

import pyro
import torch
from pyro.distributions import Categorical, Dirichlet, constraints
from torch import Tensor, nn

from ppl_em.distributions import CTC, PCFG
from ppl_em.distributions.constraints import square_simplex

NT, PT, V = 2, 2, 3
SENTENCES = torch.tensor([[0, 1, -1, -1], [2, 2, 1, -1], [0, 1, 2, 0], [1, 0, -1, -1], [2, 1, 2, -1], [0, 0, 1, 2]])


def tables(seed: int, *batch: int) -> dict[str, Tensor]:
    """Draws root, rules and emissions of a grammar."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shapes = {"root": (*batch, NT), "rules": (*batch, NT, (NT + PT) ** 2), "emissions": (*batch, PT, V)}
        drawn = {name: Dirichlet(torch.ones(shape)).sample() for name, shape in shapes.items()}
    return {**drawn, "rules": drawn["rules"].reshape(*batch, NT, NT + PT, NT + PT)}


def grammar(sentences: Tensor, start: dict[str, Tensor]) -> None:
    """A grammar with free tables."""
    root = pyro.param("root", start["root"], constraint=constraints.simplex)
    rules = pyro.param("rules", start["rules"], constraint=constraints.independent(square_simplex, 1))
    emissions = pyro.param("emissions", start["emissions"], constraint=constraints.simplex)
    with pyro.plate("sentences", len(sentences)):
        pyro.sample("words", PCFG(root, rules, emissions), obs=sentences)


def two_grammars(sentences: Tensor, start: dict[str, Tensor]) -> None:
    """Each sentence is from one of two grammars; `start` has a leading dimension of two."""
    weight = pyro.param("weight", torch.tensor([0.4, 0.6]), constraint=constraints.simplex)
    root = pyro.param("root", start["root"], constraint=constraints.simplex)
    rules = pyro.param("rules", start["rules"], constraint=constraints.independent(square_simplex, 1))
    emissions = pyro.param("emissions", start["emissions"], constraint=constraints.simplex)
    with pyro.plate("sentences", len(sentences)):
        z = pyro.sample("language", Categorical(weight))
        pyro.sample("words", PCFG(root[z], rules[z], emissions[z]), obs=sentences)


class Rules(nn.Module):
    """Rules of a grammar from embeddings of its symbols, as a neural grammar has them."""

    def __init__(self) -> None:
        super().__init__()
        self.symbols = nn.Parameter(torch.randn(NT, 4))
        self.pairs = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, (NT + PT) ** 2))

    def forward(self) -> Tensor:
        """Returns probabilities (NT, S, S)."""
        return self.pairs(self.symbols).softmax(-1).reshape(NT, NT + PT, NT + PT)


def neural_grammar(sentences: Tensor, network: nn.Module, start: dict[str, Tensor]) -> None:
    """A grammar whose rules come from a network; root and emissions are free."""
    rules = pyro.module("network", network)()
    root = pyro.param("root", start["root"], constraint=constraints.simplex)
    emissions = pyro.param("emissions", start["emissions"], constraint=constraints.simplex)
    with pyro.plate("sentences", len(sentences)):
        pyro.sample("words", PCFG(root, rules, emissions), obs=sentences)


def aligned(frames: Tensor, used: Tensor, labels: Tensor, network: nn.Module) -> None:
    """Labels of frames (lines, features, T) by a convolutional network."""
    logits = pyro.module("network", network)(frames).mT
    with pyro.plate("lines", len(frames)):
        pyro.sample("labels", CTC(logits, used), obs=labels)


def shared_frames(labels: Tensor, start: Tensor) -> None:
    """Label sequences that all come from the same free scores of T frames."""
    logits = pyro.param("logits", start)
    with pyro.plate("lines", len(labels)):
        pyro.sample("labels", CTC(logits), obs=labels)
