"""The three log-factors of a chain, checked and broadcast once, as every chain kernel reads them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.errors import DataError
from ppl_em.ir.shapes import broadcast_shapes


@dataclass(frozen=True)
class ChainFactors:
    """Log-factors of ``B`` independent chains over ``K`` states and ``T`` steps.

    Attributes:
        log_init: ``(*B, K)``, log-factor of the first state (nats).
        log_trans: ``(K, K)`` where all steps and chains share it, else ``(*B', T-1 or 1, K, K)`` with ``B'``
            broadcastable to ``B``; rows are the previous state, columns the next.
        log_obs: ``(*B, T, K)``, summed log-density of what is observed at each step given each state.
        batch_shape: ``B``.
        num_steps: ``T``, at least one.
        num_states: ``K``, at least one.
    """

    log_init: Tensor
    log_trans: Tensor
    log_obs: Tensor
    batch_shape: torch.Size
    num_steps: int
    num_states: int

    @property
    def shared(self) -> bool:
        """Whether one transition matrix serves all chains and steps."""
        return self.log_trans.dim() == 2

    @property
    def rowwise(self) -> bool:
        """Whether the innermost batch dimension shares each step's matrix: it can serve as matrix rows."""
        return self.log_trans.dim() < 4 or self.log_trans.shape[-4] == 1

    def step(self, t: int) -> Tensor:
        """Log-transition into step ``t`` (1 ≤ t < T), broadcastable to ``(*B, K, K)``."""
        if self.shared:
            return self.log_trans
        return self.log_trans.select(-3, 0 if self.log_trans.shape[-3] == 1 else t - 1)

    def steps(self, start: int, stop: int) -> Tensor:
        """Log-transitions into steps ``start`` … ``stop - 1``, broadcastable to ``(*B, steps, K, K)``."""
        if self.log_trans.dim() == 2 or self.log_trans.shape[-3] == 1:
            return self.log_trans
        return self.log_trans[..., start - 1 : stop - 1, :, :]


def chain_factors(log_init: Tensor, log_trans: Tensor, log_obs: Tensor) -> ChainFactors:
    """Check shapes and dtypes of a chain's factors and broadcast their batch dimensions.

    Args:
        log_init: ``(*B, K)``; batch dimensions may be missing or of size one.
        log_trans: ``(K, K)`` or ``(*B', T-1, K, K)`` (or ``(*B', 1, K, K)``: the same matrix at every step).
        log_obs: ``(*B, T, K)``.

    Raises:
        DataError: a shape does not fit the others.
    """
    if log_obs.dim() < 2 or log_init.dim() < 1 or log_trans.dim() < 2:
        raise DataError(
            f"a chain needs log_init (*B, K), log_trans (K, K) or (*B, T-1, K, K), log_obs (*B, T, K); got "
            f"{tuple(log_init.shape)}, {tuple(log_trans.shape)}, {tuple(log_obs.shape)}. "
            "Try to add the missing time or state dimension."
        )
    num_steps, num_states = log_obs.shape[-2:]
    if num_steps < 1 or num_states < 1:
        raise DataError(f"log_obs of shape {tuple(log_obs.shape)} has no steps or no states. Try T ≥ 1 and K ≥ 1.")
    if log_init.shape[-1] != num_states or log_trans.shape[-2:] != (num_states, num_states):
        raise DataError(
            f"log_obs has {num_states} states but log_init has shape {tuple(log_init.shape)} and "
            f"log_trans {tuple(log_trans.shape)}. Try the same K in the last dimension of all three "
            "(twice in log_trans)."
        )
    if log_trans.dim() > 2 and log_trans.shape[-3] not in (num_steps - 1, 1):
        raise DataError(
            f"log_trans of shape {tuple(log_trans.shape)} has {log_trans.shape[-3]} transitions for "
            f"{num_steps} steps. Try T-1 = {num_steps - 1} of them, 1, or a shared (K, K) matrix."
        )
    batch_shape = broadcast_shapes(log_init.shape[:-1], log_trans.shape[:-3], log_obs.shape[:-2])
    return ChainFactors(
        log_init.expand(*batch_shape, num_states),
        log_trans,
        log_obs.expand(*batch_shape, num_steps, num_states),
        batch_shape,
        num_steps,
        num_states,
    )
