"""A tensor whose leading dimensions are known by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Factor:
    """A tensor with one name for each leading dimension; what follows the named dimensions is the event shape.

    A log-factor has names for all its dimensions (latents and plates). A size of 1 along a named dimension means
    "constant along it", as in broadcasting.

    Args:
        tensor: values, shape ``(*[size of d for d in dims], *event_shape)``.
        dims: one name for each leading dimension, no name twice.

    Example:
        >>> import torch
        >>> f = Factor(torch.zeros(3, 5), ("z", "data"))
        >>> f.sum(("data",)).dims
        ('z',)
    """

    tensor: Tensor
    dims: tuple[str, ...]

    def __post_init__(self) -> None:
        if len(set(self.dims)) != len(self.dims) or self.tensor.dim() < len(self.dims):
            raise ValueError(f"{self.dims} do not name the dimensions of a tensor of shape {tuple(self.tensor.shape)}")

    @property
    def event_dim(self) -> int:
        """Number of trailing dimensions without a name."""
        return self.tensor.dim() - len(self.dims)

    @property
    def sizes(self) -> dict[str, int]:
        """Size of each named dimension."""
        return dict(zip(self.dims, self.tensor.shape, strict=False))

    def align(self, dims: Sequence[str]) -> Tensor:
        """The tensor with its named dimensions in the order of ``dims``; missing ones get size 1.

        Args:
            dims: a superset of this factor's names.
        """
        if tuple(dims) == self.dims:
            return self.tensor
        missing = set(self.dims) - set(dims)
        if missing:
            raise ValueError(f"cannot align {self.dims} to {tuple(dims)}: {sorted(missing)} would be lost")
        names = len(self.dims)
        order = [self.dims.index(d) for d in dims if d in self.dims]
        tensor = self.tensor.permute((*order, *range(names, self.tensor.dim())))
        for position, name in enumerate(dims):
            if name not in self.dims:
                tensor = tensor.unsqueeze(position)
        return tensor

    def to(self, dims: Sequence[str]) -> Factor:
        """As :meth:`align`, as a factor."""
        return Factor(self.align(dims), tuple(dims))

    def expand(self, sizes: dict[str, int]) -> Factor:
        """Broadcast size-1 dimensions (and add missing ones, leftmost) to the given sizes."""
        dims = tuple(d for d in sizes if d not in self.dims) + self.dims
        tensor = self.align(dims)
        shape = [sizes.get(d, tensor.shape[i]) for i, d in enumerate(dims)]
        return Factor(tensor.expand((*shape, *tensor.shape[len(dims) :])), dims)

    def squeeze(self) -> Factor:
        """Drop the named dimensions of size 1."""
        keep = tuple(d for d, n in self.sizes.items() if n != 1)
        index = tuple(slice(None) if n != 1 else 0 for n in self.sizes.values())
        return Factor(self.tensor[index], keep)

    def reduce(self, dims: Iterable[str], operation: Callable[..., Tensor]) -> Factor:
        """Apply a reduction (called as ``operation(tensor, positions)``) over some named dimensions."""
        gone = set(dims) & set(self.dims)
        if not gone:
            return self
        positions = tuple(self.dims.index(d) for d in self.dims if d in gone)
        return Factor(operation(self.tensor, positions), tuple(d for d in self.dims if d not in gone))

    def sum(self, dims: Iterable[str]) -> Factor:
        """Sum over named dimensions (the product of plates, for log-factors)."""
        return self.reduce(dims, torch.sum)

    def logsumexp(self, dims: Iterable[str]) -> Factor:
        """Sum out named dimensions in the log domain; all −inf gives −inf with a zero gradient."""
        return self.reduce(dims, logsumexp)

    def amax(self, dims: Iterable[str]) -> Factor:
        """Maximum over named dimensions."""
        return self.reduce(dims, torch.amax)

    def map(self, function: Callable[[Tensor], Tensor]) -> Factor:
        """Apply an elementwise function."""
        return Factor(function(self.tensor), self.dims)

    def __add__(self, other: Factor) -> Factor:
        dims = self.dims + tuple(d for d in other.dims if d not in self.dims)
        return Factor(self.align(dims) + other.align(dims), dims)

    def __mul__(self, other: Factor) -> Factor:
        dims = self.dims + tuple(d for d in other.dims if d not in self.dims)
        return Factor(self.align(dims) * other.align(dims), dims)


class _LogSumExp(torch.autograd.Function):
    """``torch.logsumexp`` that keeps no copies for the backward pass; its derivative is zero where all is −inf."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, dims: tuple[int, ...]) -> Tensor:
        total = torch.logsumexp(tensor, dims, keepdim=True)
        ctx.save_for_backward(tensor, total)
        ctx.dims = dims
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        tensor, total = ctx.saved_tensors
        total = torch.where(torch.isfinite(total), total, torch.zeros_like(total))
        return grads[0] * (tensor - total).exp(), None


def logsumexp(tensor: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """``torch.logsumexp`` whose gradient is zero, not NaN, where everything summed is −inf."""
    dims = (dim,) if isinstance(dim, int) else tuple(dim)
    vectorised = torch._C._are_functorch_transforms_active()  # evaluated at many points at once, without derivatives
    total = torch.logsumexp(tensor, dims, keepdim=True) if vectorised else _LogSumExp.apply(tensor, dims)
    positions = {d % tensor.dim() for d in dims}
    return total.reshape([n for i, n in enumerate(tensor.shape) if i not in positions])


def add_all(factors: Iterable[Factor]) -> Factor:
    """Sum of log-factors over the union of their dimensions."""
    iterator = iter(factors)
    total = next(iterator)
    for factor in iterator:
        total = total + factor
    return total


def lookup(table: Factor, index: Mapping[str, Factor]) -> Factor:
    """A factor at given positions of its latents.

    Args:
        table: log-factor over latents and plates.
        index: int64 position of each latent, by plate.
    """
    latents = [d for d in table.dims if d in index]
    plates = tuple(d for d in table.dims if d not in index)
    plates += tuple(d for z in latents for d in index[z].dims if d not in plates)
    plates = tuple(dict.fromkeys(plates))
    if not latents:
        return table
    sizes = {d: n for z in latents for d, n in index[z].sizes.items()}
    picks = []
    for d in table.dims:
        if d in index:
            picks.append(index[d].align(plates))
        else:
            shape = [-1 if p == d else 1 for p in plates]
            picks.append(torch.arange(table.sizes[d], device=table.tensor.device).reshape(shape))
    result = table.tensor[tuple(torch.broadcast_tensors(*picks))] if picks else table.tensor
    full = [sizes.get(d, table.sizes.get(d, 1)) for d in plates]
    return Factor(result.expand(full), plates)
