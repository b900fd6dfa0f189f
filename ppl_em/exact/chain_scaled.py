"""Forward–backward in scaled probability space: matrix products over many chains at once, a step at a time.

Arrays are state-major, ``(L, G, K, N)``: N chains that share each step's transition are the columns of one
matrix, so that a step is a (K, K) by (K, N) product and sums over states run along contiguous memory; G
groups have transitions of their own.

Any positive rescaling of the forward messages α leaves ``Σ_k α_t(k) β_t(k)`` the same at every step as long
as the backward messages β are divided by the same constants. So rescaling is needed only often enough to stay
in range, and α β is the posterior marginal as it stands.

Reference:
    Rabiner, L. R. (1989). A tutorial on hidden Markov models. Proceedings of the IEEE 77(2), section V.A.
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
        period: How many steps forward messages can go without rescaling; 0 if they cannot be trusted at all.
    """

    into: Tensor
    log_scale: Tensor
    period: int

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
    """

    layout: Layout
    into: Tensor
    obs: Tensor
    log_scale: Tensor
    period: int


def scaled_transitions(log_trans: Tensor) -> ScaledTransitions:
    """Bring transitions out of log space.

    Args:
        log_trans: ``(G, T', K, K)``, rows the previous state; ``T'`` is 1 or ``T - 1``.
    """
    shift = log_trans.amax((-2, -1))
    shift = shift.masked_fill(~shift.isfinite(), 0.0)
    into = (log_trans - shift[..., None, None]).exp_().mT.movedim(1, 0)
    period = rescaling_period(into)
    if shift.shape[-1] != 1:
        into = torch.cat([into.new_ones(1, *into.shape[1:]), into])
    return ScaledTransitions(into.contiguous(), shift.double(), period)


def rescaling_period(trans: Tensor) -> int:
    """How many steps forward messages can go without rescaling; 0 if they cannot be trusted at all.

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
        trans: Their transitions, with a positive period.
        log_obs: ``(G, N, T, K)``.
        layout: How to lay them out.
        buffers: Memory for the densities.
    """
    obs = layout.stack(log_obs, buffers, "obs")
    obs[0][layout.block(0)] += log_init.mT
    peak = obs.amax(-2)
    log_scale = layout.per_chain(peak.sum(0, dtype=torch.float64)) + trans.log_total(layout.num_steps)
    obs.sub_(peak.unsqueeze(-2)).exp_()
    if not bool(log_scale.isfinite().all()):
        # Infinity less infinity would spread through the sums over chains; these are not trusted anyway.
        obs.nan_to_num_(nan=1.0, posinf=1.0)
    return ScaledChains(layout, layout.stack_transitions(trans.into), obs, log_scale, trans.period)


class Recursions:
    """The forward and backward recursions over one set of chains, in buffers that are allocated once.

    Messages have the shape ``(G, K, N)``, or ``(K, N)`` where there is one group: products are then of plain
    matrices.

    Args:
        chains: The factors.
        buffers: Memory for the messages.

    Attributes:
        alpha: ``(L, G, K, N)`` forward messages; those of a chain's or block's last step sum to one.
    """

    def __init__(self, chains: ScaledChains, buffers: ChainBuffers) -> None:
        self.chains = chains
        self.single = chains.into.shape[1] == 1
        self.alpha = buffers.take("alpha", chains.obs.shape, chains.obs)
        self._multiply = torch.mm if self.single else torch.bmm
        self._obs, self._alpha = self._steps(chains.obs), self._steps(self.alpha)
        length = len(self._obs)
        self._into, self._outof = (
            self._steps(trans) * (length if len(trans) == 1 else 1)
            for trans in (chains.into.contiguous(), chains.into.mT.contiguous())
        )
        rescaled = {*range(0, length, chains.period), chains.layout.tail, length - 1}
        self._norms = [
            torch.empty_like(message[..., 0, :]) if t in rescaled else None
            for t, message in enumerate(self._obs)
        ]
        self._work = [torch.empty_like(self._obs[0]) for _ in range(2)]

    def _steps(self, array: Tensor) -> tuple[Tensor, ...]:
        return (array.squeeze(1) if self.single else array).unbind(0)

    def forward(self, start: Tensor | None = None) -> None:
        """Compute `alpha`.

        Args:
            start: Messages that precede each block (those before first blocks are ignored), or None for whole
                chains.
        """
        previous = start
        for t, message in enumerate(self._alpha):
            if previous is None:
                message.copy_(self._obs[0])
            else:
                self._multiply(self._into[t], previous, out=message)
                if t == 0:
                    message[self.chains.layout.block(0)] = 1.0
                message.mul_(self._obs[t])
            norm = self._norms[t]
            if norm is not None:
                torch.sum(message, -2, out=norm)
                message.div_(norm.unsqueeze(-2))
            previous = message

    @property
    def last_alpha(self) -> Tensor:
        """Forward messages at the last step of each block."""
        return self._alpha[-1]

    def log_z(self) -> Tensor:
        """``(G, N)`` log-partition after `forward`, float64; not finite where it cannot be trusted."""
        layout = self.chains.layout
        norms = torch.stack([norm for norm in self._norms if norm is not None]).double().log_()
        if self.single:
            norms.unsqueeze_(1)
        if layout.tail < layout.length - 1:  # padding counts nothing
            steps = [t for t, norm in enumerate(self._norms) if norm is not None]
            norms[steps.index(layout.tail) + 1 :][(slice(None), *layout.block(-1))] = 0.0
        return layout.per_chain(norms.sum(0)) + self.chains.log_scale

    def backward(self, end: Tensor) -> Tensor:
        """Backward messages alone.

        Args:
            end: Messages at the end of each block, those of last blocks zero.

        Returns:
            The messages at the end of the block before each, up to a constant.
        """
        beta, onward = self._work
        beta.copy_(end)
        for t in range(len(self._obs) - 1, -1, -1):
            self._onward(t, beta, onward)
            self._multiply(self._outof[t], onward, out=beta)
        return beta

    def block_products(self) -> Tensor:
        """Log of the summed weight of the paths through each block between each two states.

        Returns:
            ``(G, K, S, N)``, ``K`` the state at the end and ``S`` the one before; wrong for padded blocks.
        """
        num_states, num_chains = self.last_alpha.shape[-2:]
        shape = (*self.last_alpha.shape[:-2], num_states, num_states, num_chains)
        message = torch.eye(num_states, dtype=self.alpha.dtype, device=self.alpha.device)
        message = message.unsqueeze(-1).expand(shape).contiguous()
        after, log_norm = (
            torch.empty_like(message),
            torch.zeros_like(message[..., 0, :, :], dtype=torch.float64),
        )
        for t, obs in enumerate(self._obs):
            self._multiply(self._into[t], message.flatten(-2), out=after.flatten(-2))
            if t == 0:
                after[self.chains.layout.block(0)] = 1.0
            after.mul_(obs.unsqueeze(-2))
            if self._norms[t] is not None:
                norm = after.sum(-3)
                after.div_(norm.unsqueeze(-3))
                log_norm += norm.log()
            message, after = after, message
        products = message.log_() + log_norm.unsqueeze(-3)
        return products.unsqueeze(0) if self.single else products

    def _onward(self, t: int, beta: Tensor, onward: Tensor) -> None:
        """Combine the message at step ``t`` with what is observed there."""
        if t == self.chains.layout.tail:
            beta[self.chains.layout.block(-1)] = 1.0
        torch.mul(self._obs[t], beta, out=onward)
        norm = self._norms[t]
        if norm is not None:
            onward.div_(norm.unsqueeze(-2))

    def counts(
        self, start: Tensor | None, end: Tensor, weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Expected counts, once `forward` has run; overwrites `alpha`.

        Args:
            start: As given to `forward`, zero before first blocks.
            end: Messages at the end of each block, those of last blocks zero.
            weight: ``(L, G, N)`` how often the transition into each step counts, or None for once.

        Returns:
            ``(L, G, K, N)`` posterior marginals and ``(1 or L, G, K, K)`` expected transitions, rows the
            previous state.
        """
        beta, onward = self._work
        beta.copy_(end)
        counts = torch.zeros_like(self.chains.into)
        into = self._steps(counts)
        add = torch.addmm if self.single else torch.baddbmm
        weights = None if weight is None else self._steps(weight)
        for t in range(len(self._obs) - 1, -1, -1):
            self._onward(t, beta, onward)
            self._alpha[t].mul_(beta)
            previous = self._alpha[t - 1] if t else start
            if previous is None:
                break
            self._multiply(self._outof[t], onward, out=beta)
            if weights is not None:
                onward.mul_(weights[t].unsqueeze(-2))
            target = into[t if len(into) > 1 else 0]
            add(target, previous, onward.mT, out=target)
        return self.alpha, counts.mul_(self.chains.into.mT)
