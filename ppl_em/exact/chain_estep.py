"""The E-step of many chains: which kernel runs on which of them, in pieces that stay in cache.

Scaled probability space where it can be trusted, log space for the chains where it cannot; sequences padded
to a common length are sorted, so that padding is not worked on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.exact.chain_factors import ChainFactors, chain_factors
from ppl_em.exact.chain_layout import choose_layout
from ppl_em.exact.chain_log_space import log_backward, log_counts, log_forward
from ppl_em.exact.chain_scaled import Recursions, rescaling_period, scaled_chains, scaled_transitions
from ppl_em.exact.chain_scan import backward_to_boundaries, forward_from_boundaries

# Elements of the observations that are worked on at a time, and the fewest chains worth a matrix of their
# own.
_PIECE = 1 << 20
_FEWEST_COLUMNS = 256


@dataclass(frozen=True)
class Expectations:
    """Log-partition and, where they were asked for, expected counts.

    Attributes:
        log_z: ``(*B)`` nats, float64.
        gamma: ``(*B, T, K)`` marginals of the states.
        xi: Transition counts in the shape of ``log_trans``.
    """

    log_z: Tensor
    gamma: Tensor | None
    xi: Tensor | None


@dataclass(frozen=True)
class _Groups:
    """Chains by the transition they share: ``G`` groups of ``N``.

    Attributes:
        log_init: ``(G, N, K)``.
        log_trans: ``(G, T', K, K)``.
        log_obs: ``(G, N, T, K)``.
        weight: ``(G, N, T)`` or None.
    """

    log_init: Tensor
    log_trans: Tensor
    log_obs: Tensor
    weight: Tensor | None


def expectations(chain: ChainFactors, weight: Tensor | None = None, counts: bool = True) -> Expectations:
    """Log-partition and expected counts of a batch of chains.

    Args:
        chain: The factors.
        weight: ``(*B, T)`` how often the transition into each step counts, or None for once.
        counts: Whether counts are wanted.
    """
    if chain.log_obs.numel() == 0:
        return _in_log_space(chain, weight, counts)
    groups, trans_shape = _grouped(chain, weight)
    trans = scaled_transitions(groups.log_trans, chain.num_steps)
    period = rescaling_period(trans[0])
    if not period:
        return _in_log_space(chain, weight, counts)
    log_z = groups.log_obs.new_empty(groups.log_obs.shape[:2], dtype=torch.float64)
    gamma = torch.empty_like(groups.log_obs, memory_format=torch.contiguous_format) if counts else None
    xi = torch.zeros_like(groups.log_trans) if counts else None
    for rows in _pieces(groups):
        _piece(groups, trans, period, rows, log_z, gamma, xi)
    _repair(groups, log_z, gamma, xi)
    return Expectations(
        log_z.reshape(chain.batch_shape),
        None if gamma is None else gamma.reshape(chain.log_obs.shape),
        None if xi is None else xi.reshape(trans_shape).sum_to_size(chain.log_trans.shape),
    )


def _grouped(chain: ChainFactors, weight: Tensor | None) -> tuple[_Groups, tuple[int, ...]]:
    """The chains grouped by the transition they share, and the shape in which their counts are ungrouped."""
    batch, matrix = chain.batch_shape, chain.log_trans.shape[-2:]
    log_trans = chain.log_trans if chain.log_trans.dim() > 2 else chain.log_trans.unsqueeze(0)
    own = (1,) * (len(batch) - log_trans.dim() + 3) + tuple(log_trans.shape[:-3])
    split = max((i + 1 for i, size in enumerate(own) if size > 1), default=0)
    shape = (*batch[:split], *own[split:], log_trans.shape[-3], *matrix)
    groups, chains = batch[:split].numel(), batch[split:].numel()
    return (
        _Groups(
            chain.log_init.reshape(groups, chains, -1),
            log_trans.expand(shape).reshape(groups, *shape[-3:]),
            chain.log_obs.reshape(groups, chains, *chain.log_obs.shape[-2:]),
            None if weight is None else weight.reshape(groups, chains, -1),
        ),
        shape,
    )


def _pieces(groups: _Groups) -> list[slice]:
    """Which chains to work on at a time."""
    num_groups, num_chains, num_steps, num_states = groups.log_obs.shape
    size = max(_FEWEST_COLUMNS, _PIECE // (num_steps * num_states * num_groups))
    size = -(-num_chains // -(-num_chains // size))
    return [slice(i, i + size) for i in range(0, num_chains, size)]


def _piece(
    groups: _Groups,
    trans: tuple[Tensor, Tensor],
    period: int,
    rows: slice,
    log_z: Tensor,
    gamma: Tensor | None,
    xi: Tensor | None,
) -> None:
    """Run the scaled recursions on some of the chains, writing their rows and adding to ``xi``."""
    log_obs = groups.log_obs[:, rows]
    num_groups, num_chains, num_steps, _ = log_obs.shape
    layout = choose_layout(num_groups, num_chains, num_steps, len(trans[0]) > 1)
    run = Recursions(scaled_chains(groups.log_init[:, rows], trans, log_obs, layout, period))
    start = forward_from_boundaries(run)
    log_z[:, rows] = run.log_z()
    if gamma is None or xi is None:
        return
    weight = None
    usable = log_z[:, rows].isfinite()
    if groups.weight is not None or not usable.all():
        weight = usable.unsqueeze(-1).to(log_obs.dtype).expand(log_obs.shape[:-1])
        weight = weight if groups.weight is None else weight * groups.weight[:, rows]
        weight = layout.stack(weight.unsqueeze(-1)).squeeze(-2)
    marginals, pairs = run.counts(start, backward_to_boundaries(run), weight)
    gamma[:, rows] = layout.unstack(marginals)
    pairs = pairs.movedim(0, 1) if len(trans[0]) == 1 else layout.unstack_transitions(pairs)[1:].movedim(0, 1)
    xi += pairs


def _repair(groups: _Groups, log_z: Tensor, gamma: Tensor | None, xi: Tensor | None) -> None:
    """Do the chains that the scaled recursions cannot do again in log space; they have not counted so far."""
    for group, chains in enumerate(~log_z.isfinite()):
        if not bool(chains.any()):
            continue
        chain = chain_factors(
            groups.log_init[group, chains], groups.log_trans[group], groups.log_obs[group, chains]
        )
        weight = None if groups.weight is None else groups.weight[group, chains]
        done = _in_log_space(chain, weight, gamma is not None)
        log_z[group, chains] = done.log_z
        if gamma is not None and xi is not None and done.gamma is not None and done.xi is not None:
            gamma[group, chains] = done.gamma
            xi[group] += done.xi


def _in_log_space(chain: ChainFactors, weight: Tensor | None, counts: bool) -> Expectations:
    forward, log_z = log_forward(chain)
    if not counts:
        return Expectations(log_z, None, None)
    return Expectations(log_z, *log_counts(chain, forward, log_backward(chain), weight))
