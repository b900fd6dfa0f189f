"""The E-step of many chains: scaled probability space where it can be trusted, log space where it cannot."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.exact.chain_bounds import trusted
from ppl_em.exact.chain_buffers import ChainBuffers
from ppl_em.exact.chain_factors import ChainFactors, chain_factors
from ppl_em.exact.chain_groups import ChainGroups, chain_groups, ungrouped_counts
from ppl_em.exact.chain_layout import choose_layout, put_rows
from ppl_em.exact.chain_log_scan import log_messages
from ppl_em.exact.chain_log_space import log_counts
from ppl_em.exact.chain_recursions import Recursions
from ppl_em.exact.chain_scaled import (
    ScaledTransitions,
    scaled_chains,
    scaled_transitions,
)
from ppl_em.exact.chain_scan import backward_to_boundaries, forward_from_boundaries


@dataclass(frozen=True)
class Expectations:
    """Log-partition and, where they were asked for, expected counts.

    Attributes:
        log_z: ``(*B)`` nats, float64.
        gamma: ``(*B, T, K)`` marginals of the states, or None.
        xi: Transition counts in the shape of ``log_trans``, or None.
    """

    log_z: Tensor
    gamma: Tensor | None
    xi: Tensor | None


def expectations(
    chain: ChainFactors,
    weight: Tensor | None = None,
    counts: bool = True,
    buffers: ChainBuffers | None = None,
) -> Expectations:
    """Log-partition and expected counts of a batch of chains.

    Args:
        chain: The factors.
        weight: ``(*B, T)`` how often the transition into each step counts, or None for once.
        counts: Whether counts are wanted.
        buffers: Memory for the work arrays and the marginals, or None to allocate anew.
    """
    if chain.log_obs.numel() == 0:
        return _in_log_space(chain, weight, counts)
    groups, buffers = chain_groups(chain, weight), buffers or ChainBuffers()
    trans = scaled_transitions(groups.log_trans)
    log_obs = groups.log_obs
    log_z = log_obs.new_empty(log_obs.shape[:2], dtype=torch.float64)
    gamma = buffers.take("gamma", log_obs.shape, log_obs) if counts else None
    xi = torch.zeros_like(groups.log_trans) if counts else None
    for piece in groups.pieces():
        part = groups.part(piece, buffers)
        log_z[:, piece.rows] = _scaled(part, trans, buffers, piece.rows, gamma, xi)
    _repair(groups, log_z, gamma, xi)
    return Expectations(
        log_z.reshape(chain.batch_shape),
        None if gamma is None else gamma.reshape(chain.log_obs.shape),
        None if xi is None else ungrouped_counts(chain, xi),
    )


def _scaled(
    groups: ChainGroups,
    trans: ScaledTransitions,
    buffers: ChainBuffers,
    rows: slice | Tensor,
    gamma: Tensor | None,
    xi: Tensor | None,
) -> Tensor:
    """Run the scaled recursions.

    Args:
        groups: The chains, perhaps without padding.
        trans: Their transitions.
        buffers: Memory for the work arrays.
        rows: Which of all chains they are.
        gamma: ``(G, N, T, K)`` whose rows are to be filled with marginals, padding included, or None.
        xi: ``(G, T', K, K)`` to be added to, or None.

    Returns:
        ``(G, N)`` log-partitions; those that are not a number cannot be trusted and have counted nothing.
    """
    num_groups, num_chains, num_steps, _ = groups.log_obs.shape
    layout = choose_layout(num_groups, num_chains, num_steps, trans.differ)
    run = Recursions(scaled_chains(groups.log_init, trans, groups.log_obs, layout, buffers), buffers)
    start = forward_from_boundaries(run)
    unsure = ~trusted(run, start)
    log_z = run.log_z().masked_fill_(unsure, torch.nan)
    if gamma is None or xi is None:
        return log_z
    if bool(unsure.any()):
        run.leave_out(unsure, start)
    weight, active = groups.weight, groups.active
    if active is not None and layout.num_blocks > 1:  # the first chains are not the first columns then
        chains = torch.arange(num_chains, device=gamma.device)
        weight, active = (chains.unsqueeze(-1) < chains.new_tensor(active[:num_steps])).unsqueeze(0), None
    if weight is not None:
        weight = layout.stack(weight.unsqueeze(-1), buffers, "weight", like=trans.into).squeeze(-2)
    marginals, pairs = run.counts(start, backward_to_boundaries(run), weight, active)
    layout.unstack(marginals, gamma, rows)
    if trans.differ:
        pairs = layout.unstack_transitions(pairs)[1:]
    xi += pairs.movedim(0, 1)
    if num_steps < gamma.shape[2]:
        last = gamma[0, rows, num_steps - 1].T.contiguous()
        ahead = _ahead(last, groups.log_trans[0, 0].exp(), gamma.shape[2] - num_steps, buffers)
        put_rows(gamma[:, :, num_steps:], rows, ahead.permute(2, 0, 1).unsqueeze(0))
    return log_z


def _ahead(last: Tensor, trans: Tensor, num_steps: int, buffers: ChainBuffers) -> Tensor:
    """Marginals ``(num_steps, K, N)`` of unobserved steps that follow the marginals ``last`` ``(K, N)``."""
    into, ahead = trans.T.contiguous(), buffers.take("ahead", (num_steps, *last.shape), last)
    for message in ahead.unbind(0):
        torch.mm(into, last, out=message)
        last = message
    return ahead


def _repair(groups: ChainGroups, log_z: Tensor, gamma: Tensor | None, xi: Tensor | None) -> None:
    """Do the chains that the scaled recursions cannot do again in log space; they have not counted so far."""
    unsure = log_z.isnan()
    if not bool(unsure.any()):
        return
    for group, chains in enumerate(unsure):
        chain = chain_factors(groups.log_init[group, chains], groups.log_trans[group], groups.log_obs[group, chains])
        weight = None if groups.weight is None else groups.weight[group, chains]
        done = _in_log_space(chain, weight, gamma is not None)
        log_z[group, chains] = done.log_z
        if gamma is not None and xi is not None and done.gamma is not None and done.xi is not None:
            gamma[group, chains] = done.gamma
            xi[group] += done.xi


def _in_log_space(chain: ChainFactors, weight: Tensor | None, counts: bool) -> Expectations:
    forward, backward, log_z = log_messages(chain)
    if not counts:
        return Expectations(log_z, None, None)
    return Expectations(log_z, *log_counts(chain, forward, backward, weight))
