"""What an exact engine is: a way to contract one block of summed latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from ppl_em.ir import Factor, Site
from ppl_em.ir.block import Block


@dataclass(frozen=True)
class Cost:
    """Predicted cost of one E-step.

    Args:
        flops: floating-point operations.
        bytes: largest amount of memory in use at once for factors and messages.
    """

    flops: float
    bytes: float


@dataclass(frozen=True)
class Weights:
    """Expected posterior weights of one site.

    Args:
        factor: posterior probability of each configuration of the site's scope. A dimension of the site that is
            missing here is broadcast (the weight is the same for each of its elements), unless it is in ``summed``.
        summed: dimensions over which the weights have been added up already.
    """

    factor: Factor
    summed: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Expected:
    """Outcome of an E-step on one block.

    Args:
        log_z: log-partition by the block's plates, in nats, scale not applied.
        weights: by site; the block's scale applied, elements without observed descendants zero.
    """

    log_z: Factor
    weights: Mapping[str, Weights]


class BlockPosterior(Protocol):
    """Queries of the posterior over one block's latents."""

    log_z: Factor

    def marginal(self, name: str) -> Factor:
        """Posterior probabilities of one latent, by plates and by its own dimension (last)."""
        ...

    def pairwise(self, a: str, b: str) -> Factor:
        """Joint posterior probabilities of two latents, by plates, then ``a``, then ``b``."""
        ...

    def mode(self) -> dict[str, Factor]:
        """The jointly most probable values: position in the support of each latent, by plates."""
        ...

    def sample(self, num_samples: int, generator: torch.Generator) -> dict[str, Factor]:
        """Joint draws: position in the support of each latent, dimension ``@draw`` first, then plates."""
        ...

    def entropy(self) -> Factor:
        """Entropy in nats, by the block's plates."""
        ...


class Engine(Protocol):
    """One method of exact summation."""

    name: str

    def reject(self, block: Block) -> str | None:
        """Why this engine cannot work on the block; None if it can."""
        ...

    def cost(self, block: Block) -> Cost:
        """Predicted cost of one E-step, from sizes alone."""
        ...

    def log_z(self, block: Block, factors: Mapping[str, Factor]) -> Factor:
        """Log-partition by the block's plates, differentiable in the factors."""
        ...

    def expected(self, block: Block, factors: Mapping[str, Factor]) -> Expected:
        """E-step: log-partition and expected weights of every site."""
        ...

    def posterior(self, block: Block, factors: Mapping[str, Factor]) -> BlockPosterior:
        """Posterior of the block, for queries."""
        ...


def full_factor(block: Block, site: Site, factor: Factor) -> Factor:
    """A site's log-factor with all its plates present (a factor that is constant along a plate counts each time)."""
    return factor.expand({p: block.sizes[p] for p in site.plates})


def count_weights(block: Block, site: Site, weights: Factor) -> Factor:
    """Expected weights with the block's scale applied and dead elements of latents set to zero."""
    if block.scale is not None:
        weights = weights * block.scale.map(lambda t: t.to(weights.tensor.dtype))
    alive = block.count_weights(site)
    if alive is not None:
        weights = weights * alive.map(lambda t: t.to(weights.tensor.dtype))
    return weights
