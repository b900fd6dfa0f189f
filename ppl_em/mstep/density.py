"""Σ w log p(x) through the family's own log-density: what every rule is judged by."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_em.mstep.block import Block

Term = Callable[[Mapping[str, Tensor]], Tensor]


def build(family: Callable[..., Any], args: Mapping[str, Tensor]) -> Any:
    """The distribution with these arguments, unvalidated (proposals may lie on the boundary).

    Args:
        family: a distribution class.
        args: arguments by name.
    """
    given: dict[str, Any] = dict(args)
    if isinstance(family, type) and issubclass(family, torch.distributions.Multinomial):
        # Its total count must be one int, and its log-density does not depend on it.
        given["total_count"] = int(args["total_count"].max()) if "total_count" in args else 1
    return family(**given, validate_args=False)


def log_likelihood_terms(blocks: tuple[Block, ...], event_dim: int, family: Callable[..., Any]) -> Iterator[Term]:
    """Terms of Σ w log p(x | args), each over a bounded number of data.

    A term maps the arguments by row (R, *arg_event) to a scalar and is differentiable in them, so that
    derivatives can be added up without holding the graph of all data at once.

    Args:
        blocks: the data.
        event_dim: number of event dimensions of one datum.
        family: the distribution class.
    """
    for block in blocks:
        alive = (block.weights > 0).any(1)
        if not bool(alive.any()):
            continue
        values = block.values[alive] if block.per_row(event_dim) else block.values
        live = Block(block.weights[alive], values, block.rows[alive])
        factor = 1 if live.per_row(event_dim) else len(live.weights)
        for weights, x in live.chunks(event_dim, factor):
            if bool((weights == 0).any()):
                x = _revive(live, weights, x, event_dim)
            yield _term(family, live.rows, live.widen(weights), x)


def _term(family: Callable[..., Any], rows: Tensor, weights: Tensor, x: Tensor) -> Term:
    def term(args: Mapping[str, Tensor]) -> Tensor:
        distribution = build(family, {name: value[rows].unsqueeze(1) for name, value in args.items()})
        log_prob = distribution.log_prob(x)
        if _support_moves(family):
            log_prob = torch.where(distribution.support.check(x), log_prob, -torch.inf)
        return torch.where(weights > 0, weights * log_prob, 0.0).sum()

    return term


def _support_moves(family: Any) -> bool:
    """Whether the arguments of a continuous family bound its support (Pareto's scale)."""
    support = getattr(family, "support", None)
    return constraints.is_dependent(support) and not getattr(support, "is_discrete", True)


def _revive(block: Block, weights: Tensor, x: Tensor, event_dim: int) -> Tensor:
    """Replace data without weight by some datum with weight in the same row (R_b, i, *E, *event).

    A datum outside the support would otherwise make 0 · ∞ in the gradient. A row without any weight in this
    chunk gets a datum that has weight in another row.
    """
    live = weights > 0
    chosen = live.to(torch.uint8).argmax(1)
    own = live.any(1)
    index = torch.arange(len(weights), device=x.device)
    if block.per_row(event_dim):
        stand_in = x[index, chosen]
    else:
        stand_in = x[chosen]
        x = x.unsqueeze(0)
    if bool(own.any()):
        stand_in = stand_in[torch.where(own, index, own.to(torch.uint8).argmax())]
    return torch.where(block.widen(live, event_dim), x, stand_in.unsqueeze(1))
