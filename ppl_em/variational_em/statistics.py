"""What a site tells the latents that it feeds: expected statistics by row, and the rows' places among their elements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.exact.engine import Weights
from ppl_em.ir import Factor, Site
from ppl_em.mstep.assemble import Assembly
from ppl_em.mstep.block import Block
from ppl_em.variational_em.factors import Belief


@dataclass(frozen=True)
class Rows:
    """The rows of one site: settings of its arguments, in the order of some of its dimensions.

    Args:
        dims: these dimensions.
        sizes: of them.
    """

    dims: tuple[str, ...]
    sizes: Mapping[str, int]

    def spread(self, factor: Factor) -> Tensor:
        """A factor's entries by row, (R, *event)."""
        event = tuple(factor.tensor.shape[len(factor.dims) :])
        wide = factor.align(self.dims).expand([*(self.sizes[d] for d in self.dims), *event])
        return wide.reshape(-1, *event)

    @property
    def count(self) -> int:
        """R."""
        return torch.Size([self.sizes[d] for d in self.dims]).numel()


def value_rows(site: Site) -> Rows:
    """The elements (vectors, matrices) of the value of a prior as rows."""
    value = site.value
    return Rows(value.dims, dict(zip(value.dims, value.tensor.shape, strict=False)))


def rows_of_value(site: Site, factor: Factor) -> Tensor:
    """A factor's entries for each element (vector, matrix) of the value of a prior, (R, *event)."""
    return value_rows(site).spread(factor)


class Observed:
    """A site whose values are data or summed latents.

    Args:
        site: the site.
        sizes: size of every named dimension.
    """

    def __init__(self, site: Site, sizes: Mapping[str, int]) -> None:
        self.site = site
        self.assembly = Assembly([site], sizes, frozenset())
        layout = self.assembly.layouts[0]
        self.rows = Rows((*layout.rows, *layout.extra), layout.sizes)

    def blocks(self, weights: Weights, _: Belief | None) -> tuple[Block, ...]:
        """The weighted data by row."""
        return self.assembly.blocks({self.site.name: (weights.factor, weights.summed)})

    def variance(self, _: Belief | None) -> Tensor | None:
        """Data have none."""
        return None


class Drawn:
    """The prior of a global latent, as a site that feeds latents above it: its value is the latent's factor.

    Args:
        site: the prior.
    """

    def __init__(self, site: Site) -> None:
        self.site = site
        self.rows = value_rows(site)
        self.event = tuple(site.value.tensor.shape[len(site.value.dims) :])
        self.inverse = site.family is not None and site.family.__name__ == "InverseGamma"

    def blocks(self, weights: Weights, belief: Belief | None) -> tuple[Block, ...]:
        """Each row has one datum: the mean of the latent's factor."""
        assert belief is not None
        count = self.rows.count
        value = belief.mean
        if self.inverse:  # its statistic is 1/θ
            assert belief.precision is not None
            value = belief.precision.reciprocal()
        datum = value.double().reshape(count, 1, *self.event)
        return (Block(torch.ones(count, 1, dtype=torch.float64), datum, torch.arange(count)),)

    def variance(self, belief: Belief | None) -> Tensor | None:
        """The datum's variance by row; of vectors their covariance."""
        if belief is None or belief.variance is None:
            return None
        return belief.variance.double().reshape(self.rows.count, *self.event, *self.event)
