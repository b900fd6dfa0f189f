"""Arguments that are linear predictors: a design matrix times coefficients, under a link function."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.ir.transform import IDENTITY, Transform


@dataclass(frozen=True)
class Design:
    """``argument[g, n] = transform(offset[g, n] + Σ_f features[g, n, f] · θ[index[g, f]])``.

    θ is the concatenation of the flattened parameters. Where the argument is a vector of E categories, each category
    is a cell of its own and the inverse link function (softmax) takes the categories of one datum together.

    Args:
        parameters: their names, in the order of the concatenation.
        index: (G, F) positions in θ, −1 where a cell has fewer features.
        features: (G, N, F), or (1, N, F) where all cells share the covariates.
        offset: (G, N), or None for zero.
        cells: names of the dimensions that G flattens (latents); the categories are its last factor.
        data: names of the dimensions that N flattens.
        shape: sizes of ``cells + data``.
        transform: the inverse link function, elementwise or over the categories.
        event: number of categories E, 0 for a scalar argument.

    Reference:
        McCullagh, P. & Nelder, J. (1989). Generalized Linear Models. Section 2.2.
    """

    parameters: tuple[str, ...]
    index: Tensor
    features: Tensor
    offset: Tensor | None
    cells: tuple[str, ...]
    data: tuple[str, ...]
    shape: tuple[int, ...]
    transform: Transform = IDENTITY
    event: int = 0

    def coefficients(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """θ, the parameters flattened and concatenated."""
        return torch.cat([parameters[p].reshape(-1) for p in self.parameters])

    def predictor(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The linear predictor, (G, N)."""
        theta = self.coefficients(parameters)
        by_cell = torch.where(self.index >= 0, theta[self.index.clamp_min(0)], 0.0)
        if len(self.features) == 1:
            predictor = by_cell @ self.features[0].mT
        else:
            predictor = (self.features @ by_cell[..., None])[..., 0]
        return predictor if self.offset is None else predictor + self.offset

    def evaluate(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The argument's compact value, shaped by ``cells + data`` (and categories)."""
        return self.transform.forward(self.arranged(self.predictor(parameters)))

    def arranged(self, predictor: Tensor) -> Tensor:
        """A linear predictor (G, N) shaped by ``cells + data`` (and categories)."""
        if not self.event:
            return predictor.reshape(self.shape)
        inner = len(self.cells)
        return predictor.reshape(*self.shape[:inner], self.event, *self.shape[inner:]).movedim(inner, -1)
