"""log Z of a grammar: the log-probability of sentences, differentiable by the grammar and the words.

Forward is the inside pass, backward the hand-written outside pass. Derivatives of derivatives (observed
information) go through `inside_reference`, which is slower and differentiable to any order.

Ranges: a float32 chart resolves symbols down to 1e-38 of the likeliest symbol over the same words. Where that
does not suffice (a sentence seems impossible, or a derivative overflows), the pass is repeated in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_em.distributions.inside import NEG_INF, Chart, inside
from ppl_em.distributions.inside_reference import inside_reference
from ppl_em.distributions.outside import Adjoints, outside

__all__ = ["Parsed", "log_partition", "parse"]


@dataclass(frozen=True)
class Parsed:
    """Sentences after the inside pass.

    Attributes:
        root: (G, S), in the dtype of the chart.
        rules: (G, NT, S, S), in the dtype of the chart.
        lengths: (G, M) int64.
        chart: The inside chart.
        tops: (G, M, S), scaled inside probabilities of the whole sentence; nonterminals where it has two
            words or more, preterminals where it has one.
        log_z: (G, M), float64: log-probability of each sentence, −inf where the grammar cannot derive it.
    """

    root: Tensor
    rules: Tensor
    lengths: Tensor
    chart: Chart
    tops: Tensor
    log_z: Tensor

    def adjoints(self, weights: Tensor) -> tuple[Tensor, Adjoints]:
        """Returns the derivatives of Σ weights · log Z, by the root (G, S) and the rest; weights (G, M)."""
        total = (self.tops * self.root.unsqueeze(1)).sum(-1)
        seed = torch.where(total > 0, weights.to(total.dtype) / total.masked_fill(total == 0, 1), 0)
        grad_root = (self.tops * seed.unsqueeze(-1)).sum(1)
        spans_sentence = _spans_sentence(self.lengths, self.rules.shape[1], self.root.shape[-1])
        seeds = spans_sentence * self.root.unsqueeze(1) * seed.unsqueeze(-1)
        return grad_root, outside(self.chart, self.rules, seeds, self.lengths)


def parse(root: Tensor, rules: Tensor, terminals: Tensor, lengths: Tensor) -> Parsed:
    """Runs the inside pass.

    Args:
        root: (G, S), probability of each root symbol.
        rules: (G, NT, S, S), probability of a → b c, nonterminals first.
        terminals: (G, M, N, PT), probability of each word under each preterminal, zero beyond a sentence's
            end.
        lengths: (G, M) int64, falling along M.

    Returns:
        Chart and log-probabilities.
    """
    parsed = _parse(root, rules, terminals, lengths)
    if root.dtype is not torch.float64 and bool((parsed.log_z == NEG_INF).any()):
        return _parse(root.double(), rules.double(), terminals.double(), lengths)
    return parsed


def log_partition(root: Tensor, rules: Tensor, terminals: Tensor, lengths: Tensor) -> Tensor:
    """Returns log Z (G, M) of `parse`'s arguments, differentiable by the first three.

    Derivatives of impossible sentences are zero.
    """
    return _LogPartition.apply(root, rules, terminals, lengths)  # type: ignore[no-any-return]


def _parse(root: Tensor, rules: Tensor, terminals: Tensor, lengths: Tensor) -> Parsed:
    chart = inside(rules, terminals, lengths)
    nt, s = rules.shape[1], root.shape[-1]
    index = lengths[..., None, None].expand(*lengths.shape, 1, nt)
    whole = chart.by_start[:, :, 0].gather(2, index).squeeze(2)
    scale = chart.scale_by_start[:, :, 0].gather(2, lengths.unsqueeze(-1)).squeeze(-1)
    tops = torch.cat([whole, chart.terminals[:, :, 0]], -1) * _spans_sentence(lengths, nt, s)
    log_z = (tops * root.unsqueeze(1)).sum(-1).double().log() + scale
    return Parsed(root, rules, lengths, chart, tops, log_z)


def _spans_sentence(lengths: Tensor, nt: int, s: int) -> Tensor:
    """Returns which symbols can span the whole sentence, (G, M, S) bool."""
    symbol = torch.arange(s, device=lengths.device)
    length = lengths.unsqueeze(-1)
    return torch.where(symbol < nt, length >= 2, length == 1)


class _LogPartition(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, root: Tensor, rules: Tensor, terminals: Tensor, lengths: Tensor) -> Tensor:
        parsed = parse(root, rules, terminals, lengths)
        ctx.save_for_backward(root, rules, terminals, lengths)
        ctx.parsed = parsed
        return parsed.log_z.to(root.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        root, rules, terminals, lengths = ctx.saved_tensors
        if torch.is_grad_enabled():  # the caller wants to differentiate again
            inputs = [x for x in (root, rules, terminals) if x.requires_grad]
            log_z = inside_reference(root, rules, terminals, lengths)
            found = iter(torch.autograd.grad(log_z, inputs, grad, create_graph=True, allow_unused=True))
            return (*(next(found) if x.requires_grad else None for x in (root, rules, terminals)), None)
        gradients = _gradients(ctx.parsed, grad)
        if not all(bool(g.isfinite().all()) for g in gradients) and root.dtype is not torch.float64:
            gradients = _gradients(_parse(root.double(), rules.double(), terminals.double(), lengths), grad)
        return (*(g.to(root.dtype) for g in gradients), None)


def _gradients(parsed: Parsed, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the derivatives of Σ weights · log Z by root, rules and unscaled terminals."""
    grad_root, adjoints = parsed.adjoints(weights)
    n = parsed.chart.num_words
    scale = parsed.chart.scale_by_start[:, :, :n, 1, None]
    largest = scale.masked_fill(scale == NEG_INF, 0).exp().to(grad_root.dtype)
    return grad_root, adjoints.rules, adjoints.terminals / largest
