"""Forward–backward in log space: never underflows; the fallback of the scaled kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.exact.chain_factors import ChainFactors


def log_forward(chain: ChainFactors) -> tuple[Tensor, Tensor]:
    """Forward recursion.

    Args:
        chain: The factors.

    Returns:
        ``(T, *B, K)`` log of the summed weight of all paths up to each step and state, and ``(*B)`` log Z.
    """
    forward = chain.log_obs.new_empty(chain.num_steps, *chain.batch_shape, chain.num_states)
    torch.add(chain.log_init, chain.log_obs[..., 0, :], out=forward[0])
    for t in range(1, chain.num_steps):
        torch.logsumexp(forward[t - 1].unsqueeze(-1) + chain.step(t), -2, out=forward[t])
        forward[t].add_(chain.log_obs[..., t, :])
    return forward, forward[-1].logsumexp(-1)


def log_backward(
    chain: ChainFactors, forward: Tensor, log_z: Tensor, weight: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Backward recursion, giving the expected counts of states and transitions.

    Args:
        chain: The factors.
        forward: ``(T, *B, K)`` of `log_forward`.
        log_z: ``(*B)`` of `log_forward`.
        weight: ``(*B, T)`` or None; the transition into each step counts this often (0 for dead steps).

    Returns:
        ``(*B, T, K)`` posterior marginals (zero for impossible chains) and the transition counts in the shape
        of ``chain.log_trans``.
    """
    # exp(-inf - -inf) would be NaN: an impossible chain counts nothing.
    norm = log_z.masked_fill(log_z == -torch.inf, torch.inf).unsqueeze(-1)
    gamma = torch.empty_like(forward)
    xi = torch.zeros_like(chain.log_trans)
    backward = torch.zeros_like(forward[0])
    torch.exp(forward[-1] - norm, out=gamma[-1])
    for t in range(chain.num_steps - 1, 0, -1):
        onward = backward + chain.log_obs[..., t, :]
        step = chain.step(t)
        pair = ((forward[t - 1].unsqueeze(-1) + step) + (onward - norm).unsqueeze(-2)).exp_()
        if weight is not None:
            pair.mul_(weight[..., t, None, None])
        into = xi if chain.shared else xi.select(-3, 0 if xi.shape[-3] == 1 else t - 1)
        into += pair.sum_to_size(into.shape)
        backward = (step + onward.unsqueeze(-2)).logsumexp(-1)
        torch.exp(forward[t - 1] + backward - norm, out=gamma[t - 1])
    return gamma.movedim(0, -2), xi
