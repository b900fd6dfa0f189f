"""Log-partition and expected counts of a chain by forward–backward.

The derivative of log Z with respect to each log-factor is the posterior marginal over that factor's scope, so
one hand-written backward recursion serves gradients and expected counts alike.

Reference:
    Rabiner, L. R. (1989). A tutorial on hidden Markov models. Proceedings of the IEEE 77(2).
    Eisner, J. (2016). Inside-outside and forward-backward algorithms are just backprop. SPNLP.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_em.exact.chain_buffers import ChainBuffers
from ppl_em.exact.chain_estep import expectations
from ppl_em.exact.chain_factors import chain_factors
from ppl_em.exact.chain_reference import generic_log_z


@dataclass(frozen=True)
class ChainCounts:
    """Expected counts of a chain.

    Attributes:
        log_z: ``(*B)`` log-partition in nats, float64 whatever the factors' dtype.
        gamma: ``(*B, T, K)`` posterior marginal of each step's state.
        xi: in the shape of ``log_trans``: expected number of transitions from each state (row) to each state
            (column), summed over whatever the factor is shared over.
    """

    log_z: Tensor
    gamma: Tensor
    xi: Tensor


_ORDINARY: ContextVar[bool] = ContextVar("ordinary", default=False)


@contextmanager
def ordinary_operations() -> Iterator[None]:
    """Inside, :func:`chain_log_z` uses ordinary operations throughout, which ``torch.func`` can vectorise."""
    token = _ORDINARY.set(True)
    try:
        yield
    finally:
        _ORDINARY.reset(token)


def chain_log_z(log_init: Tensor, log_trans: Tensor, log_obs: Tensor, *, differentiable: bool = False) -> Tensor:
    """Log of the summed weight of all state paths of a chain, differentiable to any order.

    The first derivative is one hand-written backward recursion. A derivative of the derivative
    (``create_graph=True``, for observed information) replays the plain recursion in differentiable
    operations.

    Args:
        log_init: ``(*B, K)`` log-factor of the first state; ``-inf`` where impossible.
        log_trans: ``(K, K)``, or ``(*B', T-1, K, K)`` per step and chain; rows previous state, columns next.
        log_obs: ``(*B, T, K)`` log-densities of the observations at each step given each state (0 where
            masked).
        differentiable: Use ordinary operations throughout, as ``torch.func`` transforms and forward-mode
            need.

    Returns:
        ``(*B)`` log Z in nats; ``-inf``, with zero gradients, where no path is possible.

    Raises:
        DataError: the shapes do not fit.

    Example:
        >>> import torch
        >>> log_init = torch.tensor([0.5, 0.5]).log().requires_grad_()
        >>> log_trans = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).log()
        >>> chain_log_z(log_init, log_trans, torch.zeros(10, 2)).backward()
        >>> log_init.grad  # nothing is observed: the posterior of the first state is its prior
        tensor([0.5000, 0.5000])
    """
    if differentiable or _ORDINARY.get():
        return generic_log_z(log_init, log_trans, log_obs)
    return _ChainLogZ.apply(log_init, log_trans, log_obs)  # type: ignore[no-any-return]


@torch.no_grad()
def expected_counts(
    log_init: Tensor,
    log_trans: Tensor,
    log_obs: Tensor,
    alive: Tensor | None = None,
    buffers: ChainBuffers | None = None,
) -> ChainCounts:
    """Log Z and the expected counts of an E-step, without autograd.

    Args:
        log_init: ``(*B, K)`` log-factor of the first state.
        log_trans: ``(K, K)``, or ``(*B', T-1, K, K)`` per step and chain.
        log_obs: ``(*B, T, K)`` log-densities of the observations at each step given each state (0 where
            masked).
        alive: ``(*B, T)`` bool; transitions into dead steps (ragged padding) are left out of ``xi``.
        buffers: Memory to work in, for a loop of E-steps over the same shapes; ``gamma`` then lies in it and
            is overwritten by the next call.

    Returns:
        The counts; an impossible chain has log Z ``-inf`` and counts nothing.

    Raises:
        DataError: the shapes do not fit.

    Example:
        >>> import torch
        >>> uniform = torch.full((2,), 0.5).log()
        >>> counts = expected_counts(uniform, uniform.expand(2, 2), torch.zeros(5, 2))
        >>> counts.xi.sum().item()
        4.0
    """
    chain = chain_factors(log_init, log_trans, log_obs)
    weight = None
    if alive is not None:
        weight = alive.to(log_obs.dtype).expand(*chain.batch_shape, chain.num_steps)
    result = expectations(chain, weight, buffers=buffers)
    assert result.gamma is not None and result.xi is not None
    return ChainCounts(result.log_z, result.gamma, result.xi)


class _ChainLogZ(torch.autograd.Function):
    """`chain_log_z` with the expected counts as its derivative.

    The counts are taken in the forward pass, while the messages are in cache. They are the gradient as they
    stand if all chains weigh the same in what is differentiated (a sum or a mean); else transitions are
    counted again with the weights.
    """

    @staticmethod
    def forward(ctx: Any, log_init: Tensor, log_trans: Tensor, log_obs: Tensor) -> Tensor:
        result = expectations(chain_factors(log_init, log_trans, log_obs), counts=any(ctx.needs_input_grad))
        ctx.save_for_backward(log_init, log_trans, log_obs, result.gamma, result.xi)
        return result.log_z.to(log_obs.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        *factors, gamma, xi = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _differentiable_backward(factors, ctx.needs_input_grad, grad)
        init, trans, obs = ctx.needs_input_grad
        return (
            (grad.unsqueeze(-1) * gamma[..., 0, :]).sum_to_size(factors[0].shape) if init else None,
            _weighted_transitions(factors, xi, grad) if trans else None,
            (grad[..., None, None] * gamma).sum_to_size(factors[2].shape) if obs else None,
        )


def _weighted_transitions(factors: list[Tensor], xi: Tensor, grad: Tensor) -> Tensor:
    """Transition counts ``xi`` of chains that weigh ``grad``."""
    if grad.numel() and bool((grad == grad.flatten()[0]).all()):
        return grad.flatten()[0] * xi
    chain = chain_factors(*factors)
    weight = grad.unsqueeze(-1).expand(*chain.batch_shape, chain.num_steps)
    counts = expectations(chain, weight).xi
    assert counts is not None
    return counts


def _differentiable_backward(
    factors: list[Tensor], wanted: tuple[bool, ...], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradient of log Z as a function that can itself be differentiated."""
    inputs = [factor for factor, want in zip(factors, wanted, strict=True) if want]
    grads = iter(torch.autograd.grad(generic_log_z(*factors), inputs, grad, create_graph=True, materialize_grads=True))
    return tuple(next(grads) if want else None for want in wanted)
