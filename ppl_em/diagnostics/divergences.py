"""How far the approximate posterior of each latent dimension is from its prior: what it tells about a datum."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from ppl_em.ir import Factor
from ppl_em.svi.bound import Bound, Snapshot
from ppl_em.svi.score import Scored


class Divergences:
    """Means over draws and data of KL(q ‖ prior) by dimension, and of the posteriors' means, by latent."""

    def __init__(self) -> None:
        self._count = 0
        self._gaps: dict[str, Tensor] = {}
        self._sums: dict[str, Tensor] = {}
        self._done: dict[str, list[tuple[Tensor, Tensor]]] = {}

    def add(self, draw: Sequence[Scored], bound: Bound, seen: Snapshot) -> None:
        """One draw of all latents of a batch.

        Args:
            draw: the guide's sites.
            bound: gives names and the blocks of summed latents.
            seen: the program's run with that draw.
        """
        self._count += 1
        given = posterior_weights(bound, seen)
        for site in draw:
            prior = seen.sites.get(site.name)
            if prior is None or prior.observed:
                continue
            gap = divergence(site, prior, bound, given.get(site.name))
            mean = _mean(site)
            self._gaps[site.name] = self._gaps.get(site.name, torch.zeros(())) + gap
            self._sums[site.name] = self._sums.get(site.name, torch.zeros(())) + mean

    def close(self) -> None:
        """End of a batch."""
        for name, gap in self._gaps.items():
            self._done.setdefault(name, []).append((gap / self._count, self._sums[name] / self._count))
        self._count, self._gaps, self._sums = 0, {}, {}

    def mean(self) -> dict[str, Tensor]:
        """Mean divergence over data, (D,), nats."""
        return {n: torch.cat([g for g, _ in parts]).mean(0).clamp_min(0) for n, parts in self._done.items()}

    def locations(self) -> dict[str, Tensor]:
        """Posterior means, (n, D)."""
        return {n: torch.cat([m for _, m in parts]) for n, parts in self._done.items()}


def posterior_weights(bound: Bound, seen: Snapshot) -> dict[str, Factor]:
    """Posterior probabilities of the summed latents that each site depends on, given the draw, by program site."""
    found: dict[str, Factor] = {}
    for entry in bound.plan.blocks:
        block = bound.naming.resized(entry, seen.factors, seen.sizes)
        weights = entry.engine.expected(block, bound.naming.stacked(entry, seen.factors)).weights
        for site in block.sites:
            factor = weights[site.name].factor
            if block.axis is None:
                found[site.name] = factor
                continue
            for index, (member, time) in enumerate(zip(site.members, block.times[site.name].tolist(), strict=True)):
                step = factor
                if block.axis.time in factor.dims:
                    position = factor.dims.index(block.axis.time)
                    step = Factor(
                        factor.tensor.select(position, index), factor.dims[:position] + factor.dims[position + 1 :]
                    )
                names = {block.axis.now: block.axis.states[time], block.axis.before: block.axis.states[time - 1]}
                found[member] = Factor(step.tensor, tuple(names.get(d, d) for d in step.dims))
    return found


def divergence(q: Scored, p: Scored, bound: Bound, given: Factor | None = None) -> Tensor:
    """KL(q ‖ p), in closed form where known, else of the one draw, (elements of plates, dimensions) in nats.

    Args:
        q: the guide's draw.
        p: the program's site; its distribution may vary over summed latents.
        bound: gives the names of dimensions.
        given: posterior probabilities of these latents, by plates.
    """
    event = q.fn.event_shape.numel()
    mine, theirs = elementwise(q.fn), elementwise(p.fn)
    if mine is None or theirs is None or mine.batch_shape.numel() != q.value.numel():
        gap = (q.fn.log_prob(q.value) - p.fn.log_prob(q.value)).unsqueeze(-1)
    else:
        try:
            gap = torch.distributions.kl_divergence(mine, theirs)
        except NotImplementedError:
            gap = mine.log_prob(q.value) - theirs.log_prob(q.value)
        gap = gap.expand(torch.broadcast_shapes(gap.shape, q.value.shape))
        gap = gap.reshape(*gap.shape[: gap.dim() - len(q.fn.event_shape)], event)
    gap = gap.double()
    if given is None:
        return gap.reshape(-1, gap.shape[-1])
    return _averaged(gap, p, bound, given)


def _averaged(gap: Tensor, p: Scored, bound: Bound, given: Factor) -> Tensor:
    """Mean over the posterior of summed latents of a divergence (*batch, D) that varies over them."""
    scope = bound.naming.scopes[p.name]
    named = bound.naming.layout.name_dims(p, gap, 1, 0, scope)
    plates = tuple(f.name for f in sorted(p.frames, key=lambda f: f.dim) if f.dim is not None)
    latents = tuple(dict.fromkeys(d for d in (*named.dims, *given.dims) if d not in plates))
    dims = (*plates, *latents)
    weight = given.align(dims).double().unsqueeze(-1)
    total = torch.where(weight > 0, weight * named.align(dims), 0.0)  # an impossible value counts nothing
    total = total.sum(tuple(range(len(plates), len(dims)))) if latents else total
    return total.reshape(-1, gap.shape[-1])


def _mean(q: Scored) -> Tensor:
    """Mean of q, or the draw itself where it is not known, (elements of plates, dimensions)."""
    mean, fn = q.value.detach(), elementwise(q.fn)
    if fn is not None and fn.batch_shape.numel() == q.value.numel():
        with suppress(NotImplementedError):
            mean = fn.mean.expand(mean.shape)
    return mean.double().reshape(-1, q.fn.event_shape.numel())


def elementwise(fn: Any) -> Any:
    """A distribution's independent elements; None if they depend on each other."""
    while isinstance(fn, torch.distributions.Independent):
        fn = fn.base_dist
    return None if fn.event_shape else fn
