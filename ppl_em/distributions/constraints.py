"""Constraints of grammars, alignments and their values."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor
from torch.distributions import StickBreakingTransform, Transform, biject_to, transform_to
from torch.distributions.constraints import Constraint, dependent, real_vector, simplex
from torch.distributions.transforms import SoftmaxTransform

from ppl_em.errors import DataError, message

__all__ = ["given", "padded_labels", "square_simplex", "table_simplex"]

given = dependent(is_discrete=True, event_dim=0)  # pyright: ignore[reportArgumentType]
"""Constraint of an argument that is part of the data: lengths, the number of the blank. It is not checked."""


class _TableSimplex(type(simplex)):
    """The simplex, with a tolerance that suits sums of many float32 numbers."""

    def check(self, value: Tensor) -> Tensor:
        tolerance = 1e-6 if value.dtype is torch.float64 else 1e-4
        return (value >= 0).all(-1) & ((value.double().sum(-1) - 1).abs() < tolerance)


class _SquareSimplex(Constraint):
    """Non-negative square matrices whose entries sum to one."""

    event_dim = 2

    def check(self, value: Tensor) -> Tensor:
        return table_simplex.check(value.flatten(-2))


class padded_labels(Constraint):  # noqa: N801 - constraints are spelled in lower case
    """Sequences of labels 0 … num_labels − 1 except `excluded`, then padding.

    Where `lengths` are given, only that many leading entries are looked at; else padding is any entry that is
    negative or excluded, and must stand at the end.
    """

    is_discrete = True
    event_dim = 1

    def __init__(self, num_labels: int, lengths: Tensor | None = None, excluded: int | None = None) -> None:
        self.num_labels, self.lengths, self.excluded = num_labels, lengths, excluded
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        """Returns whether each sequence is valid, (…), for `value` (…, N)."""
        label = (value >= 0) & (value < self.num_labels)
        if self.excluded is not None:
            label = label & (value != self.excluded)
        if self.lengths is not None:
            position = torch.arange(value.shape[-1], device=value.device)
            return (label | (position >= self.lengths.unsqueeze(-1))).all(-1)
        padding = (value < 0) if self.excluded is None else (value < 0) | (value == self.excluded)
        ordered = ~(padding[..., :-1] & label[..., 1:]).any(-1)
        return (label | padding).all(-1) & ordered

    def lengths_of(self, value: Tensor) -> Tensor:
        """Returns the number of labels of each sequence: as given, or up to the first padding."""
        if self.lengths is not None:
            return self.lengths
        label = value >= 0
        if self.excluded is not None:
            label = label & (value != self.excluded)
        return label.long().cumprod(-1).sum(-1)

    def validate(self, value: Tensor) -> None:
        """Raises DataError, with the reason, unless all sequences are valid.

        Args:
            value: (…, N).
        """
        if value.is_floating_point() or value.is_complex():
            hint = "value.long()"
            raise DataError(message("a sequence of labels must hold integers", value=value.dtype, hint=hint))
        longest = int(self.lengths.max()) if self.lengths is not None and self.lengths.numel() else 0
        if longest > value.shape[-1]:
            hint = "padding the sequences to the longest length"
            raise DataError(message(f"a length exceeds the width {value.shape[-1]}", value=longest, hint=hint))
        valid = self.check(value)
        if not bool(valid.all()):
            what = f"{int((~valid).sum())} sequences hold entries outside 0 … {self.num_labels - 1}"
            if self.excluded is not None:
                what += f", or the blank {self.excluded}, before their end"
            hint = "padding with -1, or giving the lengths"
            raise DataError(message(what, hint=hint))


class _SquareSimplexTransform(Transform):
    """Maps vectors to square matrices on the simplex, by a transform to the flat simplex."""

    domain = real_vector
    codomain = _SquareSimplex()

    def __init__(self, flat: Transform) -> None:
        super().__init__()
        self.flat = flat
        self.bijective = flat.bijective

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _SquareSimplexTransform) and self.flat == other.flat

    def _call(self, x: Tensor) -> Tensor:
        flat = torch.as_tensor(self.flat(x))
        side = isqrt(flat.shape[-1])
        return flat.unflatten(-1, (side, side))

    def _inverse(self, y: Tensor) -> Tensor:
        return torch.as_tensor(self.flat.inv(y.flatten(-2)))

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns that of the flat transform: reshaping changes no volume."""
        return self.flat.log_abs_det_jacobian(x, y.flatten(-2))

    def forward_shape(self, shape: torch.Size) -> torch.Size:
        """Returns the shape of the matrix for the shape of the vector."""
        side = isqrt(self.flat.forward_shape(shape)[-1])
        return torch.Size((*shape[:-1], side, side))

    def inverse_shape(self, shape: torch.Size) -> torch.Size:
        """Returns the shape of the vector for the shape of the matrix."""
        return self.flat.inverse_shape(torch.Size((*shape[:-2], shape[-2] * shape[-1])))


table_simplex = _TableSimplex()
square_simplex = _SquareSimplex()
biject_to.register(_TableSimplex, lambda constraint: StickBreakingTransform())
transform_to.register(_TableSimplex, lambda constraint: SoftmaxTransform())


@biject_to.register(_SquareSimplex)
def _biject(constraint: Constraint) -> Transform:
    return _SquareSimplexTransform(StickBreakingTransform())


@transform_to.register(_SquareSimplex)
def _transform(constraint: Constraint) -> Transform:
    return _SquareSimplexTransform(SoftmaxTransform())
