"""The posterior over the parse trees of given sentences."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.distributions.batching import Layout
from ppl_em.distributions.cky import best_spans
from ppl_em.distributions.derivations import LogChart, best, descend, random_choice
from ppl_em.distributions.log_partition import Parsed, parse
from ppl_em.distributions.trees import ParseTree
from ppl_em.errors import DataError, message

__all__ = ["PCFGPosterior"]


@dataclass(frozen=True)
class PCFGPosterior:
    """Posterior over parse trees, given a grammar and sentences.

    Made by `PCFG.posterior`. Trees come as flat lists, in the row-major order of the batch.

    Attributes:
        layout: Arrangement of the batch.
        parsed: The inside chart.
        terminals: (G, M, N, PT), float64, probability of each word under each preterminal.
        emissions: (…, PT, V), as given to the grammar.
    """

    layout: Layout
    parsed: Parsed
    terminals: Tensor
    emissions: Tensor

    @staticmethod
    def of(layout: Layout, root: Tensor, rules: Tensor, terminals: Tensor, emissions: Tensor) -> PCFGPosterior:
        """Parses the arranged sentences; raises DataError where one cannot be derived."""
        terminals = terminals.double()
        parsed = parse(root.double(), rules.double(), terminals, layout.lengths)
        impossible = layout.restore(parsed.log_z.isneginf())
        if bool(impossible.any()):
            where = [tuple(index) for index in impossible.nonzero().tolist()][:5]
            raise DataError(
                message(
                    f"the grammar cannot derive {int(impossible.sum())} sentences, so they have no posterior",
                    value=f"batch indices {where}",
                    hint="log_prob, which is -inf for them, to find them",
                )
            )
        return PCFGPosterior(layout, parsed, terminals, emissions)

    @property
    def log_z(self) -> Tensor:
        """Log-probability of each sentence, (*batch)."""
        return self.layout.restore(self.parsed.log_z).to(self.emissions.dtype)

    def expected_counts(self) -> dict[str, Tensor]:
        """Posterior expectation of the use of each root symbol, rule and emission, sentence by sentence.

        Returns:
            ``root`` (*batch, S), ``rules`` (*batch, NT, S, S), ``emissions`` (*batch, PT, V).
        """
        pieces = [self._counts(m) for m in range(self.layout.lengths.shape[1])]
        stacked = (torch.stack(piece, 1) for piece in zip(*pieces, strict=True))
        restored = (self.layout.restore(piece).to(self.emissions.dtype) for piece in stacked)
        return dict(zip(("root", "rules", "emissions"), restored, strict=True))

    def span_marginals(self) -> Tensor:
        """Posterior probability that a symbol covers a span.

        Returns:
            (*batch, N, N, S): entry [i, j, a] for symbol a over words i … j, both included; N is the longest
            length.
        """
        _, adjoints = self.parsed.adjoints(torch.ones_like(self.parsed.log_z))
        chart = self.parsed.chart
        n, nt = chart.num_words, self.parsed.rules.shape[1]
        wide = adjoints.cells * chart.by_start
        start = torch.arange(n, device=wide.device).unsqueeze(-1)
        width = torch.arange(n, device=wide.device) - start + 1
        spans = wide[:, :, start.expand_as(width), width.clamp(min=0)] * (width >= 2).unsqueeze(-1)
        words = torch.diag_embed((adjoints.terminals * chart.terminals).movedim(-1, -2)).movedim(-3, -1)
        marginals = torch.cat([spans, words.expand(*spans.shape[:-1], words.shape[-1])], -1)
        assert marginals.shape[-1] == self.parsed.rules.shape[-1] == nt + words.shape[-1]
        return self.layout.restore(marginals).to(self.emissions.dtype)

    def entropy(self) -> Tensor:
        """Entropy of the posterior over trees, in nats, (*batch): log Z − E[log p(tree, sentence)]."""
        pieces = [self._mean_log_prob(m) for m in range(self.layout.lengths.shape[1])]
        entropy = self.parsed.log_z - torch.stack(pieces, 1)
        return self.layout.restore(entropy).clamp(min=0).to(self.emissions.dtype)

    def mode(self) -> list[ParseTree]:
        """Returns the most probable tree of each sentence (Viterbi parse)."""
        spans = best_spans(self.parsed.rules, self.terminals)
        return [trees[0] for trees in self._descend(spans, 1, None, greedy=True)]

    def sample(self, num_samples: int = 1, generator: torch.Generator | None = None) -> list[list[ParseTree]]:
        """Draws trees from the posterior.

        Args:
            num_samples: Number of draws for each sentence.
            generator: Source of random numbers; torch's global one if None.

        Returns:
            For each sentence its draws.
        """
        chart = self.parsed.chart
        spans = chart.by_start.log() + chart.scale_by_start.unsqueeze(-1)
        return self._descend(spans, num_samples, generator, greedy=False)

    def _descend(
        self, spans: Tensor, count: int, generator: torch.Generator | None, greedy: bool
    ) -> list[list[ParseTree]]:
        root, rules = (x.log().cpu().numpy() for x in (self.parsed.root, self.parsed.rules))
        words = self.terminals.log().cpu().numpy()
        cells = spans.cpu().numpy()
        lengths = self.layout.lengths.tolist()
        rows = [(g, m) for g in range(len(lengths)) for m in range(len(lengths[g]))]
        index = torch.arange(len(rows), device=spans.device).reshape(self.layout.lengths.shape)
        result = []
        for row in self.layout.restore(index).flatten().tolist():
            g, m = rows[row]
            n = lengths[g][m]
            chart = LogChart(root[g], rules[g], words[g, m, :n], cells[g, m, : n + 1, : n + 1])
            sentence = tuple(self.layout.tokens[g, m, :n].tolist())
            choose = best if greedy else random_choice(generator)
            result.append(descend(chart, sentence, count, choose))
        return result

    def _counts(self, m: int) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the counts of the m-th sentence of each grammar, (G, S), (G, NT, S, S), (G, PT, V)."""
        parsed = self._one(m)
        grad_root, adjoints = parsed.adjoints(torch.ones_like(parsed.log_z))
        words = adjoints.terminals[:, 0] * parsed.chart.terminals[:, 0]
        tokens = self.layout.tokens[:, m].clamp(min=0, max=self.emissions.shape[-1] - 1)
        counts = words.new_zeros(*words.shape[:1], words.shape[2], self.emissions.shape[-1])
        counts.scatter_add_(2, tokens.unsqueeze(1).expand(-1, words.shape[2], -1), words.mT)
        return grad_root * parsed.root, adjoints.rules * parsed.rules, counts

    def _mean_log_prob(self, m: int) -> Tensor:
        """Returns E[log p(tree, sentence)] of the m-th sentence of each grammar, (G,)."""
        parsed = self._one(m)
        grad_root, adjoints = parsed.adjoints(torch.ones_like(parsed.log_z))
        words = adjoints.terminals[:, 0] * parsed.chart.terminals[:, 0]
        terms = (
            (grad_root * parsed.root, parsed.root),
            (adjoints.rules * parsed.rules, parsed.rules),
            (words, self.terminals[:, m]),
        )
        means = [torch.xlogy(count, p).where(count > 0, 0).flatten(1).sum(-1) for count, p in terms]
        return means[0] + means[1] + means[2]

    def _one(self, m: int) -> Parsed:
        """Parses the m-th sentence of each grammar alone."""
        lengths = self.layout.lengths[:, [m]]
        return parse(self.parsed.root, self.parsed.rules, self.terminals[:, [m]], lengths)
