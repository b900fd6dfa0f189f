"""Filtering and forecasting of a chain of slices."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.errors import EngineError, message
from ppl_em.exact import chain_queries
from ppl_em.exact.chain_outer import Outer
from ppl_em.exact.chain_slices import at_last, is_pair
from ppl_em.exact.slices_marginals import SlicesMarginals, select
from ppl_em.ir import Factor


class SlicesTime(SlicesMarginals):
    """Questions about time, of one chain of slices (or of many, in plates).

    Args:
        block: with its slices.
        factors: log-factors by site, detached.
    """

    def filtered(self, names: tuple[str, ...]) -> Tensor:
        """(*plates, T, K) marginals of a family's latents, each given the observations up to its own step.

        Args:
            names: the latents in time order.

        Raises:
            EngineError: an outer latent lives in fewer plates than the chain.
        """
        states = self._states(self._forward(), self.slices.time)
        if self.within is not None:
            states = states * self.within
        rows = []
        for name in names:
            t, slot = self.slices.home[name]
            if t == 0 and slot >= len(self.slices.families):
                rows.append(self._early(name))
                continue
            rows.append(self._named(select(states, self.slices.time, t), {self.slices.now[slot]: name}, (name,)).tensor)
        return torch.stack(rows, -2)

    def _forward(self) -> Tensor:
        """(*batch, T, S) joint probability of state and outer values given the observations so far."""
        slices = self.slices
        forward = chain_queries.filtered(*self._args())
        if not slices.outer:
            return forward
        if any(self.block.latent(z).plates != slices.plates for z in slices.outer):
            raise EngineError(
                message("filtering of chains that share a latent", site=", ".join(slices.outer), hint="path(name)")
            )
        joint = self._evidence(forward)
        return forward * (joint - joint.logsumexp(tuple(range(len(slices.outer))), keepdim=True)).exp().unsqueeze(-1)

    def _evidence(self, forward: Tensor) -> Tensor:
        """(*batch, T) log-density of the observations up to each slice, joint with the outer values."""
        slices = self.slices
        prior = Factor(torch.zeros((), dtype=forward.dtype), ())
        for site in Outer(self.block, slices).sites if slices.outer else ():
            prior = prior + self._factors[site.name]
        init, trans, obs = self._args()
        later = (forward[..., :-1, :].unsqueeze(-2) @ trans.exp()).squeeze(-2)
        first = (init + obs[..., 0, :]).logsumexp(-1, keepdim=True)
        rest = (later.log() + obs[..., 1:, :]).logsumexp(-1)
        first = first.expand(*rest.shape[:-1], 1)
        return torch.cat([first, rest], -1).cumsum(-1) + prior.align(slices.batch).unsqueeze(-1)

    @property
    def evidence(self) -> Tensor:
        """(*plates, T) log-density of each slice's observations given those before."""
        if self.slices.outer:
            self._forward()  # refuses what cannot be filtered
        joint = self._evidence(chain_queries.filtered(*self._args()))
        total = joint.logsumexp(tuple(range(len(self.slices.outer)))) if self.slices.outer else joint
        return torch.cat([total[..., :1], total.diff(dim=-1)], -1)

    def _early(self, name: str) -> Tensor:
        """A latent of the first slice that is not its newest, given the observations up to its own step."""
        slices = self.slices
        _, slot = slices.home[name]
        lag, width = slot // len(slices.families), len(slices.families)
        newer = set(slices.now[: lag * width])
        kept = {s.name for s in self.block.sites if not set(s.scope) & newer}
        blank = {
            n: f if n in kept else Factor(torch.zeros((), dtype=f.tensor.dtype), ()) for n, f in self._factors.items()
        }
        part = SlicesMarginals(self.block, blank)
        init, _, obs = part._args()
        joint = torch.softmax(init + obs[..., 0, :], -1)
        return self._named(self._states(joint), {slices.now[slot]: name}, (name,)).tensor

    def forecast(self, steps: int, family: tuple[str, ...]) -> Tensor:
        """(*plates, steps, K) probabilities of a family's latents after the last step.

        Raises:
            EngineError: transitions vary over time, so that there are none for the future.
        """
        name = family[-1]
        dim = self.slices.now[self.slices.home[name][1]]
        if dim in self.hidden:
            raise EngineError(message("no forecast of a latent that lives within a single step", site=name))
        return self._named(self.ahead(steps), {dim: name}, ("@ahead", name)).tensor

    def ahead(self, steps: int) -> Factor:
        """Probabilities of the linked slots after the last step, by batch, ``@ahead`` and slots."""
        onward = self._onward().exp()
        state, states = at_last(self._forward(), self.block), []
        for _ in range(steps):
            state = (state.unsqueeze(-2) @ onward).squeeze(-2)
            states.append(state)
        return self._states(torch.stack(states, -2), "@ahead")

    def _onward(self) -> Tensor:
        """Log-transition (*batch, S, S) into a slice after the last, its latents' own densities included."""
        slices, trans = self.slices, self._chain.trans
        sites = [s for s in self.block.sites if s.role == "latent" and any(d in slices.now for d in s.scope)]
        own = [s for s in sites if not is_pair(slices, s) and not set(s.scope) & set(self.hidden)]
        own = [s for s in own if int(self.block.times[s.name][-1]) == len(slices.table) - 1]
        varies = any(slices.time in self._factors[s.name].dims for s in own)
        if varies or (trans.dim() > 2 and trans.shape[-3] != 1):
            raise EngineError(
                message("transitions that vary over time say nothing about later steps", site=next(iter(slices.home)))
            )
        onward = trans if trans.dim() == 2 else trans.squeeze(-3)
        for site in own:
            factor = self._factors[site.name].align((*slices.batch, *self.linked))
            head = factor.shape[: len(slices.batch)]
            shape = [self.block.sizes[d] for d in self.linked]
            onward = onward + factor.expand(*head, *shape).reshape(*head, 1, -1)
        return onward
