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

    def part(self, rows: slice | Tensor) -> _Groups:
        """Some of the chains."""
        return _Groups(
            _rows_of(self.log_init, rows),
            self.log_trans,
            _rows_of(self.log_obs, rows),
            None if self.weight is None else _rows_of(self.weight, rows),
        )

    def without_padding(self, num_steps: int) -> _Groups:
        """The first steps alone if nothing is observed later, else all."""
        if bool(self.log_obs[:, :, num_steps:].any()):
            return self
        weight = None if self.weight is None else self.weight[:, :, :num_steps]
        return _Groups(self.log_init, self.log_trans, self.log_obs[:, :, :num_steps], weight)


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
    trans = scaled_transitions(groups.log_trans)
    period = rescaling_period(trans[0])
    if not period:
        return _in_log_space(chain, weight, counts)
    log_z = groups.log_obs.new_empty(groups.log_obs.shape[:2], dtype=torch.float64)
    gamma = torch.empty_like(groups.log_obs, memory_format=torch.contiguous_format) if counts else None
    xi = torch.zeros_like(groups.log_trans) if counts else None
    for rows, num_steps in _pieces(groups):
        part = groups.part(rows).without_padding(num_steps)
        part_gamma = gamma
        if gamma is not None:
            shape = (1, len(rows), *gamma.shape[2:]) if isinstance(rows, Tensor) else ()
            part_gamma = gamma.new_empty(shape) if shape else gamma[:, rows]
        log_z[:, rows] = _scaled(part, trans, period, part_gamma, xi)
        if gamma is not None and part_gamma is not None and isinstance(rows, Tensor):
            gamma.index_copy_(1, rows, part_gamma)
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


def _rows_of(array: Tensor, rows: slice | Tensor) -> Tensor:
    """Some chains of ``(G, N, ...)``: a view of those that lie together; any of a single group."""
    return array[:, rows] if isinstance(rows, slice) else array[0].index_select(0, rows).unsqueeze(0)


def _pieces(groups: _Groups) -> list[tuple[slice | Tensor, int]]:
    """Which chains to work on at a time, and how many of their steps: padding may be left out."""
    num_groups, num_chains, num_steps, num_states = groups.log_obs.shape
    size = max(_FEWEST_COLUMNS, _PIECE // (num_steps * num_states * num_groups))
    size = -(-num_chains // -(-num_chains // size))
    starts = range(0, num_chains, size)
    lengths = _lengths(groups)
    if lengths is None:
        return [(slice(i, i + size), num_steps) for i in starts]
    order = lengths.argsort(descending=True)
    rows = [order[i : i + size] for i in starts]
    return [(row, int(lengths[row[0]])) for row in rows]


def _lengths(groups: _Groups) -> Tensor | None:
    """Steps ``(N)`` of each chain up to the last transition that counts; None where later steps matter too.

    A step whose transition does not count and that nothing is observed from on changes nothing if the
    transition from each state sums to one.
    """
    if groups.weight is None or groups.log_trans.shape[:2] != (1, 1):
        return None
    sums = groups.log_trans.logsumexp(-1)
    if not bool((sums.abs() <= 16 * torch.finfo(sums.dtype).eps).all()):
        return None
    steps = torch.arange(1, groups.weight.shape[-1] + 1, device=sums.device)
    return ((groups.weight[0] != 0) * steps).amax(-1).clamp_(min=1)


def _scaled(
    groups: _Groups, trans: tuple[Tensor, Tensor], period: int, gamma: Tensor | None, xi: Tensor | None
) -> Tensor:
    """Run the scaled recursions.

    Args:
        groups: The chains, perhaps without padding.
        trans: Of `scaled_transitions`.
        period: Of `rescaling_period`.
        gamma: ``(G, N, T, K)`` to be filled with marginals, padding included, or None.
        xi: ``(G, T', K, K)`` to be added to, or None.

    Returns:
        ``(G, N)`` log-partitions; those that are not finite have counted nothing.
    """
    log_obs = groups.log_obs
    num_steps = log_obs.shape[2]
    layout = choose_layout(log_obs.shape[0], log_obs.shape[1], num_steps, len(trans[0]) > 1)
    run = Recursions(scaled_chains(groups.log_init, trans, log_obs, layout, period))
    start = forward_from_boundaries(run)
    log_z = run.log_z()
    if gamma is None or xi is None:
        return log_z
    weight, usable = groups.weight, log_z.isfinite()
    if not bool(usable.all()):
        every = usable.unsqueeze(-1).to(log_obs.dtype).expand(log_obs.shape[:-1])
        weight = every if weight is None else weight * every
    if weight is not None:
        weight = layout.stack(weight.unsqueeze(-1)).squeeze(-2)
    marginals, pairs = run.counts(start, backward_to_boundaries(run), weight)
    layout.unstack(marginals, gamma[:, :, :num_steps])
    if len(trans[0]) > 1:
        pairs = layout.unstack_transitions(pairs)[1:]
    xi += pairs.movedim(0, 1)
    if num_steps < gamma.shape[2]:
        _continue(gamma, num_steps, groups.log_trans[0, 0].exp())
    return log_z


def _continue(gamma: Tensor, num_steps: int, trans: Tensor) -> None:
    """Fill the marginals ``gamma`` ``(1, N, T, K)`` of unobserved steps after the first ``num_steps``."""
    last, into = gamma[0, :, num_steps - 1].T.contiguous(), trans.T.contiguous()
    ahead = last.new_empty(gamma.shape[2] - num_steps, *last.shape)
    for message in ahead:
        torch.mm(into, last, out=message)
        last = message
    gamma[0, :, num_steps:].copy_(ahead.permute(2, 0, 1))


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
