"""Weighted least squares for the coefficients of linear predictors of normal means.

Reference:
    Jordan, M. & Jacobs, R. (1994). Hierarchical mixtures of experts and the EM algorithm. Neural Computation 6(2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from ppl_em.ir import Factor, Site
from ppl_em.ir.design import Design

#: Directions whose curvature is below this part of the largest are not determined and keep their value.
NULL = 1e-13


class NormalEquations(Protocol):
    """Normal equations of one site by cell: (G, F, F) and (G, F)."""

    @property
    def gram(self) -> Tensor:
        """Σ w x xᵀ, (G, F, F)."""
        ...

    @property
    def pull(self) -> Tensor:
        """Σ w x (value − loc), (G, F)."""
        ...


class Regression:
    """The coefficients of one group of normal sites: normal equations assembled from designs.

    Args:
        sites: normal sites whose ``loc`` is a linear predictor.
        names: the coefficients' parameters.
        sizes: size of every named dimension.
    """

    def __init__(self, sites: Sequence[Site], names: Sequence[str], sizes: Mapping[str, int]) -> None:
        self.sites, self.names, self.sizes = tuple(sites), tuple(names), dict(sizes)

    def solve(
        self, weights: Mapping[str, tuple[Factor, frozenset[str]]], parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The maximiser of Q in the coefficients, at the current scales.

        Args:
            weights: per site, expected weights and the dimensions over which they are summed already.
            parameters: current values.
        """
        return self.solved(*self.equations(weights, parameters), parameters)

    def equations(
        self, weights: Mapping[str, tuple[Factor, frozenset[str]]], parameters: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Σ w/σ² x xᵀ (P, P) and Σ w/σ² x (value − loc) (P,), arguments as for :meth:`solve`."""
        spans, total = self._spans(parameters)
        hessian = torch.zeros(total, total, dtype=torch.float64)
        gradient = torch.zeros(total, dtype=torch.float64)
        for site in self.sites:
            design = site.arguments["loc"].design
            assert design is not None
            self._add(site, design, weights[site.name], parameters, spans, hessian, gradient)
        return hessian, gradient

    def solved(self, hessian: Tensor, gradient: Tensor, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The coefficients that solve normal equations about their current values."""
        return self._moved(_solve(hessian, gradient), self._spans(parameters)[0], parameters)

    def stacked(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """All coefficients as one vector (P,) in float64."""
        return torch.cat([parameters[n].detach().double().reshape(-1) for n in self.names])

    def solve_moments(
        self, moments: Mapping[str, NormalEquations], parameters: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """As :meth:`solve`, from normal equations by cell that were summed elsewhere, at the current coefficients.

        Args:
            moments: per site, Σ w x xᵀ and Σ w x (value − loc) of each cell.
            parameters: current values.
        """
        return self.solved(*self.equations_of(moments, parameters), parameters)

    def equations_of(
        self, moments: Mapping[str, NormalEquations], parameters: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`equations`, arguments as for :meth:`solve_moments`."""
        spans, total = self._spans(parameters)
        hessian = torch.zeros(total, total, dtype=torch.float64)
        gradient = torch.zeros(total, dtype=torch.float64)
        for site in self.sites:
            design, scale = site.arguments["loc"].design, site.arguments["scale"]
            assert design is not None
            precision = scale.evaluate(parameters).detach().double() ** -2
            given = moments[site.name]
            for places, weight, gram, pull in zip(
                self._positions(design, parameters, spans), precision, given.gram, given.pull, strict=True
            ):
                known = places >= 0
                at = places[known]
                hessian.index_put_((at[:, None], at[None, :]), weight * gram[known][:, known], accumulate=True)
                gradient.index_add_(0, at, weight * pull[known])
        return hessian, gradient

    def _spans(self, parameters: Mapping[str, Tensor]) -> tuple[dict[str, slice], int]:
        """Where each parameter stands among the coefficients, and their number."""
        spans, total = {}, 0
        for n in self.names:
            spans[n] = slice(total, total + parameters[n].numel())
            total += parameters[n].numel()
        return spans, total

    def _moved(self, step: Tensor, spans: Mapping[str, slice], parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        result = {}
        for n in self.names:
            old = parameters[n]
            result[n] = (old.double() + step[spans[n]].reshape(old.shape)).to(old.dtype)
        return result

    def _add(
        self,
        site: Site,
        design: Design,
        weights: tuple[Factor, frozenset[str]],
        parameters: Mapping[str, Tensor],
        spans: Mapping[str, slice],
        hessian: Tensor,
        gradient: Tensor,
    ) -> None:
        """Add one site's Σ w/σ² X Xᵀ and Σ w/σ² X (x − loc)."""
        order = (*design.cells, *design.data)
        shape = [self.sizes[d] for d in order]
        scale = site.arguments["scale"]
        precision = Factor(scale.evaluate(parameters).detach().double(), scale.value.dims).map(lambda s: s**-2)
        w = weights[0].map(Tensor.double)
        if site.mask is not None:
            w = w * site.mask.map(Tensor.double)
        w = w * precision
        extra = [d for d in (*w.dims, *site.value.dims) if d not in order]
        loc = Factor(design.evaluate(parameters).detach().double(), order)
        residual = site.value.map(Tensor.double) + loc.map(torch.neg)
        pull = (w * residual).sum(extra)
        multiplicity = self._multiplicity(site, w, weights[1], order)
        w = w.expand({d: self.sizes[d] for d in extra if d not in w.dims}).sum(extra)
        curve = w.align(order).expand(shape).reshape(len(design.index), -1) * multiplicity
        slope = pull.align(order).expand(shape).reshape(len(design.index), -1) * multiplicity
        position = self._positions(design, parameters, spans)
        for g, places in enumerate(position):
            features = design.features[g if len(design.features) > 1 else 0].double()
            known = places >= 0
            x, at = features[:, known], places[known]
            weighted = x * curve[g][:, None]
            hessian.index_put_((at[:, None], at[None, :]), x.mT @ weighted, accumulate=True)
            gradient.index_add_(0, at, x.mT @ slope[g])

    def _multiplicity(self, site: Site, w: Factor, summed: frozenset[str], order: tuple[str, ...]) -> float:
        count = 1.0
        for d in (*site.dims, *site.inner):
            if d not in w.dims and d not in order and d not in summed and d not in site.value.dims:
                count *= self.sizes.get(d, 1)
        return count

    def _positions(self, design: Design, parameters: Mapping[str, Tensor], spans: Mapping[str, slice]) -> Tensor:
        """(G, F) positions of a design's coefficients among those that are solved for, −1 for others."""
        lookup = []
        for p in design.parameters:
            count = parameters[p].numel()
            span = spans.get(p)
            lookup.append(torch.full((count,), -1) if span is None else torch.arange(span.start, span.stop))
        table = torch.cat(lookup)
        return torch.where(design.index >= 0, table[design.index.clamp_min(0)], -1)


def _solve(hessian: Tensor, gradient: Tensor) -> Tensor:
    """H⁻¹ g, with the pseudo-inverse in directions that the data do not determine."""
    scale = hessian.diagonal().clamp_min(torch.finfo(torch.float64).tiny).rsqrt()
    scaled = hessian * scale[:, None] * scale[None, :]
    factor, bad = torch.linalg.cholesky_ex(scaled)
    if int(bad) == 0 and float(factor.diagonal().min()) ** 2 > 1e-10:
        return scale * torch.cholesky_solve((scale * gradient)[:, None], factor)[:, 0]
    values, vectors = torch.linalg.eigh(scaled)
    inverse = torch.where(values > NULL * values.abs().max(), 1 / values, torch.zeros_like(values))
    return scale * (vectors @ (inverse * (vectors.mT @ (scale * gradient))))
