"""What users ask of a chain besides its expected counts, each linear in the number of steps.

Given the observations, the states form a Markov chain again: p(z_1 | x) and the kernels p(z_t | z_{t-1}, x),
which the backward messages give directly. Marginals, pairs, entropy and draws are read off that chain. All
queries run without autograd.

Reference:
    Cappé, O., Moulines, E. & Rydén, T. (2005). Inference in hidden Markov models, section 3.3. Springer.
    Hernando, D., Crespi, V. & Cybenko, G. (2005). Efficient computation of the hidden Markov model entropy
    for a given observation sequence. IEEE Transactions on Information Theory 51(7).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.errors import DataError
from ppl_em.exact.chain_factors import chain_factors
from ppl_em.exact.chain_log_space import probabilities
from ppl_em.exact.chain_messages import chain_messages, forward_messages, posterior_chain
from ppl_em.exact.chain_paths import k_best, sample_paths, viterbi

__all__ = [
    "entropy",
    "filtered",
    "forecast",
    "k_best",
    "pairwise",
    "pairwise_between",
    "sample_paths",
    "viterbi",
]


@torch.no_grad()
def filtered(log_init: Tensor, log_trans: Tensor, log_obs: Tensor) -> Tensor:
    """Probabilities of each step's state given the observations up to that step.

    Args:
        log_init: ``(*B, K)`` log-factor of the first state.
        log_trans: ``(K, K)``, or ``(*B', T-1, K, K)`` per step and chain; rows previous state, columns next.
        log_obs: ``(*B, T, K)`` log-densities of the observations at each step given each state.

    Returns:
        ``(*B, T, K)``; zeros from the step on at which a chain becomes impossible.

    Example:
        >>> import torch
        >>> uniform = torch.full((2,), 0.5).log()
        >>> filtered(uniform, uniform.expand(2, 2), torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log())
        tensor([[0.9000, 0.1000],
                [0.2000, 0.8000]])
    """
    return forward_messages(chain_factors(log_init, log_trans, log_obs)).exp_()


@torch.no_grad()
def pairwise(log_init: Tensor, log_trans: Tensor, log_obs: Tensor) -> Tensor:
    """Posterior probabilities of the states of each two consecutive steps.

    Args:
        log_init: ``(*B, K)``, as for `filtered`.
        log_trans: ``(K, K)`` or ``(*B', T-1, K, K)``.
        log_obs: ``(*B, T, K)``.

    Returns:
        ``(*B, T-1, K, K)``: rows the earlier state, columns the later; zeros for an impossible chain.
    """
    chain = chain_factors(log_init, log_trans, log_obs)
    num_states = chain.num_states
    pairs = chain.log_obs.new_empty(*chain.batch_shape, chain.num_steps - 1, num_states, num_states)
    for start, stop, earlier, kernel in posterior_chain(chain, *chain_messages(chain)):
        torch.mul(earlier.unsqueeze(-1), kernel, out=pairs[..., start - 1 : stop - 1, :, :])
    return pairs


@torch.no_grad()
def pairwise_between(log_init: Tensor, log_trans: Tensor, log_obs: Tensor, s: int, t: int) -> Tensor:
    """Posterior probabilities of the states of any two steps.

    Args:
        log_init: ``(*B, K)``, as for `filtered`.
        log_trans: ``(K, K)`` or ``(*B', T-1, K, K)``.
        log_obs: ``(*B, T, K)``.
        s: The earlier step, from 0.
        t: The later step, ``s < t < T``.

    Returns:
        ``(*B, K, K)``: rows the state at ``s``, columns the state at ``t``; zeros for an impossible chain.

    Raises:
        DataError: not ``0 ≤ s < t < T``.
    """
    chain = chain_factors(log_init, log_trans, log_obs)
    if not 0 <= s < t < chain.num_steps:
        raise DataError(
            f"steps s={s} and t={t} of a chain with {chain.num_steps} steps. Try 0 ≤ s < t < {chain.num_steps}."
        )
    joint: Tensor | None = None
    for start, stop, earlier, kernel in posterior_chain(chain, *chain_messages(chain), s + 1, t + 1):
        joint = torch.diag_embed(earlier[..., 0, :]) if joint is None else joint
        for step in range(stop - start):
            joint = joint @ kernel[..., step, :, :]
    assert joint is not None
    return joint


@torch.no_grad()
def entropy(log_init: Tensor, log_trans: Tensor, log_obs: Tensor) -> Tensor:
    """Entropy of the posterior over whole paths.

    Args:
        log_init: ``(*B, K)``, as for `filtered`.
        log_trans: ``(K, K)`` or ``(*B', T-1, K, K)``.
        log_obs: ``(*B, T, K)``.

    Returns:
        ``(*B)`` nats, float64; zero for an impossible chain.

    Example:
        >>> import torch
        >>> uniform = torch.full((2,), 0.5).log()
        >>> bits = entropy(uniform, uniform.expand(2, 2), torch.zeros(10, 2)) / torch.tensor(2.0).log()
        >>> round(bits.item(), 4)  # ten fair coins
        10.0
    """
    chain = chain_factors(log_init, log_trans, log_obs)
    forward, backward = chain_messages(chain)
    total = torch.special.entr(probabilities(forward[..., 0, :] + backward[..., 0, :], (-1,))).double().sum(-1)
    for _, _, earlier, kernel in posterior_chain(chain, forward, backward):
        total += (earlier * torch.special.entr(kernel).sum(-1)).double().sum((-2, -1))
    return total


@torch.no_grad()
def forecast(filtered_last: Tensor, trans: Tensor, steps: int) -> Tensor:
    """Probabilities of the states after the last observation.

    Args:
        filtered_last: ``(*B, K)`` probabilities of the last observed step's state (the last row of
            `filtered`).
        trans: ``(K, K)`` transition probabilities (not logarithms), or ``(*B', steps, K, K)`` for each step
            ahead.
        steps: How many steps ahead, at least one.

    Returns:
        ``(*B, steps, K)``; its first entry is one step ahead.

    Raises:
        DataError: ``steps`` is less than one.

    Example:
        >>> import torch
        >>> forecast(torch.tensor([1.0, 0.0]), torch.tensor([[0.9, 0.1], [0.0, 1.0]]), 2)
        tensor([[0.9000, 0.1000],
                [0.8100, 0.1900]])
    """
    if steps < 1:
        raise DataError(f"a forecast of steps={steps}. Try at least one step.")
    state, ahead = filtered_last.unsqueeze(-2), []
    for step in range(steps):
        matrix = trans if trans.dim() == 2 else trans[..., min(step, trans.shape[-3] - 1), :, :]
        state = state @ matrix
        ahead.append(state)
    return torch.cat(ahead, -2)
