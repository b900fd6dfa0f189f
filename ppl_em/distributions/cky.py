"""The Viterbi (CKY) chart: the best subtree of every span, vectorised over diagonals and batch.

Reference:
    Younger, D. H. (1967). Recognition and parsing of context-free languages in time n³.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.distributions.inside import NEG_INF, Rules

__all__ = ["best_spans"]


def best_spans(rules: Tensor, terminals: Tensor) -> Tensor:
    """Returns the log-probability of the best subtree of each span.

    Args:
        rules: (G, NT, S, S), probability of a → b c, nonterminals first.
        terminals: (G, M, N, PT), probability of each word under each preterminal.

    Returns:
        (G, M, N + 1, N + 1, NT), by start and width, −inf where there is none.
    """
    blocks = Rules.split(rules.log())
    g, m, n, _ = terminals.shape
    words = terminals.log()
    spans = rules.new_full((g, m, n + 1, n + 1, rules.shape[1]), NEG_INF)
    for w in range(2, n + 1):
        places = n - w + 1
        cell = spans[:, :, :places, w]
        for first, last, block in _kinds(w, blocks):
            pairs = None
            for k in range(first, last):
                left = words[:, :, :places] if k == 1 else spans[:, :, :places, k]
                right = words[:, :, k : k + places] if k == w - 1 else spans[:, :, k : k + places, w - k]
                score = left.unsqueeze(-1) + right.unsqueeze(-2)
                pairs = score if pairs is None else torch.maximum(pairs, score, out=pairs)
            assert pairs is not None
            for a in range(block.shape[1]):
                best = (pairs + block[:, None, None, a]).flatten(-2).amax(-1)
                torch.maximum(cell[..., a], best, out=cell[..., a])
    return spans


def _kinds(w: int, rules: Rules) -> list[tuple[int, int, Tensor]]:
    """Returns ranges of left widths with the block of rules that applies to them."""
    if w == 2:
        return [(1, 2, rules.pp)]
    middle = [(2, w - 1, rules.nn)] if w >= 4 else []
    return [(1, 2, rules.pn), *middle, (w - 1, w, rules.np)]
