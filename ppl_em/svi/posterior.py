"""The approximate posterior: encoders' distributions, and exact posteriors of summed latents given their draws."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_em.errors import PplEmError, message
from ppl_em.ir import Latent
from ppl_em.svi.automatic import AutomaticGuide
from ppl_em.svi.batch import Batch
from ppl_em.svi.isolation import Isolation
from ppl_em.svi.query import Query
from ppl_em.svi.score import Scored

#: Draws over which marginals of summed latents, and the entropy, are averaged.
NUM_DRAWS = 32


class AmortisedPosterior:
    """Posterior over all latents of a program at fitted values: q(u | x) p(s | x, u), u sampled and s summed.

    Args:
        query: the fitted program on the data asked about.
    """

    def __init__(self, query: Query) -> None:
        self.query = query
        self.plan = query.plan
        self._bound = query.bound()

    def _batch(self) -> Batch:
        if len(self.query.batches) != 1:
            raise PplEmError(message("a posterior is asked for one batch at a time", hint="result.posterior(batch)"))
        return self.query.batches[0]

    @torch.no_grad()
    def _draw(self) -> dict[str, Scored]:
        return {s.name: s for s in self.query.guide.draw(self._batch(), self.query.values)}

    def marginal(self, name: str) -> Any:
        """Marginal posterior of a latent, batch shape that of the site's plates.

        For a sampled latent this is the encoder's own distribution (given one draw of latents in plates around it,
        where there are such); for a summed one the exact posterior averaged over draws of the sampled ones.

        Args:
            name: site name.
        """
        latent = self.plan.program.latents.get(name)
        if latent is None:
            raise PplEmError(message("no such latent", site=name, hint=f"one of {sorted(self.plan.program.latents)}"))
        if name in self.plan.points:
            value = self.query.values[name]
            return dist.Delta(value, event_dim=value.dim())
        with Isolation(self.query.seed)():
            if name in self.plan.approximated:
                return self._sampled(name)
            return self._summed(name, latent)

    def _sampled(self, name: str) -> Any:
        sites = self._draw()
        fn = sites[name].fn
        joint = next((s for s in sites.values() if "with" in s.infer), None)
        guide = self.query.guide.callable
        if not isinstance(fn, dist.Delta) or joint is None or not isinstance(guide, AutomaticGuide):
            return fn
        group = next(g for g in guide.groups if name in [m.name for m in g.members])
        joint = next(s for s in sites.values() if s.infer.get("with") == group.members[0].name)
        return group.marginal(name, joint.fn)

    def _summed(self, name: str, latent: Latent) -> Any:
        from ppl_em.posterior import _distribution

        total: Tensor | None = None
        with torch.no_grad():
            for _ in range(NUM_DRAWS if self.plan.approximated else 1):
                for block, posterior in self._blocks():
                    if name in block.names:
                        sizes = {p: block.sizes[p] for p in latent.plates}
                        part = (
                            posterior.marginal(name)
                            .expand({**sizes, name: latent.cardinality})
                            .align((*latent.plates, name))
                        )
                        total = part if total is None else total + part
        assert total is not None
        return _distribution(latent, (total / total.sum(-1, keepdim=True)).clamp(0, 1))

    def _blocks(self, draw: list[Scored] | None = None) -> list[tuple[Any, Any]]:
        """Blocks of summed latents with their posteriors given one draw of the sampled ones."""
        if not self.plan.blocks:
            return []
        batch = self._batch()
        draw = self.query.guide.draw(batch, self.query.values) if draw is None else draw
        factors, sizes = self._bound.block_factors(batch, self.query.values, draw)
        return [self._bound.naming.posterior(entry, factors, sizes) for entry in self.plan.blocks]

    @property
    def marginals(self) -> dict[str, Any]:
        """Marginals of all latents by name, point estimates left out."""
        return {z: self.marginal(z) for z in self.plan.program.latents if z not in self.plan.points}

    @torch.no_grad()
    def sample(self, num_samples: int = 1, seed: int | None = None) -> dict[str, Tensor]:
        """Joint draws of all latents.

        Args:
            num_samples: number of draws.
            seed: of these draws; None draws afresh at each call.

        Returns:
            Values by site, (num_samples, *plates, *event_shape).
        """
        fresh = int(torch.Generator().seed() % 2**31) if seed is None else seed
        draws: dict[str, list[Tensor]] = {}
        generator = torch.Generator().manual_seed(fresh)
        with Isolation(fresh)():
            for _ in range(num_samples):
                for name, value in self.one_draw(generator).items():
                    draws.setdefault(name, []).append(value)
        return {n: torch.stack(v) for n, v in draws.items()}

    def one_draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One joint draw of all latents, values as the program has them."""
        sites = self.query.guide.draw(self._batch(), self.query.values)
        if self._bound.guided:
            raise PplEmError(
                message("joint draws of latents that the guide enumerates are not supported", hint="result.guide")
            )
        values = {s.name: s.value for s in sites if s.name in self.plan.approximated}
        for block, posterior in self._blocks(sites):
            for name, factor in posterior.sample(1, generator).items():
                latent = self.plan.program.latents[name]
                assert latent.support is not None
                index = factor.expand({p: block.sizes[p] for p in latent.plates}).align(("@draw", *latent.plates))[0]
                values[name] = latent.support[index]
        order = [z for z in self.plan.program.latents if z in values]
        return {z: values[z] for z in order}

    @staticmethod
    def by_step(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Values by site as the program has them, step by step: they are already."""
        return dict(values)

    @torch.no_grad()
    def entropy(self) -> Tensor:
        """Entropy of the joint posterior in nats, summed over plates, estimated with ``NUM_DRAWS`` draws."""
        total = torch.zeros((), dtype=torch.float64)
        with Isolation(self.query.seed)():
            for _ in range(NUM_DRAWS):
                sites = self.query.guide.draw(self._batch(), self.query.values)
                for site in sites:
                    total -= site.log_prob().double().sum()
                for _, posterior in self._blocks(sites):
                    total += posterior.entropy().tensor.double().sum()
        return total / NUM_DRAWS
