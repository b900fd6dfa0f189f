"""Log-densities of a run by name: which dimension is which plate or latent, and the blocks that engines sum."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ppl_em.errors import PlanError, message
from ppl_em.exact.engine import BlockPosterior
from ppl_em.ir import Factor
from ppl_em.ir.block import Block
from ppl_em.plan.choice import BlockPlan
from ppl_em.plan.plan import Plan
from ppl_em.svi.score import Scored


class Naming:
    """Names the dimensions of a run's log-densities by the layout of the traced program.

    Args:
        plan: gives layout, scopes and blocks.
        guided: discrete latents that a guide enumerates.
    """

    def __init__(self, plan: Plan, guided: Collection[str]) -> None:
        self.program = plan.program
        self.layout, self.scopes = plan.program.runner.layout, plan.program.runner.scopes
        self.guided = set(guided)
        #: Sites that belong to a block of summed latents.
        self.blocks = {m for b in plan.blocks for s in b.block.sites for m in s.members}
        self.undeclared = {n for n, p in plan.program.plates.items() if not p.declared}

    def factor(self, site: Scored, log_prob: Tensor, masked: bool = True) -> Factor:
        """Elementwise log-density by latents and plates; other dimensions summed.

        Args:
            site: the model's site that it belongs to.
            log_prob: elementwise.
            masked: apply the site's mask (never applied to a summed latent's own density).
        """
        scope = self.scopes.get(site.name, ())
        factor = self.layout.name_dims(site, log_prob, 0, 0, scope)
        latent = self.program.latents.get(site.name)
        summed = latent is not None and latent.kind == "discrete" and site.name not in self.guided
        if site.mask is not None and masked and not summed:
            mask = self.layout.name_dims(site, torch.as_tensor(site.mask, device=log_prob.device), 0, 0, scope)
            dims = factor.dims + tuple(d for d in mask.dims if d not in factor.dims)
            factor = Factor(torch.where(mask.align(dims), factor.align(dims), 0.0), dims)
        plates = {f.name for f in site.frames}
        return factor.sum([d for d in factor.dims if d not in scope and d not in plates and d not in self.undeclared])

    def scale(self, site: Scored, scale: Tensor) -> Factor:
        """A scale tensor by plates."""
        return self.layout.name_dims(site, scale, 0, 0, ())

    def log_z(self, entry: BlockPlan, factors: Mapping[str, Factor], sizes: Mapping[str, int]) -> Factor:
        """Log-partition of a block by its plates.

        Args:
            entry: the block and its engine.
            factors: log-factor by site, as the program has it.
            sizes: size of each plate in this run.
        """
        block = self.resized(entry, factors, sizes)
        for z in {d for s in block.sites for m in s.members for d in factors[m].dims} & self.guided:
            if not set(self.program.latents[z].plates) <= set(block.plates):
                raise PlanError(
                    message(
                        "a latent that the guide enumerates lives in more plates than the latents that are summed with it",
                        site=z,
                        hint="drawing the other latents in the guide too",
                    )
                )
        return entry.engine.log_z(block, self.stacked(entry, factors))

    def posterior(
        self, entry: BlockPlan, factors: Mapping[str, Factor], sizes: Mapping[str, int]
    ) -> tuple[Block, BlockPosterior]:
        """The block at these sizes and the posterior of its latents, arguments as for :meth:`log_z`."""
        block = self.resized(entry, factors, sizes)
        return block, entry.engine.posterior(block, self.stacked(entry, factors))

    @staticmethod
    def resized(entry: BlockPlan, factors: Mapping[str, Factor], sizes: Mapping[str, int]) -> Block:
        """The block with its plates as large as in this run."""
        block = entry.block
        seen = {d: n for s in block.sites for m in s.members for d, n in factors[m].sizes.items()}
        known = {d: n for d, n in {**seen, **sizes}.items() if d in block.sizes}
        return replace(block, sizes={**block.sizes, **known}, scale=None, alive={})

    def stacked(self, entry: BlockPlan, factors: Mapping[str, Factor]) -> dict[str, Factor]:
        """Factors of a block as its engine wants them, like steps of a chain in one."""
        return {s.name: self._stacked(entry, s.name, s.members, factors) for s in entry.block.sites}

    @staticmethod
    def _stacked(entry: BlockPlan, name: str, members: Sequence[str], factors: Mapping[str, Factor]) -> Factor:
        """The factors of like steps of a chain as one, its latents' dimensions under the names of their roles."""
        axis = entry.block.axis
        if axis is None:
            return factors[name]
        position = {z: t for t, z in enumerate(axis.states)}
        renamed = []
        for time, member in zip(entry.block.times[name].tolist(), members, strict=True):
            factor = factors[member]
            roles = {d: axis.now if position[d] == time else axis.before for d in factor.dims if d in position}
            renamed.append(Factor(factor.tensor, tuple(roles.get(d, d) for d in factor.dims)))
        if len(renamed) == 1:
            return renamed[0]
        dims = tuple(dict.fromkeys(d for f in renamed for d in f.dims))
        rows = torch.broadcast_tensors(*(f.align(dims) for f in renamed))
        return Factor(torch.stack(rows), (axis.time, *dims))

    def expectation(self, factor: Factor, log_q: Mapping[str, Factor], name: str) -> Factor:
        """Expected value over the latents that the guide enumerates.

        Args:
            factor: over plates and some of these latents.
            log_q: the guide's log-probabilities by latent.
            name: of the site, for messages.
        """
        needed = [d for d in factor.dims if d in log_q]
        for z in needed:
            needed += [d for d in log_q[z].dims if d in log_q and d not in needed]
        if not needed:
            return factor
        weight = log_q[needed[0]]
        for z in needed[1:]:
            weight = weight + log_q[z]
        plates = [d for d in weight.dims if d not in log_q and d not in factor.dims]
        if any(weight.sizes[p] > 1 for p in plates):
            raise PlanError(
                message(
                    "a site outside a plate depends on a latent that the guide enumerates inside it",
                    site=name,
                    value=plates[0],
                    hint="drawing that latent without enumeration is not supported: put the site into the plate",
                )
            )
        dims = tuple(dict.fromkeys((*factor.dims, *weight.dims)))
        probability = weight.align(dims).exp()
        value = torch.where(probability > 0, factor.align(dims), 0.0)  # log 0 counts nothing where q is 0
        return Factor(probability * value, dims).sum(list(log_q))
