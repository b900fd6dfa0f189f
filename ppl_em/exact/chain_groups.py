"""Chains arranged for matrix products: by the transition they share, in pieces that stay in cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.exact.chain_buffers import ChainBuffers
from ppl_em.exact.chain_factors import ChainFactors

# Elements of the observations that are worked on at a time, and the fewest chains worth a matrix of their
# own.
_PIECE = 1 << 20
_FEWEST_COLUMNS = 256


@dataclass(frozen=True)
class Piece:
    """Some of the chains, to be worked on at a time.

    Attributes:
        rows: Which: a slice, or positions if there is one group.
        num_steps: How many of their steps matter if nothing is observed later.
        active: How many of the chains, the first ones, have a transition that counts into each step; None where
            weights say how often each counts.
    """

    rows: slice | Tensor
    num_steps: int
    active: tuple[int, ...] | None = None


@dataclass(frozen=True)
class ChainGroups:
    """Chains by the transition they share: ``G`` groups of ``N``.

    Attributes:
        log_init: ``(G, N, K)``.
        log_trans: ``(G, T', K, K)``; ``T'`` is 1 or ``T - 1``.
        log_obs: ``(G, N, T, K)``.
        weight: ``(G, N, T)`` how often the transition into each step counts, or None for once.
        active: As in `Piece`.
    """

    log_init: Tensor
    log_trans: Tensor
    log_obs: Tensor
    weight: Tensor | None
    active: tuple[int, ...] | None = None

    def part(self, piece: Piece, buffers: ChainBuffers) -> ChainGroups:
        """Some of the chains, without the steps that do not matter.

        Args:
            piece: Of `pieces`.
            buffers: Memory for chains that do not lie together.
        """
        rows, num_steps = piece.rows, piece.num_steps
        if isinstance(rows, Tensor):
            log_obs = buffers.take("rows", (1, len(rows), *self.log_obs.shape[2:]), self.log_obs)
            torch.index_select(self.log_obs[0], 0, rows, out=log_obs[0])
        else:
            log_obs = self.log_obs[:, rows]
        if num_steps < log_obs.shape[2] and not bool(log_obs[:, :, num_steps:].any()):
            log_obs = log_obs[:, :, :num_steps]
        weight = None
        if self.weight is not None and piece.active is None:
            weight = self.weight[:, rows, : log_obs.shape[2]]
        return ChainGroups(self.log_init[:, rows], self.log_trans, log_obs, weight, piece.active)

    def pieces(self) -> list[Piece]:
        """The chains in pieces; padded ones sorted by length, so that their padding can be left out."""
        num_groups, num_chains, num_steps, num_states = self.log_obs.shape
        size = max(_FEWEST_COLUMNS, _PIECE // (num_steps * num_states * num_groups))
        size = -(-num_chains // -(-num_chains // size))
        starts, lengths = range(0, num_chains, size), self._lengths()
        if lengths is None or self.weight is None:
            return [Piece(slice(i, i + size), num_steps) for i in starts]
        order = lengths.argsort(descending=True)
        steps = torch.arange(num_steps, device=lengths.device)
        alive = steps < lengths.unsqueeze(-1)
        plain = bool((self.weight[0, :, 1:] == alive[:, 1:]).all())
        pieces = []
        for rows in (order[i : i + size] for i in starts):
            active = tuple(alive[rows].sum(0).tolist()) if plain else None
            pieces.append(Piece(rows, int(lengths[rows[0]]), active))
        return pieces

    def _lengths(self) -> Tensor | None:
        """Steps ``(N)`` of each chain up to the last transition that counts; None where later may matter.

        Steps whose transitions do not count and at which nothing is observed change nothing if the
        transitions from each state sum to one.
        """
        if self.weight is None or self.log_trans.shape[:2] != (1, 1):
            return None
        sums = self.log_trans.logsumexp(-1)
        if not bool((sums.abs() <= 16 * torch.finfo(sums.dtype).eps).all()):
            return None
        steps = torch.arange(1, self.weight.shape[-1] + 1, dtype=torch.int32, device=sums.device)
        lengths = ((self.weight[0] != 0) * steps).amax(-1).clamp_(min=1)
        return lengths if int(lengths.min()) < len(steps) else None


def chain_groups(chain: ChainFactors, weight: Tensor | None) -> ChainGroups:
    """Group the chains of a batch by the transition they share.

    Args:
        chain: The factors.
        weight: ``(*B, T)`` how often the transition into each step counts, or None for once.
    """
    split, shape = _grouped_shape(chain)
    groups, chains = chain.batch_shape[:split].numel(), chain.batch_shape[split:].numel()
    log_trans = chain.log_trans if chain.log_trans.dim() > 2 else chain.log_trans.unsqueeze(0)
    return ChainGroups(
        chain.log_init.reshape(groups, chains, -1),
        log_trans.expand(shape).reshape(groups, *shape[-3:]),
        chain.log_obs.reshape(groups, chains, *chain.log_obs.shape[-2:]),
        None if weight is None else weight.reshape(groups, chains, -1),
    )


def ungrouped_counts(chain: ChainFactors, xi: Tensor) -> Tensor:
    """Transition counts ``(G, T', K, K)`` of the groups in the shape of ``chain.log_trans``."""
    return xi.reshape(_grouped_shape(chain)[1]).sum_to_size(chain.log_trans.shape)


def _grouped_shape(chain: ChainFactors) -> tuple[int, tuple[int, ...]]:
    """How many leading batch dimensions count groups, and ``log_trans``'s shape with those expanded."""
    batch, own = chain.batch_shape, chain.log_trans.shape
    own = (1,) * (len(batch) + 3 - len(own)) + tuple(own)
    split = max((i + 1 for i in range(len(batch)) if own[i] > 1), default=0)
    return split, (*batch[:split], *own[split:])
