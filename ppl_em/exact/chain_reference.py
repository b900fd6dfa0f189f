"""The forward recursion of a chain written for clarity: the slow, differentiable twin of the fast kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.exact.chain_factors import chain_factors

# Stands for log 0 inside a differentiable recursion: -inf would meet itself in `-inf - -inf` and give NaN
# gradients. Far below any sum of log-densities, far above float32's overflow.
_LOG_ZERO = -1e30


def generic_log_z(log_init: Tensor, log_trans: Tensor, log_obs: Tensor) -> Tensor:
    """Log-partition of a chain by the forward recursion in log space, one step after the other.

    Every operation is an ordinary differentiable one, so derivatives of any order and ``torch.func``
    transforms work; impossible chains give ``-inf`` with zero gradients.

    Args:
        log_init: ``(*B, K)`` log-factor of the first state; ``-inf`` where impossible.
        log_trans: ``(K, K)``, or ``(*B', T-1, K, K)`` per step and chain; rows previous state, columns next.
        log_obs: ``(*B, T, K)`` log-densities of the observations at each step given each state.

    Returns:
        ``(*B)`` log of the sum over all ``K**T`` paths, in nats.

    Example:
        >>> import torch
        >>> half = torch.tensor([0.5, 0.5]).log()
        >>> generic_log_z(half, half.expand(2, 2), torch.zeros(3, 2)).abs().item() < 1e-6
        True
    """
    chain = chain_factors(log_init, log_trans, log_obs)
    forward = _finite(chain.log_init) + _finite(chain.log_obs[..., 0, :])
    for t in range(1, chain.num_steps):
        joint = _finite(forward).unsqueeze(-1) + _finite(chain.step(t))
        forward = joint.logsumexp(-2) + _finite(chain.log_obs[..., t, :])
    log_z = forward.logsumexp(-1)
    return torch.where(log_z < 0.5 * _LOG_ZERO, torch.full_like(log_z, -torch.inf), log_z)


def _finite(log_factor: Tensor) -> Tensor:
    """``log_factor`` with the stand-in for log 0 as its least value (no gradient flows where it stands)."""
    return torch.where(log_factor < _LOG_ZERO, torch.full_like(log_factor, _LOG_ZERO), log_factor)
