"""Questions about latents that follow one another in time: paths, filtering, prediction, forecasts, k-best paths."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_em.errors import PplEmError, message
from ppl_em.exact.chain_posterior import ChainPosterior
from ppl_em.exact.chain_slices import path_ends, positions, slices_of
from ppl_em.ir import Factor, Site
from ppl_em.ir.block import Block
from ppl_em.ir.factor import lookup
from ppl_em.plan.plan import Plan


class SeriesQueries:
    """The part of a posterior that speaks of time; names are those of families ("z" for z_0, z_1, …)."""

    plan: Plan
    _parameters: Mapping[str, Tensor]

    def _at(self, index: int) -> Any:
        raise NotImplementedError

    def probabilities(self, name: str) -> Tensor:
        """Posterior probabilities of a latent's values."""
        raise NotImplementedError

    def mode(self) -> dict[str, Tensor]:
        """The jointly most probable assignment."""
        raise NotImplementedError

    def path(self, name: str | None = None) -> Any:
        """Smoothed marginals along a chain.

        Args:
            name: the family of latents; the first chain's by default.

        Returns:
            A Categorical over positions in the support, batch shape (*plates, T).
        """
        chain, names = self._along(name)
        if isinstance(chain, ChainPosterior):
            return dist.Categorical(probs=chain.path)
        return dist.Categorical(probs=torch.stack([self.probabilities(z) for z in names], -2))

    def filtered(self, name: str | None = None) -> Any:
        """Marginals of each latent given the observations up to its step, as :meth:`path`."""
        chain, names = self._along(name)
        return dist.Categorical(probs=chain.filtered if isinstance(chain, ChainPosterior) else chain.filtered(names))

    def predicted(self, name: str | None = None) -> Any:
        """Marginals of each state of a first-order chain given the observations *before* its step, as :meth:`path`."""
        chain, names = self._along(name)
        if isinstance(chain, ChainPosterior):
            return dist.Categorical(probs=chain.predicted)
        raise PplEmError(
            message("one-step-ahead prediction is for first-order chains", site=names[0], hint="filtered(name)")
        )

    def log_prob_by_step(self, name: str | None = None) -> Tensor:
        """Log-density of each step's observations given those before, (*plates, T); it sums to the log-likelihood.

        A chain of longer memory begins with one entry for the steps that it remembers.
        """
        return self._along(name)[0].evidence

    def forecast(self, steps: int, name: str | None = None) -> Any:
        """What follows the last observation: of each series, where padding is masked.

        Args:
            steps: how many steps ahead.
            name: a family of latents (the first chain's by default) or of observed sites.

        Returns:
            For latents a Categorical of batch shape (*plates, steps); for observations their predictive distribution, a
            mixture over the states.

        Raises:
            PplEmError: transitions or emissions vary over time, so that nothing is known of the future.
        """
        found = None if name is None else self._observed(name)
        if found is not None:
            return self._forecast_observed(steps, *found)
        chain, names = self._along(name)
        if isinstance(chain, ChainPosterior):
            return dist.Categorical(probs=chain.forecast(steps))
        return dist.Categorical(probs=chain.forecast(steps, names))

    def mode_path(self, name: str | None = None) -> Tensor:
        """The most probable path as positions in the support, (*plates, T): of a family, within the joint mode."""
        chain, names = self._along(name)
        if isinstance(chain, ChainPosterior):
            return chain.mode_path()
        chosen = chain.mode()
        plates = self.plan.program.latents[names[0]].plates
        return torch.stack([chosen[z].align(plates) for z in names], -1)

    def k_best(self, k: int, name: str | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """The ``k`` most probable joint assignments of a chain's latents.

        Args:
            k: how many.
            name: a family of the chain; the first chain by default.

        Returns:
            Values by family, (k, *plates, T), and by name for latents without a step, (k, *plates); log posterior
            probabilities (k, *plates), best first, ``-inf`` where there are fewer assignments.

        Example:
            >>> import torch, pyro, pyro.distributions as dist, ppl_em
            >>> def hmm(x):
            ...     stay = torch.tensor([[0.9, 0.1], [0.1, 0.9]])
            ...     z = 0
            ...     for t in pyro.markov(range(len(x))):
            ...         z = pyro.sample(f"z_{t}", dist.Categorical(stay[z]))
            ...         pyro.sample(f"x_{t}", dist.Normal(4.0 * z, 1.0), obs=x[t])
            >>> posterior = ppl_em.fit(hmm, torch.tensor([0.0, 1.9, 4.0])).posterior()
            >>> posterior.k_best(2)[0]["z"]
            tensor([[0, 0, 1],
                    [0, 1, 1]])
        """
        chain, names = self._along(name)
        if isinstance(chain, ChainPosterior):
            support = chain.block.latents[0].support
            assert support is not None
            paths, log_probs = chain.k_best(k)
            return {_family_name(chain.axis.family or names[0]): support[paths]}, log_probs
        chosen, log_probs = chain.k_best(k)
        latents, values = self.plan.program.latents, {}
        for family in chain.slices.families.values():
            support, plates = latents[family[0]].support, latents[family[0]].plates
            assert support is not None
            stacked = torch.stack([chosen[z].align(("@rank", *plates)) for z in family], -1)
            values[_family_name(family[0])] = support[stacked]
        for z in chain.slices.outer:
            support = latents[z].support
            assert support is not None
            values[z] = support[chosen[z].tensor]
        return values, log_probs.tensor

    def _along(self, name: str | None) -> tuple[Any, tuple[str, ...]]:
        """A chain's posterior and the latents of one of its families in time order."""
        for i, entry in enumerate(self.plan.blocks):
            block = entry.block
            if block.axis is not None:
                if name is None or name == block.axis.family or any(_of_family(name, z) for z in block.names):
                    return self._at(i), block.axis.states
            elif block.slices is not None:
                for family in block.slices.families.values():
                    if name is None or any(_of_family(name, z) for z in family):
                        return self._at(i), family
        hint = "the family's name, e.g. 'z' for z_0, z_1, …"
        raise PplEmError(message("no chain of this name", site=name or "", hint=hint))

    def _observed(self, name: str) -> tuple[int, Site] | None:
        """The stacked observed site that stands for all later steps of a family, and its block.

        Raises:
            PplEmError: there is none: steps are unlike each other, or the last one has no observation.
        """
        for i, entry in enumerate(self.plan.blocks):
            block = entry.block
            if block.axis is None and block.slices is None:
                continue
            last = block.sizes[block.axis.time if block.axis is not None else block.slices.time] - 1  # type: ignore[union-attr]
            found = [
                site
                for site in block.sites
                if site.role == "observed" and any(_of_family(name, member) for member in site.members)
            ]
            later = [site for site in found if int(block.times[site.name].max()) > 0]
            if not found:
                continue
            if len(later) != 1 or last not in block.times[later[0].name]:
                raise PplEmError(
                    message(
                        "no forecast of this observation",
                        site=name,
                        why="its steps are not alike, or the last one has none",
                        hint="forecast(steps) of the states, or result.predict()",
                    )
                )
            return i, later[0]
        return None

    def _forecast_observed(self, steps: int, index: int, site: Site) -> Any:
        block, chain = self.plan.blocks[index].block, self._at(index)
        ahead: Factor = chain.ahead(steps)
        time = block.axis.time if block.axis is not None else block.slices.time  # type: ignore[union-attr]
        varies = {d for a in site.arguments.values() for d in a.value.dims}
        if not site.lowered or site.family is None or time in varies or not set(site.scope) <= set(ahead.dims):
            raise PplEmError(
                message(
                    "no forecast of this observation",
                    site=site.name,
                    why="what it will look like after the last step is not known from its parameters alone",
                    hint="forecast(steps) of the states, or result.predict()",
                )
            )
        plates = tuple(p for p in ahead.dims if p in site.plates)
        probs = ahead.sum([d for d in ahead.dims if d not in (*plates, "@ahead", *site.scope)])
        weights = probs.align((*plates, "@ahead", *site.scope)).flatten(len(plates) + 1)
        order = (*plates, "@ahead", *site.scope, *site.inner)
        shape = [block.sizes[p] for p in plates] + [steps] + [block.sizes[z] for z in site.scope]
        shape += [site.value.sizes.get(d, 1) for d in site.inner]
        arguments = {}
        for key, argument in site.arguments.items():
            tensor = Factor(argument.evaluate(self._parameters), argument.value.dims).align(order)
            event = tensor.shape[len(order) :]
            shape_ = [max(n, m) for n, m in zip(shape, tensor.shape, strict=False)]
            arguments[key] = tensor.expand(*shape_, *event).flatten(len(plates) + 1, len(plates) + len(site.scope))
        emission = site.family(**arguments, **site.options, validate_args=False).to_event(len(site.inner))
        return dist.MixtureSameFamily(dist.Categorical(probs=weights), emission)


def _of_family(name: str, member: str) -> bool:
    return member == name or re.fullmatch(re.escape(name) + r"[_\[]?\d+\]?", member) is not None


def _family_name(member: str) -> str:
    """The name of a family, from one of its members: without the step and what joins it."""
    return re.sub(r"[_\[]?\d+\]?$", "", member) or member


def score(block: Block, site: Site, factor: Factor, chosen: Mapping[str, Factor]) -> Tensor:
    """Sum of a site's log-factor at chosen positions of its latents, padding left out."""
    sizes = {p: block.sizes[p] for p in site.plates}
    if site.name in block.times:
        times = len(block.times[site.name])
        if times > 1:
            time = block.axis.time if block.axis is not None else block.slices.time  # type: ignore[union-attr]
            sizes[time] = times
    index = positions(block, site, chosen)
    value = lookup(factor, {d: f for d, f in index.items() if d in factor.dims})
    value = value.expand(sizes)
    ends = path_ends(block) if site.name in block.times else None
    if ends is not None:
        times = block.times[site.name]
        when = Factor(times, (slices_of(block).time,)) if len(times) > 1 else Factor(times[0], ())
        within = (when + ends.map(torch.neg)).map(lambda t: t <= 0)
        value = Factor(torch.where(within.align(value.dims), value.tensor, 0.0), value.dims)
    return value.tensor.double().sum()
