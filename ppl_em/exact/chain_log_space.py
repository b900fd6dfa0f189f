"""Forward–backward in log space: never underflows; the fallback of the scaled kernels.

Messages are normalised at every step and the normalisers accumulated in float64, so that neither range nor
accuracy depends on the number of steps.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.exact.chain_factors import ChainFactors


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
    log_z = _normalise(forward[0]).double()
    for t in range(1, chain.num_steps):
        torch.logsumexp(forward[t - 1].unsqueeze(-1) + chain.step(t), -2, out=forward[t])
        forward[t].add_(chain.log_obs[..., t, :])
        log_z += _normalise(forward[t])
    return forward, log_z


def log_backward(chain: ChainFactors) -> Tensor:
    """Backward recursion.

    Args:
        chain: The factors.

    Returns:
        ``(T, *B, K)`` log of the summed weight of all continuations of each step and state, up to a constant
        for each step and chain.
    """
    backward = chain.log_obs.new_empty(chain.num_steps, *chain.batch_shape, chain.num_states)
    backward[-1] = 0.0
    for t in range(chain.num_steps - 1, 0, -1):
        onward = backward[t] + chain.log_obs[..., t, :]
        torch.logsumexp(onward.unsqueeze(-2) + chain.step(t), -1, out=backward[t - 1])
        _normalise(backward[t - 1])
    return backward


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
    gamma = forward + backward
    norm = gamma.logsumexp(-1, keepdim=True)
    # exp(-inf - -inf) would be NaN: an impossible chain counts nothing.
    gamma.sub_(norm.masked_fill_(norm == -torch.inf, torch.inf)).exp_()
    xi = torch.zeros_like(chain.log_trans)
    for t in range(1, chain.num_steps):
        onward = backward[t] + chain.log_obs[..., t, :]
        pair = (forward[t - 1].unsqueeze(-1) + chain.step(t)).add_(onward.unsqueeze(-2))
        total = pair.logsumexp((-2, -1), keepdim=True)
        pair.sub_(total.masked_fill_(total == -torch.inf, torch.inf)).exp_()
        if weight is not None:
            pair.mul_(weight[..., t, None, None])
        into = xi if chain.shared else xi.select(-3, 0 if xi.shape[-3] == 1 else t - 1)
        into += pair.sum_to_size(into.shape)
    return gamma.movedim(0, -2), xi


def _normalise(message: Tensor) -> Tensor:
    """Subtract the log of the sum over states in place and return it ``(*B)``; all ``-inf`` stays."""
    total = message.logsumexp(-1)
    message.sub_(total.masked_fill(total == -torch.inf, 0.0).unsqueeze(-1))
    return total
