"""The messages of a chain, by the fastest recursion that can be trusted, for its queries."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ppl_em.exact.chain_bounds import trusted
from ppl_em.exact.chain_buffers import ChainBuffers
from ppl_em.exact.chain_factors import ChainFactors, chain_factors
from ppl_em.exact.chain_groups import ChainGroups, chain_groups
from ppl_em.exact.chain_layout import choose_layout
from ppl_em.exact.chain_log_scan import log_messages
from ppl_em.exact.chain_log_space import probabilities
from ppl_em.exact.chain_recursions import Recursions
from ppl_em.exact.chain_scaled import ScaledTransitions, scaled_chains, scaled_transitions
from ppl_em.exact.chain_scan import backward_to_boundaries, forward_from_boundaries

# Elements of the ``(steps, *B, K, K)`` work arrays that are held at a time.
_CHUNK = 1 << 20


def forward_messages(chain: ChainFactors) -> Tensor:
    """``(*B, T, K)`` log p(state | observations up to the step), ``-inf`` once a chain is impossible."""
    return _messages(chain, backward=False)[0]


def chain_messages(chain: ChainFactors) -> tuple[Tensor, Tensor]:
    """Both messages.

    Args:
        chain: The factors.

    Returns:
        ``(*B, T, K)`` of `forward_messages`, and ``(*B, T, K)`` log of the summed weight of all continuations
        of each step and state, up to a constant for each step and chain. The latter are right for states
        whose posterior probability is not negligible.
    """
    return _messages(chain, backward=True)


def _messages(chain: ChainFactors, backward: bool) -> tuple[Tensor, Tensor]:
    if chain.log_obs.numel() == 0:
        return chain.log_obs.clone(), chain.log_obs.clone()
    groups, buffers = chain_groups(chain, None), ChainBuffers()
    trans = scaled_transitions(groups.log_trans)
    alpha = groups.log_obs.new_empty(groups.log_obs.shape)
    beta = torch.empty_like(alpha) if backward else alpha[..., :0]
    unsure = torch.empty(alpha.shape[:2], dtype=torch.bool, device=alpha.device)
    for piece in groups.pieces():
        part, rows = groups.part(piece, buffers), piece.rows
        unsure[:, rows] = _piece(part, trans, buffers, alpha[:, rows], beta[:, rows])
    alpha.log_()
    beta.log_()
    _repair(groups, unsure, alpha, beta)
    shape = chain.log_obs.shape
    return alpha.reshape(shape), beta.reshape(shape) if backward else alpha[..., :0]


def _piece(groups: ChainGroups, trans: ScaledTransitions, buffers: ChainBuffers, alpha: Tensor, beta: Tensor) -> Tensor:
    """Fill ``alpha`` and ``beta`` ``(G, N, T, K)``, and say which chains ``(G, N)`` cannot be trusted."""
    layout = choose_layout(alpha.shape[0], alpha.shape[1], alpha.shape[2], trans.differ)
    run = Recursions(scaled_chains(groups.log_init, trans, groups.log_obs, layout, buffers), buffers)
    start = forward_from_boundaries(run)
    unsure = ~trusted(run, start)
    if bool(unsure.any()):
        run.leave_out(unsure, start)
    if beta.shape[-1]:
        messages = buffers.take("beta", run.alpha.shape, run.alpha)
        run.backward(backward_to_boundaries(run), messages)
        layout.unstack(messages.div_(messages.amax(-2, keepdim=True)), beta, slice(None))
    total = run.alpha.sum(-2, keepdim=True)
    layout.unstack(run.alpha.div_(total), alpha, slice(None))
    return unsure


def _repair(groups: ChainGroups, unsure: Tensor, alpha: Tensor, beta: Tensor) -> None:
    """Do the chains that the scaled recursions cannot do again in log space."""
    for group, chains in enumerate(unsure):
        if not bool(chains.any()):
            continue
        chain = chain_factors(groups.log_init[group, chains], groups.log_trans[group], groups.log_obs[group, chains])
        forward, backward, _ = log_messages(chain)
        alpha[group, chains] = forward.movedim(0, -2)
        if beta.shape[-1]:
            beta[group, chains] = backward.movedim(0, -2)


def posterior_chain(
    chain: ChainFactors, forward: Tensor, backward: Tensor, start: int = 1, stop: int | None = None
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """The states' Markov chain given the observations, in stretches of steps.

    Args:
        chain: The factors.
        forward: ``(*B, T, K)`` of `chain_messages`.
        backward: ``(*B, T, K)`` of `chain_messages`.
        start: First step whose kernel is wanted.
        stop: One after the last (``T`` if None).

    Yields:
        ``(a, b, earlier, kernel)``: for the steps ``a`` to ``b - 1``, the marginals ``(*B, b-a, K)`` of the
        step before and the transition probabilities ``(*B, b-a, K, K)``; rows of impossible states are zero.
    """
    stop = chain.num_steps if stop is None else stop
    length = max(1, _CHUNK // max(1, chain.batch_shape.numel() * chain.num_states**2))
    for a in range(start, stop, length):
        b = min(a + length, stop)
        earlier = probabilities(forward[..., a - 1 : b - 1, :] + backward[..., a - 1 : b - 1, :], (-1,))
        onward = (chain.log_obs[..., a:b, :] + backward[..., a:b, :]).unsqueeze(-2)
        yield a, b, earlier, probabilities(onward + chain.steps(a, b), (-1,))
