"""The factors of chains out of log space, scaled and laid out for matrix products.

Arrays are state-major, ``(L, G, K, N)``: N chains that share each step's transition are the columns of one
matrix, so that a step is a (K, K) by (K, N) product and sums over states run along contiguous memory; G
groups have transitions of their own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.exact.chain_buffers import ChainBuffers
from ppl_em.exact.chain_layout import Layout

# Decades between the least and the greatest magnitude that arithmetic in a dtype may use before a lost
# summand could be noticed: the exponent range less the digits that the result shall have.
_DECADES = {torch.float64: 278.0, torch.float32: 26.0}
_LONGEST_PERIOD = 8


@dataclass(frozen=True)
class ScaledTransitions:
    """Transitions divided by their greatest element.

    Attributes:
        into: ``(1 or T, G, K, K)``, rows the next state, columns the previous; entry ``t`` leads into step
            ``t``.
        log_scale: ``(G, T')`` log of what was divided out of each, float64.
        period: How many steps forward messages can go without rescaling.
        sure: Whether nothing that matters can be lost to underflow; else results need to be checked.
    """

    into: Tensor
    log_scale: Tensor
    period: int
    sure: bool

    @property
    def differ(self) -> bool:
        """Whether steps have transitions of their own."""
        return self.log_scale.shape[-1] != 1

    def log_total(self, num_steps: int) -> Tensor:
        """``(G, 1)`` log of what was divided out over the first ``num_steps`` steps."""
        if self.differ:
            return self.log_scale.sum(-1, keepdim=True)
        return (num_steps - 1) * self.log_scale


@dataclass(frozen=True)
class ScaledChains:
    """Factors out of log space, each divided by its greatest element.

    Attributes:
        layout: How chains and steps lie in the arrays.
        into: ``(1 or L, G, K, K)`` transitions, as in `ScaledTransitions`, of the steps of each block.
        obs: ``(L, G, K, N)`` densities of the observations; those of a chain's first step include its initial
            factor.
        log_scale: ``(G, N)`` log of all that was divided out, float64; not finite for a chain with a step
            that is impossible or not a number.
        period: Forward messages are rescaled every so many steps.
        sure: As in `ScaledTransitions`.
    """

    layout: Layout
    into: Tensor
    obs: Tensor
    log_scale: Tensor
    period: int
    sure: bool


def scaled_transitions(log_trans: Tensor) -> ScaledTransitions:
    """Bring transitions out of log space.

    Args:
        log_trans: ``(G, T', K, K)``, rows the previous state; ``T'`` is 1 or ``T - 1``.
    """
    into, shift = _divided(log_trans)
    period = rescaling_period(into)
    if not period and into.dtype != torch.float64:  # then every decade is needed
        into, shift = _divided(log_trans.double())
    if shift.shape[-1] != 1:
        into = torch.cat([into.new_ones(1, *into.shape[1:]), into])
    return ScaledTransitions(into.contiguous(), shift.double(), max(period, 1), period > 0)


def _divided(log_trans: Tensor) -> tuple[Tensor, Tensor]:
    """Transitions ``(T', G, K, K)``, next state first, and the log ``(G, T')`` of their greatest elements."""
    shift = log_trans.amax((-2, -1))
    shift = shift.masked_fill(~shift.isfinite(), 0.0)
    return (log_trans - shift[..., None, None]).exp_().mT.movedim(1, 0), shift


def rescaling_period(trans: Tensor) -> int:
    """How many steps forward messages can surely go without rescaling, 0 if none.

    Where every transition has at least the probability ``least`` (relative to the greatest), all states
    together feed each state of the next step. So a message falls by no more than ``least`` in a step in which
    some state gives density one to the observation, and a summand too small to be represented is negligible
    in its successors.

    Args:
        trans: ``(..., K, K)`` transitions with one as their greatest element.
    """
    least = float(trans.amin()) if trans.numel() else 1.0
    if not least > 0.0:
        return 0
    decades = max(-math.log10(least), 1.0)
    return int(min(_LONGEST_PERIOD, _DECADES[trans.dtype] / decades - 1.0))


def scaled_chains(
    log_init: Tensor, trans: ScaledTransitions, log_obs: Tensor, layout: Layout, buffers: ChainBuffers
) -> ScaledChains:
    """Bring the log-factors of chains into scaled probability space.

    Args:
        log_init: ``(G, N, K)``.
        trans: Their transitions, whose dtype is computed in.
        log_obs: ``(G, N, T, K)``.
        layout: How to lay them out.
        buffers: Memory for the densities.
    """
    obs = layout.stack(log_obs, buffers, "obs", like=trans.into)
    obs[0][layout.block(0)] += log_init.mT
    peak = obs.amax(-2)
    log_scale = layout.per_chain(peak.sum(0, dtype=torch.float64)) + trans.log_total(layout.num_steps)
    obs.sub_(peak.unsqueeze(-2)).exp_()
    if not bool(log_scale.isfinite().all()):
        # Infinity less infinity would spread through the sums over chains; these are left out in the end.
        obs.nan_to_num_(nan=1.0, posinf=1.0)
    into = layout.stack_transitions(trans.into)
    return ScaledChains(layout, into, obs, log_scale, trans.period, trans.sure)
