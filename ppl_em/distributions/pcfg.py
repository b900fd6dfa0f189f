"""Probabilistic context-free grammars as a Pyro distribution over sentences."""

from __future__ import annotations

import copy
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.nn.functional import pad

from ppl_em.distributions.batching import Layout
from ppl_em.distributions.constraints import given, padded_labels, square_simplex, table_simplex
from ppl_em.distributions.generation import sample_sentences
from ppl_em.distributions.log_partition import log_partition
from ppl_em.distributions.pcfg_posterior import PCFGPosterior
from ppl_em.distributions.structured import HiddenCost, StructuredDistribution, register_structured
from ppl_em.errors import ModelError, message

__all__ = ["PCFG"]


@register_structured
class PCFG(StructuredDistribution):
    """Probabilistic context-free grammar in Chomsky normal form with separate preterminals.

    A sentence is generated top-down: a root symbol is drawn; each nonterminal draws an ordered pair of
    symbols; each preterminal draws one word. `log_prob` sums over all parse trees by the inside algorithm, in
    O(N³) for N words. The value is a sequence of words; its length is random, and entries after its end are
    padding.

    Args:
        root: (…, NT), probability of each nonterminal at the root; or (…, NT + PT) where a sentence may be
            one word.
        rules: (…, NT, S, S) with S = NT + PT, entry [a, b, c] the probability of a → b c; nonterminals first.
        emissions: (…, PT, V), probability of each word given the preterminal.
        lengths: (…) int64, number of words of each sentence; if None, a sentence ends at its first negative
            entry.

    Values are int64 (…, N), words 0 … V − 1. The log-probability is that of the words, length included: it
    sums to one over sentences of all lengths. Draws are padded with −1; where `lengths` are given they have
    those lengths, drawn from the grammar given the length. The event shape is (longest length,), or (1,)
    where lengths are unknown.

    Tables of different precision are computed in the wider one.

    In float32 a symbol less probable than 1e-38 of the likeliest symbol over the same words counts as zero.

    Raises:
        ModelError: If the shapes do not fit together.

    Reference:
        Baker, J. K. (1979). Trainable grammars for speech recognition.

    Example:
        >>> root = torch.tensor([1.0])                    # S
        >>> rules = torch.zeros(1, 3, 3)                  # symbols S, A, B
        >>> rules[0, 1, 2], rules[0, 1, 0] = 0.75, 0.25   # S → A B | A S
        >>> emissions = torch.eye(2)                      # A → "a", B → "b"
        >>> PCFG(root, rules, emissions).log_prob(torch.tensor([[0, 1, -1], [0, 0, 1]])).exp()
        tensor([0.7500, 0.1875])
    """

    arg_constraints = {  # pyright: ignore[reportAssignmentType]
        "root": table_simplex,
        "rules": constraints.independent(square_simplex, 1),
        "emissions": constraints.independent(table_simplex, 1),
        "lengths": given,
    }
    counted = ("root", "rules", "emissions")
    impossible = "the grammar cannot derive them"

    def __init__(
        self,
        root: Tensor,
        rules: Tensor,
        emissions: Tensor,
        lengths: Tensor | None = None,
        validate_args: bool | None = None,
    ) -> None:
        _check_shapes(root, rules, emissions)
        self.root, self.rules, self.emissions, self.lengths = root, rules, emissions, lengths
        shapes = [root.shape[:-1], rules.shape[:-3], emissions.shape[:-2]]
        if lengths is not None:
            shapes.append(lengths.shape)
        width = int(lengths.max()) if lengths is not None and lengths.numel() else 1
        super().__init__(torch.broadcast_shapes(*shapes), torch.Size((width,)), validate_args=validate_args)

    @property
    def num_nonterminals(self) -> int:
        """Number of nonterminals NT."""
        return self.rules.shape[-3]

    @property
    def num_preterminals(self) -> int:
        """Number of preterminals PT."""
        return self.emissions.shape[-2]

    @property
    def num_words(self) -> int:
        """Size V of the vocabulary."""
        return self.emissions.shape[-1]

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Sequences of words, padded."""
        return padded_labels(self.num_words, self.lengths)

    def expand(self, batch_shape: torch.Size | tuple[int, ...], _instance: Any = None) -> PCFG:
        """Returns the same grammar for a larger batch; its tables stay shared."""
        new = copy.copy(self) if _instance is None else _instance
        new._batch_shape = torch.broadcast_shapes(self.batch_shape, torch.Size(batch_shape))
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability of sentences, (…); −inf where the grammar cannot derive one.

        Args:
            value: (…, N) int64.
        """
        layout, root, rules, terminals = self._arrange(value)
        return layout.restore(log_partition(root, rules, terminals, layout.lengths))

    def posterior(self, value: Tensor) -> PCFGPosterior:
        """Returns the posterior over parse trees of given sentences.

        Args:
            value: (…, N) int64.

        Raises:
            DataError: If the grammar cannot derive a sentence.
        """
        with torch.no_grad():
            layout, root, rules, terminals = self._arrange(value)
            return PCFGPosterior.of(layout, root, rules, terminals, self.emissions)

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draws sentences, (*sample_shape, *batch, N) int64, padded with −1."""
        shape = self._extended_shape(torch.Size(sample_shape))[:-1]
        with torch.no_grad():
            return sample_sentences(self.root_symbols, self.rules, self.emissions, self.lengths, shape)

    def hidden_cost(self, value_shape: torch.Size) -> HiddenCost:
        """Predicts the cost of log Z and the expected counts from shapes.

        Args:
            value_shape: (*batch, N).
        """
        batch = torch.broadcast_shapes(self.batch_shape, value_shape[:-1])
        sentences, n = batch.numel(), value_shape[-1]
        nt, pt = self.num_nonterminals, self.num_preterminals
        splits, spans = n * (n - 1) * (n - 2) / 6, n * (n - 1) / 2
        pairs = splits * nt**2 + spans * nt**3 + 2 * spans * nt**2 + 2 * n * pt * nt**2 + n * nt * pt**2
        per_sentence = 4 * (n + 1) ** 2 * nt + 4 * n * nt**2 + n * n / 4 * (nt**2 + 2 * n / 3 * nt)
        itemsize = self.rules.element_size()
        size = sentences * (per_sentence * itemsize + 16 * (n + 1) ** 2) + 3 * self.rules.numel() * itemsize
        return HiddenCost(flops=8.0 * sentences * pairs, bytes=float(size))

    @property
    def root_symbols(self) -> Tensor:
        """The root over all symbols, (…, NT + PT)."""
        missing = self.rules.shape[-1] - self.root.shape[-1]
        return pad(self.root, (0, missing)) if missing else self.root

    def lengths_of(self, value: Tensor) -> Tensor:
        """Returns the number of words of each sentence: as given, or up to the first negative entry."""
        return self.support.lengths_of(value)

    def _arrange(self, value: Tensor) -> tuple[Layout, Tensor, Tensor, Tensor]:
        if self._validate_args:
            self._validate_sample(value)
        lengths = self.lengths_of(value)
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        tables = (self.root_symbols, self.rules, self.emissions)
        wider = torch.promote_types(torch.promote_types(tables[0].dtype, tables[1].dtype), tables[2].dtype)
        root, rules, emissions = (table.to(wider) for table in tables)
        layout = Layout.of(value, lengths, batch, [root.shape[:-1], rules.shape[:-3], emissions.shape[:-2]])
        terminals = layout.terminals(layout.grammar(emissions, 2))
        return layout, layout.grammar(root, 1), layout.grammar(rules, 3), terminals

    def _validate_sample(self, value: Tensor) -> None:
        torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        self.support.validate(value)


def _check_shapes(root: Tensor, rules: Tensor, emissions: Tensor) -> None:
    """Raises ModelError unless the symbols of the three tables agree."""
    if rules.dim() < 3 or rules.shape[-1] != rules.shape[-2]:
        raise ModelError(
            message(
                "rules must be (…, NT, S, S)",
                site="rules",
                value=tuple(rules.shape),
                hint="S = NT + PT symbols",
            )
        )
    nt, s = rules.shape[-3], rules.shape[-1]
    if emissions.dim() < 2 or emissions.shape[-2] != s - nt:
        hint = f"one row for each of the {s - nt} preterminals"
        raise ModelError(
            message("emissions must be (…, PT, V)", site="emissions", value=tuple(emissions.shape), hint=hint)
        )
    if root.dim() < 1 or root.shape[-1] not in (nt, s):
        hint = f"{nt} entries, or {s} where sentences may be one word"
        raise ModelError(message("root must be (…, NT)", site="root", value=tuple(root.shape), hint=hint))
