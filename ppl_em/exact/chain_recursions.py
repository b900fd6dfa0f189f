"""Forward–backward in scaled probability space: matrix products over many chains at once, a step at a time.

Any positive rescaling of the forward messages α leaves ``Σ_k α_t(k) β_t(k)`` the same at every step as long
as the backward messages β are divided by the same constants. So rescaling is needed only often enough to stay
in range, and α β is the posterior marginal as it stands.

Reference:
    Rabiner, L. R. (1989). A tutorial on hidden Markov models. Proceedings of the IEEE 77(2), section V.A.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ppl_em.exact.chain_buffers import ChainBuffers
from ppl_em.exact.chain_scaled import ScaledChains

# Where rare transitions let a backward message grow without bound, its state has no weight: see
# `chain_bounds`.
_GREATEST = 1e290


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
        self.alpha = buffers.take("alpha", chains.obs.shape, chains.obs)
        self.single = chains.into.shape[1] == 1
        self.multiply = torch.mm if self.single else torch.bmm
        self.obs, self._alpha = self.steps(chains.obs), self.steps(self.alpha)
        length, tail = len(self.obs), chains.layout.tail
        self.into, self._outof = (
            self.steps(trans) * (length if len(trans) == 1 else 1)
            for trans in (chains.into.contiguous(), chains.into.mT.contiguous())
        )
        rescaled = {*range(0, length, chains.period), tail, length - 1}
        self.norms = [
            torch.empty_like(message[..., 0, :]) if t in rescaled else None for t, message in enumerate(self.obs)
        ]
        self._first, self._last = chains.layout.block(0), chains.layout.block(-1)
        self._left_out: Tensor | None = None
        self._work = [torch.empty_like(self.obs[0]) for _ in range(2)]

    def steps(self, array: Tensor) -> tuple[Tensor, ...]:
        """The steps of an array, without the dimension of groups where there is one group."""
        return (array.squeeze(1) if self.single else array).unbind(0)

    @property
    def last_alpha(self) -> Tensor:
        """Forward messages at the last step of each block."""
        return self._alpha[-1]

    def forward(self, start: Tensor | None = None) -> None:
        """Compute `alpha`.

        Args:
            start: Messages that precede each block (those before first blocks are ignored), or None for whole
                chains.
        """
        previous = start
        for t, message in enumerate(self._alpha):
            if previous is None:
                message.copy_(self.obs[0])
            else:
                self.predict(t, previous, message)
                message.mul_(self.obs[t])
            norm = self.norms[t]
            if norm is not None:
                torch.sum(message, -2, out=norm)
                message.div_(norm.unsqueeze(-2))
            previous = message
        tail = self.chains.layout.tail
        for message, norm in zip(self._alpha[tail + 1 :], self.norms[tail + 1 :], strict=True):  # padding
            message[self._last] = 0.0
            if norm is not None:
                norm[self._last] = 1.0

    def predict(self, t: int, previous: Tensor, message: Tensor) -> None:
        """Take forward messages into step ``t``, before its observation; first blocks begin with step 0."""
        self.multiply(self.into[t], previous, out=message)
        if t == 0:
            message[self._first] = 1.0

    def log_norm(self) -> Tensor:
        """``(G', N')`` log of what `forward` divided each block's messages by, float64."""
        norms = torch.stack([norm for norm in self.norms if norm is not None])
        total = norms.double().log_().sum(0)
        return total.unsqueeze(0) if self.single else total

    def log_z(self) -> Tensor:
        """``(G, N)`` log-partition after `forward`, float64."""
        return self.chains.layout.per_chain(self.log_norm()) + self.chains.log_scale

    def leave_out(self, chains: Tensor, start: Tensor | None) -> None:
        """Let some chains ``(G, N)`` count nothing, whatever `forward` made of them and of ``start``."""
        blocks = self.chains.layout.per_block(chains)
        self.chains.obs.masked_fill_(blocks.unsqueeze(-2), 0.0)
        self.alpha.masked_fill_(blocks.unsqueeze(-2), 0.0)
        blocks = blocks.squeeze(0) if self.single else blocks
        self._left_out = blocks.unsqueeze(-2)
        if start is not None:
            start.masked_fill_(self._left_out, 0.0)
        for norm in self.norms:
            if norm is not None:
                norm.masked_fill_(blocks, 1.0)

    def _backward(self, end: Tensor) -> Iterator[tuple[int, Tensor, Tensor]]:
        """For each step, last to first, its backward message and that combined with its observation.

        Args:
            end: Messages at the end of each block, those of last blocks zero.
        """
        beta, onward = self._work
        beta.copy_(end)
        if self._left_out is not None:
            beta.masked_fill_(self._left_out, 0.0)
        for t in range(len(self.obs) - 1, -1, -1):
            if t == self.chains.layout.tail:
                beta[self._last] = 1.0
            torch.mul(self.obs[t], beta, out=onward)
            norm = self.norms[t]
            if norm is not None:
                onward.div_(norm.unsqueeze(-2))
            if not self.chains.sure:
                onward.clamp_(max=_GREATEST)
            yield t, beta, onward
            self.multiply(self._outof[t], onward, out=beta)

    def backward(self, end: Tensor, beta: Tensor | None = None) -> Tensor:
        """Backward messages.

        Args:
            end: Messages at the end of each block, those of last blocks zero.
            beta: ``(L, G, K, N)`` to be filled with all of them, or None.

        Returns:
            The messages at the end of the block before each, up to a constant.
        """
        into = None if beta is None else self.steps(beta)
        for t, message, _ in self._backward(end):
            if into is not None:
                into[t].copy_(message)
        return self._work[0]

    def counts(
        self,
        start: Tensor | None,
        end: Tensor,
        weight: Tensor | None = None,
        active: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Expected counts, once `forward` has run; overwrites `alpha`.

        Args:
            start: As given to `forward`, zero before first blocks.
            end: Messages at the end of each block, those of last blocks zero.
            weight: ``(L, G, N)`` how often the transition into each step counts, or None for once.
            active: How many of the chains, the first ones, have a transition that counts into each step, or None.

        Returns:
            ``(L, G, K, N)`` posterior marginals and ``(1 or L, G, K, K)`` expected transitions, rows the
            previous state.
        """
        counts = torch.zeros_like(self.chains.into)
        into = self.steps(counts)
        weighted = None if weight is None else (self.steps(weight), torch.empty_like(self.obs[0]))
        add = torch.addmm if self.single else torch.baddbmm
        for t, beta, onward in self._backward(end):
            self._alpha[t].mul_(beta)
            previous = self._alpha[t - 1] if t else start
            if previous is None:
                break
            if weighted is not None:
                onward = torch.mul(onward, weighted[0][t].unsqueeze(-2), out=weighted[1])
            if active is not None:
                previous, onward = previous[..., : active[t]], onward[..., : active[t]]
            target = into[t if len(into) > 1 else 0]
            add(target, previous, onward.mT, out=target)
        return self.alpha, counts.mul_(self.chains.into.mT)
