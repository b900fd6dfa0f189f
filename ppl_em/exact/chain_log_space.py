"""Forward–backward in log space: never underflows; the fallback of the scaled kernels.

Messages are normalised at every step and the normalisers accumulated in float64, so that neither range nor
accuracy depends on the number of steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.exact.chain_factors import ChainFactors

# Elements of the (steps, *B, K, K) work arrays that are held at a time.
_CHUNK = 1 << 20


def log_forward(chain: ChainFactors) -> tuple[Tensor, Tensor]:
    """Forward recursion.

    Args:
        chain: The factors.

    Returns:
        ``(T, *B, K)`` log of p(state | observations up to the step) (all ``-inf`` from the step on at which a
        chain becomes impossible), and ``(*B)`` log Z in float64.
    """
    forward = chain.log_obs.new_empty(chain.num_steps, *chain.batch_shape, chain.num_states)
    torch.add(chain.log_init, chain.log_obs[..., 0, :], out=forward[0])
    log_z = normalise(forward[0]).double()
    for t in range(1, chain.num_steps):
        log_z += forward_step(chain, t, forward[t - 1], forward[t])
    return forward, log_z


def forward_step(chain: ChainFactors, t: int, previous: Tensor, message: Tensor) -> Tensor:
    """Compute the forward ``message`` ``(*B, K)`` of step ``t`` from the ``previous``.

    Returns:
        ``(*B)`` the log of what it was divided by.
    """
    torch.logsumexp(previous.unsqueeze(-1) + chain.step(t), -2, out=message)
    message.add_(chain.log_obs[..., t, :])
    return normalise(message)


def log_backward(chain: ChainFactors, end: Tensor | None = None) -> Tensor:
    """Backward recursion.

    Args:
        chain: The factors.
        end: ``(*B, K)`` message at the last step where the chain goes on, or None.

    Returns:
        ``(T, *B, K)`` log of the summed weight of all continuations of each step and state, up to a constant
        for each step and chain.
    """
    backward = chain.log_obs.new_empty(chain.num_steps, *chain.batch_shape, chain.num_states)
    backward[-1] = 0.0 if end is None else end
    for t in range(chain.num_steps - 1, 0, -1):
        backward_step(chain, t, backward[t], backward[t - 1])
    return backward


def backward_step(chain: ChainFactors, t: int, following: Tensor, message: Tensor) -> None:
    """Compute the backward ``message`` ``(*B, K)`` of step ``t - 1`` from the ``following``."""
    onward = following + chain.log_obs[..., t, :]
    torch.logsumexp(onward.unsqueeze(-2) + chain.step(t), -1, out=message)
    normalise(message)


def log_counts(
    chain: ChainFactors, forward: Tensor, backward: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Expected counts of states and transitions from both recursions.

    Args:
        chain: The factors.
        forward: ``(T, *B, K)`` of `log_forward`.
        backward: ``(T, *B, K)`` of `log_backward`.
        weight: ``(*B, T)`` or None; the transition into each step counts this often (0 for dead steps).

    Returns:
        ``(*B, T, K)`` posterior marginals (zero for impossible chains) and the transition counts in the shape
        of ``chain.log_trans``.
    """
    forward, backward = forward.movedim(0, -2), backward.movedim(0, -2)
    gamma = probabilities(forward + backward, (-1,))
    xi = torch.zeros_like(chain.log_trans)
    length = max(1, _CHUNK // max(1, chain.batch_shape.numel() * chain.num_states**2))
    for a in range(1, chain.num_steps, length):
        b = min(a + length, chain.num_steps)
        onward = (backward[..., a:b, :] + chain.log_obs[..., a:b, :]).unsqueeze(-2)
        pair = probabilities(forward[..., a - 1 : b - 1, :].unsqueeze(-1) + chain.steps(a, b) + onward, (-2, -1))
        if weight is not None:
            pair.mul_(weight[..., a:b, None, None])
        into = xi if chain.shared or xi.shape[-3] == 1 else xi[..., a - 1 : b - 1, :, :]
        into += pair.sum_to_size(into.shape)
    return gamma, xi


def probabilities(log_weight: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Normalise log-weights over some dimensions; where there is no weight at all, zeros."""
    total = log_weight.logsumexp(dims, keepdim=True)
    # exp(-inf - -inf) would be NaN.
    return (log_weight - total.masked_fill_(total == -torch.inf, torch.inf)).exp_()


def normalise(message: Tensor) -> Tensor:
    """Subtract the log of the sum over states in place and return it ``(*B)``; all ``-inf`` stays."""
    total = message.logsumexp(-1)
    message.sub_(total.masked_fill(total == -torch.inf, 0.0).unsqueeze(-1))
    return total
