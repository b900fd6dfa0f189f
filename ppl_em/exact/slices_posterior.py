"""Whole assignments of a chain of slices, mapped back from joint states to the latents: mode, k best, draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ppl_em.errors import EngineError, message
from ppl_em.exact import chain_queries
from ppl_em.exact.bucket_posterior import draw_categorical
from ppl_em.exact.chain_lengths import by_length
from ppl_em.exact.chain_outer import Outer
from ppl_em.exact.chain_paths import k_best, sample_paths, viterbi
from ppl_em.exact.chain_slices import SliceFactors, path_ends, slice_factors
from ppl_em.exact.slices_marginals import select
from ppl_em.exact.slices_time import SlicesTime
from ppl_em.ir import Factor
from ppl_em.ir.factor import lookup


class SlicesPosterior(SlicesTime):
    """Posterior over the latents of one chain of slices (or of many, in plates).

    Args:
        block: with its slices.
        factors: log-factors by site, detached.
    """

    def mode(self) -> dict[str, Factor]:
        """Jointly most probable positions: Viterbi on the joint states, for each value of the outer latents."""
        best = slice_factors(self.block, self._factors, Factor.amax)
        paths, scores = by_length(self.block, (best.init, best.trans, best.obs), viterbi)
        chosen: dict[str, Factor] = {}
        if self.slices.outer:
            outer = Outer(self.block, self.slices).posterior(self._factors, self._expanded(scores))
            chosen = outer.mode()
        return self._assignment(best, self._expanded(paths), chosen, None)

    def sample(self, num_samples: int, generator: torch.Generator) -> dict[str, Factor]:
        """Joint draws."""
        drawn = {} if self._outer is None else self._outer.sample(num_samples, generator)
        paths = sample_paths(*self._args(), num_samples, generator)
        sizes = [self.block.sizes[d] for d in self.slices.batch]
        paths = paths.expand(num_samples, *sizes, paths.shape[-1])
        return self._assignment(self._chain, paths, drawn, generator)

    def _assignment(
        self, chain: SliceFactors, paths: Tensor, outer: Mapping[str, Factor], generator: torch.Generator | None
    ) -> dict[str, Factor]:
        """Positions of all latents from paths over joint states, given those of the outer latents.

        Args:
            chain: gives the private latents' weights.
            paths: (draws if there is a generator, *batch, T).
            outer: positions by plates (and ``@draw``).
            generator: draws the private latents; None takes their best values.
        """
        slices = self.slices
        leading = () if generator is None else ("@draw",)
        states = lookup(Factor(paths, (*leading, *slices.batch, slices.time)), outer)
        states = states.to((*leading, *slices.plates, slices.time))
        position: dict[str, Factor] = {}
        left = states.tensor
        for dim in reversed(self.linked):
            size = self.block.sizes[dim]
            position[dim] = Factor(left % size, states.dims)
            left = left // size
        if chain.within is not None:
            position.update(self._private(chain.within, {**outer, **position}, states.dims, generator))
        result = dict(outer)
        for name, (t, slot) in slices.home.items():
            result[name] = select(position[slices.now[slot]], slices.time, t)
        return result

    def _private(
        self, within: Factor, known: Mapping[str, Factor], dims: tuple[str, ...], generator: torch.Generator | None
    ) -> dict[str, Factor]:
        sizes = [self.block.sizes[d] for d in self.hidden]
        # Where nothing varies over time the same weights serve every step.
        steps = {self.slices.time: self.block.sizes[self.slices.time]}
        scores = lookup(within.expand(steps), {d: f for d, f in known.items() if d in within.dims})
        wide = scores.align((*dims, *self.hidden)).flatten(-len(sizes))
        flat = wide.argmax(-1) if generator is None else draw_categorical(wide, generator)
        found = {}
        for dim, size in zip(reversed(self.hidden), reversed(sizes), strict=True):
            found[dim] = Factor(flat % size, dims)
            flat = flat // size
        return found

    def k_best(self, k: int) -> tuple[dict[str, Factor], Factor]:
        """The ``k`` most probable joint assignments.

        Returns:
            Positions by latent, dimension ``@rank`` first, best first, and their log posterior probabilities.

        Raises:
            EngineError: an outer latent lives in fewer plates than the chain.
        """
        slices = self.slices
        if any(self.block.latent(z).plates != slices.plates for z in slices.outer):
            names = ", ".join(slices.outer)
            raise EngineError(
                message("the k best assignments of chains that share a latent", site=names, hint="mode()")
            )
        chain = self._open()
        paths, scores = by_length(self.block, (chain.init, chain.trans, chain.obs), lambda a, b, c: k_best(a, b, c, k))
        sizes = [self.block.sizes[d] for d in slices.batch]
        paths = paths.expand(*sizes, *paths.shape[-2:])
        scores = scores.expand(*sizes, k)
        if slices.outer:
            own = Outer(self.block, slices)
            for site in own.sites:
                scores = scores + self._factors[site.name].align(slices.batch).unsqueeze(-1)
        outside = len(slices.outer)
        order = [*range(outside, scores.dim() - 1), *range(outside), scores.dim() - 1]
        flat = scores.permute(order).flatten(len(slices.plates))
        best, pick = flat.topk(k, -1)
        rows = paths.permute([*order, paths.dim() - 1]).flatten(len(slices.plates), -2)
        path = rows.gather(-2, pick.unsqueeze(-1).expand(*pick.shape, rows.shape[-1])).movedim(-2, 0)
        result: dict[str, Factor] = {}
        dims = ("@rank", *slices.plates)
        rest = pick.movedim(-1, 0) // k
        for z in reversed(slices.outer):
            result[z] = Factor(rest % self.block.sizes[z], dims)
            rest = rest // self.block.sizes[z]
        left = path
        for slot in reversed(range(len(slices.now))):
            size = self.block.sizes[slices.now[slot]]
            for name, (t, own_slot) in slices.home.items():
                if own_slot == slot:
                    result[name] = Factor(left[..., t] % size, dims)
            left = left // size
        return result, Factor(best.movedim(-1, 0) - self.log_z.align(slices.plates), dims)

    def _open(self) -> SliceFactors:
        """The chain with its private latents among the states."""
        if not self.slices.private:
            return self._chain
        opened = replace(self.block, slices=replace(self.slices, private=frozenset()))
        return slice_factors(opened, self._factors)

    def entropy(self) -> Factor:
        """Entropy in nats: of the outer latents, of the paths given them, of private latents given both."""
        slices = self.slices
        (each,) = by_length(self.block, self._args(), lambda *chain: (chain_queries.entropy(*chain),))
        paths = self._expanded(each) * self._share
        total = Factor(paths, slices.batch)
        within = self.within
        if within is not None:
            spread = Factor(torch.special.entr(within.tensor), within.dims).sum(self.hidden)
            last = path_ends(self.block)
            if last is not None:
                steps = Factor(torch.arange(self.block.sizes[slices.time]), (slices.time,))
                observed = (steps + last.map(torch.neg)).map(lambda t: t <= 0)
                spread = spread * observed.map(lambda t: t.to(spread.tensor.dtype))
            inner = (self.gamma * spread).sum((slices.time, *self.linked))
            total = total + inner
        total = total.sum([d for d in total.dims if d not in self.block.plates])
        return total if self._outer is None else total + self._outer.entropy()
