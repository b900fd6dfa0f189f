"""Whole state paths of a chain: the most probable one, the k most probable, and exact posterior draws.

Reference:
    Viterbi, A. J. (1967). Error bounds for convolutional codes. IEEE Transactions on Information Theory
    13(2). Seshadri, N. & Sundberg, C.-E. W. (1994). List Viterbi decoding algorithms with applications. IEEE
    Transactions on Communications 42(2/3/4).
    Frühwirth-Schnatter, S. (1994). Data augmentation and dynamic linear models. Journal of Time Series
    Analysis 15.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.errors import DataError, EngineError
from ppl_em.exact.chain_factors import ChainFactors, chain_factors
from ppl_em.exact.chain_messages import chain_messages, posterior_chain
from ppl_em.exact.chain_viterbi import viterbi_in_blocks

# Draws times chains times states below which a step's own work is less than the cost of asking for it.
_FEW = 1024


@torch.no_grad()
def viterbi(log_init: Tensor, log_trans: Tensor, log_obs: Tensor) -> tuple[Tensor, Tensor]:
    """Most probable path of each chain.

    Args:
        log_init: ``(*B, K)`` log-factor of the first state; ``-inf`` where impossible.
        log_trans: ``(K, K)``, or ``(*B', T-1, K, K)`` per step and chain; rows previous state, columns next.
        log_obs: ``(*B, T, K)`` log-densities of the observations at each step given each state.

    Returns:
        ``(*B, T)`` states, int64, and ``(*B)`` the log of the path's weight (joint with the observations,
        nats, float64). Where no path is possible the weight is ``-inf`` and the path arbitrary.

    Example:
        >>> import torch
        >>> uniform, sticky = torch.full((2,), 0.5).log(), torch.tensor([[0.9, 0.1], [0.1, 0.9]]).log()
        >>> viterbi(uniform, sticky, torch.tensor([[0.0, -3.0], [-1.0, 0.0], [0.0, -3.0]]))[0]
        tensor([0, 0, 0])
    """
    chain = chain_factors(log_init, log_trans, log_obs)
    path = viterbi_in_blocks(chain)
    if path is not None:
        return path, _log_weight(chain, path.unsqueeze(-2)).squeeze(-1)
    paths, log_probs = k_best(log_init, log_trans, log_obs, 1)
    return paths.squeeze(-2), log_probs.squeeze(-1)


@torch.no_grad()
def k_best(log_init: Tensor, log_trans: Tensor, log_obs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The ``k`` most probable paths of each chain, best first.

    Args:
        log_init: ``(*B, K)``, as for `viterbi`.
        log_trans: ``(K, K)`` or ``(*B', T-1, K, K)``.
        log_obs: ``(*B, T, K)``.
        k: How many paths, at least one.

    Returns:
        ``(*B, k, T)`` states, int64, and ``(*B, k)`` their log-weights (nats, float64). Where fewer than
        ``k`` paths are possible, the last weights are ``-inf`` and their paths arbitrary.

    Raises:
        DataError: ``k`` is less than one, or shapes do not fit.
    """
    if k < 1:
        raise DataError(f"k={k} most probable paths. Try k ≥ 1.")
    chain = chain_factors(log_init, log_trans, log_obs)
    score = (chain.log_init + chain.log_obs[..., 0, :]).unsqueeze(-1)
    choices = []
    for t in range(1, chain.num_steps):
        score, choice = _extend(score, chain.step(t), chain.log_obs[..., t, :], k)
        choices.append(choice)
    score = score.flatten(-2)
    score, pointer = score.topk(min(k, score.shape[-1]), -1)
    paths = _trace_back(choices, pointer, chain.num_states)
    log_probs = _log_weight(chain, paths).masked_fill_(score == -torch.inf, -torch.inf)
    missing = k - paths.shape[-2]
    return (
        torch.cat([paths, paths[..., -1:, :].expand(*chain.batch_shape, missing, -1)], -2),
        torch.nn.functional.pad(log_probs, (0, missing), value=-torch.inf),
    )


@torch.no_grad()
def sample_paths(
    log_init: Tensor,
    log_trans: Tensor,
    log_obs: Tensor,
    num_samples: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Independent draws of whole paths from their posterior: backward messages, then sampling onward.

    Args:
        log_init: ``(*B, K)``, as for `viterbi`.
        log_trans: ``(K, K)`` or ``(*B', T-1, K, K)``.
        log_obs: ``(*B, T, K)``.
        num_samples: How many draws.
        generator: Source of randomness (torch's global one if None).

    Returns:
        ``(num_samples, *B, T)`` states, int64.

    Raises:
        EngineError: a chain has no possible path.
    """
    chain = chain_factors(log_init, log_trans, log_obs)
    forward, backward = chain_messages(chain)
    first = forward[..., 0, :] + backward[..., 0, :]
    impossible = int((first.amax(-1) == -torch.inf).sum())
    if impossible:
        raise EngineError(
            f"{impossible} of {chain.batch_shape.numel()} chains have no path of positive probability to "
            "draw. Try a look at their observations: some are impossible under every state."
        )
    shape = (chain.num_steps, num_samples, *chain.batch_shape)
    if num_samples * first.numel() <= _FEW:
        return _draw_maps(chain, forward, backward, num_samples, generator)
    paths = torch.empty(shape, dtype=torch.int64, device=first.device)
    paths[0] = _draw(first.expand(num_samples, *first.shape), generator)
    for t in range(1, chain.num_steps):
        onward = chain.log_obs[..., t, :] + backward[..., t, :]
        paths[t] = _draw(_rows(chain.step(t), paths[t - 1]) + onward, generator)
    return paths.movedim(0, -1)


def _draw_maps(
    chain: ChainFactors,
    forward: Tensor,
    backward: Tensor,
    num_samples: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Draws of few chains: first a next state for every state of every step, then the paths through them.

    Args:
        chain: The factors.
        forward: ``(*B, T, K)`` of `chain_messages`.
        backward: ``(*B, T, K)`` of `chain_messages`.
        num_samples: How many draws.
        generator: Source of randomness.

    Returns:
        ``(num_samples, *B, T)`` states.
    """
    first = forward[..., 0, :] + backward[..., 0, :]
    state = _draw(first.expand(num_samples, *first.shape), generator).unsqueeze(-1)
    path = [state]
    for start, stop, _, kernel in posterior_chain(chain, forward, backward):
        cumulative = kernel.cumsum(-1)
        total = cumulative[..., -1]
        shape = (num_samples, *chain.batch_shape, stop - start, 1)
        level = torch.rand(shape, generator=generator, dtype=total.dtype, device=total.device) * total
        # Rounding must not lift the level to the total: states behind the last possible one would be drawn.
        level = torch.minimum(level, total.nextafter(torch.zeros_like(total)))
        following = (cumulative <= level.unsqueeze(-1)).sum(-1).clamp_(max=chain.num_states - 1)
        for step in following.unbind(-2):
            state = step.gather(-1, state)
            path.append(state)
    return torch.cat(path, -1)


def _extend(score: Tensor, step: Tensor, log_obs: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """One step of list Viterbi.

    Args:
        score: ``(*B, K, R)`` log-weights of the best ``R`` partial paths into each state, best first.
        step: Log-transition, broadcastable to ``(*B, K, K)``.
        log_obs: ``(*B, K)``.
        k: How many paths to keep.

    Returns:
        The same one step on, relative to the best of all, with ``min(k, K R)`` paths per state, and where
        each came
        from: the position in ``score.flatten(-2)``.
    """
    candidates = (score.unsqueeze(-1) + step.unsqueeze(-2)).flatten(-3, -2).mT
    if k == 1:
        best, choice = candidates.max(-1, keepdim=True)
    else:
        best, choice = candidates.topk(min(k, candidates.shape[-1]), -1)
    best = best + log_obs.unsqueeze(-1)
    peak = best.amax((-2, -1), keepdim=True)
    return best.sub_(peak.masked_fill_(peak == -torch.inf, 0.0)), choice


def _trace_back(choices: list[Tensor], pointer: Tensor, num_states: int) -> Tensor:
    """Paths ``(*B, k, T)`` that end at the flat positions ``pointer`` ``(*B, k)`` of the last scores."""
    states = []
    for choice in reversed(choices):
        states.append(pointer // choice.shape[-1])
        pointer = choice.flatten(-2).gather(-1, pointer)
    states.append(pointer)
    return torch.stack(states[::-1], -1)


def _log_weight(chain: ChainFactors, paths: Tensor) -> Tensor:
    """Log-weights ``(*B, k)`` of the paths ``(*B, k, T)``, summed in float64."""
    score = chain.log_init.gather(-1, paths[..., 0]).double()
    score = score + chain.log_obs.mT.gather(-2, paths).double().sum(-1)
    if chain.num_steps > 1:
        earlier, later = paths[..., :-1], paths[..., 1:]
        if chain.shared:
            return score + chain.log_trans[earlier, later].double().sum(-1)
        step = chain.steps(1, chain.num_steps).unsqueeze(-4)
        rows = _rows(step, earlier)
        score = score + rows.gather(-1, later.unsqueeze(-1)).double().sum((-2, -1))
    return score


def _rows(step: Tensor, state: Tensor) -> Tensor:
    """The rows ``(*S, K)`` of a log-transition, broadcastable to ``(*S, K, K)``, at ``state`` ``(*S)``."""
    if step.dim() == 2:
        return step[state]
    num_states = step.shape[-1]
    index = state[..., None, None].expand(*state.shape, 1, num_states)
    return step.expand(*state.shape, num_states, num_states).gather(-2, index).squeeze(-2)


def _draw(log_weight: Tensor, generator: torch.Generator | None) -> Tensor:
    """One state for each row of log-weights ``(..., K)``."""
    weight = (log_weight - log_weight.amax(-1, keepdim=True)).exp_()
    draws = torch.multinomial(weight.reshape(-1, weight.shape[-1]), 1, generator=generator)
    return draws.reshape(weight.shape[:-1])
