"""The posterior over the latents, as distributions and draws of the sites that the user wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_em.em.e_step import site_factors
from ppl_em.errors import PplEmError, message
from ppl_em.exact.chain_posterior import ChainPosterior
from ppl_em.exact.engine import BlockPosterior
from ppl_em.ir import Factor, Latent
from ppl_em.plan.plan import Plan
from ppl_em.series import SeriesQueries, score


class Posterior(SeriesQueries):
    """Exact posterior over the summed latents of a program at given parameters.

    Args:
        plan: how the latents are contracted.
        parameters: constrained values.
        factors: log-factor of each site of the plan's blocks; None evaluates them at these values.

    Example:
        >>> import ppl_em, torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     loc = pyro.param("loc", torch.tensor([-1.0, 1.0]))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
        ...         pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)
        >>> result = ppl_em.fit(model, torch.tensor([-3.0, -2.0, 2.0, 3.0]))
        >>> result.posterior().marginal("z").probs.shape
        torch.Size([4, 2])
    """

    def __init__(
        self, plan: Plan, parameters: Mapping[str, Tensor], factors: Mapping[str, Factor] | None = None
    ) -> None:
        if factors is None:
            with torch.no_grad():
                factors = site_factors(plan, parameters)
        self.plan, self._parameters = plan, parameters
        self._parameters = dict(parameters)
        self._factors = factors
        self._blocks: dict[int, BlockPosterior] = {}
        self._home = {z: i for i, b in enumerate(plan.blocks) for z in b.block.names}
        self._steps: dict[str, int] = {}  # states of time axes whose steps were run at once, by name
        for i, entry in enumerate(plan.blocks):
            axis = entry.block.axis
            if axis is not None and axis.family is not None:
                for z in entry.block.names:
                    del self._home[z]
                self._steps.update(dict.fromkeys(axis.states, i))

    def _block(self, name: str) -> BlockPosterior:
        if name in self._steps:
            return self._at(self._steps[name])
        if name not in self._home:
            raise PplEmError(message("not a latent that was summed", site=name, hint=f"one of {sorted(self._home)}"))
        return self._at(self._home[name])

    def _at(self, index: int) -> BlockPosterior:
        if index not in self._blocks:
            entry = self.plan.blocks[index]
            self._blocks[index] = entry.engine.posterior(entry.block, self._factors)
        return self._blocks[index]

    def _latent(self, name: str) -> Latent:
        if name in self._steps:
            return self.plan.blocks[self._steps[name]].block.latents[0]
        return self.plan.program.latents[name]

    def marginal(self, name: str) -> Any:
        """Posterior marginal of a latent.

        Args:
            name: site name.

        Returns:
            A distribution of the site's own kind (Bernoulli, OneHotCategorical, else Categorical over positions in
            the support), batch shape that of the site's plates.
        """
        probs = self.probabilities(name)  # an unknown name is refused here
        return _distribution(self._latent(name), probs)

    def probabilities(self, name: str) -> Tensor:
        """Posterior probabilities of a latent's values, (*plates, K)."""
        factor = self._block(name).marginal(name)
        return factor.align((*self._latent(name).plates, name)).clamp(0, 1)

    @property
    def marginals(self) -> dict[str, Any]:
        """Marginals of all latents by name."""
        return {z: self.marginal(z) for z in self._home}

    def pairwise(self, a: str, b: str) -> Tensor:
        """Joint posterior probabilities of two latents, (*plates, K_a, K_b); independent blocks give a product."""
        home = {**self._home, **self._steps}
        if home.get(a) != home.get(b):
            first, second = self._block(a).marginal(a), self._block(b).marginal(b)
            product = first * second
        else:
            product = self._block(a).pairwise(a, b)
        plates = tuple(d for d in product.dims if d not in (a, b))
        return product.align((*plates, a, b))

    def mode(self) -> dict[str, Tensor]:
        """The jointly most probable assignment (Viterbi on a chain): values by site, shaped by plates.

        A series that ends early has the most probable path of its own steps; padding goes on with the likeliest moves.
        """
        values = self._values({z: f for i in self._whole() for z, f in self._at(i).mode().items()})
        for i, family in self._families():
            chain = self._at(i)
            assert isinstance(chain, ChainPosterior)
            values[family] = self._support(i)[chain.mode_path()]
        return values

    def sample(self, num_samples: int = 1, seed: int | None = None) -> dict[str, Tensor]:
        """Exact joint draws of all latents.

        Args:
            num_samples: number of draws.
            seed: of these draws; None draws afresh at each call.

        Returns:
            Values by site, (num_samples, *plates, *event_shape).
        """
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        drawn: dict[str, Factor] = {}
        for i in self._whole():
            drawn.update(self._at(i).sample(num_samples, generator))
        values = self._values(drawn, ("@draw",))
        for i, family in self._families():
            chain = self._at(i)
            assert isinstance(chain, ChainPosterior)
            values[family] = self._support(i)[chain.sample_path(num_samples, generator)]
        return values

    def by_step(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One draw as the sample statements return it: single steps, and a size of 1 where plates leave gaps.

        Args:
            values: by site, without a dimension for draws; families of states that were run at once have time last.
        """
        single = dict(values)
        for i, family in self._families():
            axis = self.plan.blocks[i].block.axis
            assert axis is not None
            if family in single:
                single.update(zip(axis.states, single.pop(family).unbind(-1), strict=True))
        shaped = {}
        for name, value in single.items():
            latent = self._latent(name)
            dims = [self.plan.program.plates[p].dim for p in latent.plates]
            batch = [1] * max((-d for d in dims), default=0)
            for d, size in zip(dims, value.shape, strict=False):
                batch[d] = size
            shaped[name] = value.reshape([*batch, *value.shape[value.dim() - len(latent.event_shape) :]])
        return shaped

    def _families(self) -> list[tuple[int, str]]:
        """Blocks whose steps were run at once, with the name of their states' family."""
        axes = [(i, e.block.axis) for i, e in enumerate(self.plan.blocks)]
        return [(i, a.family) for i, a in axes if a is not None and a.family is not None]

    def _whole(self) -> list[int]:
        """The other blocks."""
        apart = {i for i, _ in self._families()}
        return [i for i in range(len(self.plan.blocks)) if i not in apart]

    def _support(self, index: int) -> Tensor:
        support = self.plan.blocks[index].block.latents[0].support
        assert support is not None
        return support

    def _values(self, positions: Mapping[str, Factor], leading: tuple[str, ...] = ()) -> dict[str, Tensor]:
        values = {}
        for z in self._home:
            latent = self._latent(z)
            assert latent.support is not None
            order = (*leading, *latent.plates)
            index = positions[z].expand({p: self.plan.program.plates[p].size for p in latent.plates})
            values[z] = latent.support[index.align(order)]
        return values

    def entropy(self) -> Tensor:
        """Entropy of the joint posterior in nats, one number (the sum over plates); a chain's padding is left out."""
        parts = [self._at(i).entropy().tensor.double().sum() for i in range(len(self.plan.blocks))]
        return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64)

    def log_prob_of_mode(self) -> float:
        """Log posterior probability of the joint mode, summed over plates."""
        total = 0.0
        for i, entry in enumerate(self.plan.blocks):
            posterior = self._at(i)
            chosen = posterior.mode()
            block = entry.block
            joint = torch.zeros((), dtype=torch.float64)
            for site in block.sites:
                joint = joint + score(block, site, self._factors[site.name], chosen)
            total += float(
                joint - posterior.log_z.expand({p: block.sizes[p] for p in block.plates}).tensor.double().sum()
            )
        return total

    # hidden structures ----------------------------------------------------------------------------------------

    def structure(self, name: str, first: int | None = None) -> Any:
        """Posterior over the hidden structure of an observed site: parse trees, alignments.

        Args:
            name: site name.
            first: only so many elements of the site's leading dimension; None takes all.

        Returns:
            What the distribution's own ``posterior`` gives for the observed value, by the site's plates; where the
            site depends on summed latents, given each of their values, which come first.

        Raises:
            PplEmError: the site has no hidden structure, or its distribution no posterior.
            DataError: an observation is impossible.
        """
        from ppl_em.em.structured import distributions, structured_sites, value_of

        sites = {s.name: s for s in structured_sites(self.plan)}
        if name not in sites:
            raise PplEmError(message("not a site with a hidden structure", site=name, hint=f"one of {sorted(sites)}"))
        with torch.no_grad():
            distribution: Any = distributions(self.plan, [sites[name]], self._parameters)[name]
        if not hasattr(distribution, "posterior"):
            kind = type(distribution).__name__
            raise PplEmError(message(f"{kind} has no posterior", site=name, hint=f"defining {kind}.posterior(value)"))
        value = value_of(sites[name])
        if first is not None:
            distribution, value = distribution.leading(value, first)
        return distribution.posterior(value)


def _distribution(latent: Latent, probs: Tensor) -> Any:
    support = latent.values
    if latent.optional:  # given that it is reached
        probs = probs[..., :-1]
        probs = probs / probs.sum(-1, keepdim=True)
    if latent.folded and support.dim() == 1 + latent.folded:
        probs, support = _elementwise(probs, support)
    square = support.dim() == 2 and support.shape[0] == support.shape[1]
    if latent.event_shape and square and bool((support.sum(-1) == 1).all()):
        return dist.OneHotCategorical(probs=probs)
    if support.dim() == 1 and support.is_floating_point() and support.tolist() == [0.0, 1.0]:
        return dist.Bernoulli(probs=probs[..., 1])
    return dist.Categorical(probs=probs)


def _elementwise(probs: Tensor, support: Tensor) -> tuple[Tensor, Tensor]:
    """Marginals of the elements of a latent whose elements are summed jointly.

    Args:
        probs: (*plates, K) of the joint values.
        support: (K, *folded).

    Returns:
        (*plates, *folded, V) and the V values of one element.
    """
    values = support.unique()
    hot = (support.unsqueeze(-1) == values).to(probs.dtype)
    flat = probs @ hot.reshape(len(support), -1)
    return flat.reshape(*probs.shape[:-1], *hot.shape[1:]), values
