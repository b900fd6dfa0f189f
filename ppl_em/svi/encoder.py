"""The amortised encoder: standardised observations of a datum in, inputs of variational families out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ppl_em.svi.observations import Column, Observations


@dataclass(frozen=True)
class Shape:
    """How a column reaches the latents of one group of plates.

    Args:
        column: what is read.
        own: plates of the group along which it may vary.
        pooled: its other plates, averaged over.
    """

    column: Column
    own: tuple[str, ...]
    pooled: tuple[str, ...]


def shapes_for(columns: Sequence[Column], plates: Sequence[str]) -> tuple[Shape, ...]:
    """Columns that share a plate with the group, those of the whole datum first."""
    shapes = []
    for column in columns:
        names = [n for n, _ in sorted(column.plates, key=lambda p: p[1])]
        own = tuple(n for n in plates if n in names)
        if own:
            shapes.append(Shape(column, own, tuple(n for n in names if n not in plates)))
    return tuple(sorted(shapes, key=lambda s: len(s.pooled)))


def arrange(shape: Shape, plates: Sequence[str], observed: Observations) -> tuple[Tensor, Tensor | None]:
    """Features of a column, (*plates, *pooled, features), size 1 along plates where it does not vary, and its mask."""
    column = shape.column
    value, mask = observed[column.name]
    if column.categories:
        value = torch.nn.functional.one_hot(value.long(), column.categories)
        event_dim = column.event_dim + 1
    else:
        event_dim = column.event_dim
    batch = value.dim() - event_dim
    dims = dict(column.plates)
    order = [batch + dims[p] if p in dims else -1 for p in (*plates, *shape.pooled)]
    rest = [i for i in range(value.dim()) if i not in order]
    present = [i for i in order if i >= 0]
    tensor = value if present + rest == list(range(value.dim())) else value.permute(present + rest)
    for position, axis in enumerate(order):
        if axis < 0:
            tensor = tensor.unsqueeze(position)
    tensor = tensor.reshape(tensor.shape[: len(order)] + (-1,))
    if mask is None:
        return tensor, None
    hidden = mask.permute([i for i in present if i < mask.dim()] + [i for i in rest if i < mask.dim()])
    for position, axis in enumerate(order):
        if axis < 0:
            hidden = hidden.unsqueeze(position)
    return tensor, hidden.reshape(hidden.shape[: len(order)] + (-1,)).any(-1, keepdim=True)


class Standardise(nn.Module):
    """Subtracts the mean and divides by the standard deviation that were seen at the start; hidden entries become 0.

    Args:
        features: (…, F) values.
        seen: (…, 1) mask or None.
    """

    loc: Tensor
    precision: Tensor

    def __init__(self, features: Tensor, seen: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        flat = features.reshape(-1, features.shape[-1]).double()
        if seen is not None:
            flat = flat[seen.expand(features.shape[:-1] + (1,)).reshape(-1)]
        spread = flat.std(0, correction=0) if len(flat) else torch.ones(features.shape[-1])
        self.register_buffer("loc", (flat.mean(0) if len(flat) else torch.zeros(features.shape[-1])).to(dtype))
        self.register_buffer("precision", torch.where(spread > 1e-8, 1 / spread, torch.ones_like(spread)).to(dtype))
        self.width = features.shape[-1] + (seen is not None)

    def forward(self, features: Tensor, seen: Tensor | None) -> Tensor:
        """(…, F) to (…, F), or (…, F + 1) with the mask as the last feature."""
        result = (features.to(self.loc.dtype) - self.loc) * self.precision
        if seen is None:
            return result
        kept = seen.to(result.dtype)
        return torch.cat([result * kept, kept.expand(result.shape[:-1] + (1,))], -1)


def perceptron(sizes: Sequence[int]) -> nn.Sequential:
    """A multilayer perceptron, rectified after each layer but the last."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(sizes, sizes[1:], strict=False)):
        layers += [nn.ReLU()] * (i > 0) + [nn.Linear(a, b)]
    return nn.Sequential(*layers)


class Encoder(nn.Module):
    """Inputs of the variational families of one group of plates.

    A perceptron with a linear path beside it, so that posteriors that are linear in the data (those of Gaussian
    programs) are reached exactly. Observations in further plates are embedded one by one and averaged.

    Args:
        plates: the group's plates, leftmost first.
        columns: what is observed.
        example: observations that set the standardisation.
        num_inputs: how many numbers the families take.
        num_parents: how many numbers of latents drawn before are fed in.
        hidden: widths of the hidden layers.
        dtype: of all parameters.
    """

    def __init__(
        self,
        plates: tuple[str, ...],
        columns: Sequence[Column],
        example: Observations,
        num_inputs: int,
        num_parents: int,
        hidden: Sequence[int],
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.plates = plates
        self.shapes = shapes_for(columns, plates)
        self.standardise, self.pools = nn.ModuleList(), nn.ModuleList()
        width = num_parents
        for shape in self.shapes:
            layer = Standardise(*arrange(shape, plates, example), dtype)
            self.standardise.append(layer)
            pool = perceptron([layer.width, *hidden]) if shape.pooled else nn.Identity()
            self.pools.append(pool)
            embedded = (hidden[-1] if hidden else layer.width) + layer.width
            width += 2 * embedded + 1 if shape.pooled else layer.width
        self.linear = nn.Linear(width, num_inputs)
        self.deep = perceptron([width, *hidden, num_inputs]) if hidden else None
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        if self.deep is not None:
            last = self.deep[-1]
            assert isinstance(last, nn.Linear)
            with torch.no_grad():
                last.weight.mul_(0.1)
                last.bias.zero_()
        self.to(dtype)

    def forward(self, observed: Observations, parents: Mapping[str, Tensor]) -> Tensor:
        """Inputs by element, (*plates, num_inputs).

        Args:
            observed: values and masks by column.
            parents: (*plates, n) unconstrained values of latents that were drawn before, size 1 where constant.
        """
        parts = []
        for shape, layer, pool in zip(self.shapes, self.standardise, self.pools, strict=True):
            features, seen = arrange(shape, self.plates, observed)
            standard = layer(features, seen)
            if shape.pooled:  # beside the embeddings their inputs, for what is linear in the data
                parts.append(_pooled(torch.cat([pool(standard), standard], -1), seen, len(shape.pooled)))
            else:
                parts.append(standard)
        parts += parents.values()
        if len(parts) > 1:
            batch = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
            features = torch.cat([p.expand(batch + p.shape[-1:]) for p in parts], -1)
        else:
            features = parts[0]
        result = self.linear(features)
        return result if self.deep is None else result + self.deep(features)


def _pooled(embedded: Tensor, seen: Tensor | None, count: int) -> Tensor:
    """Mean and sum (divided by the root of the number) of embeddings over pooled plates, and the number's logarithm."""
    dims = tuple(range(-1 - count, -1))
    weight = (
        torch.ones_like(embedded[..., :1]) if seen is None else seen.to(embedded.dtype).expand_as(embedded[..., :1])
    )
    number = weight.sum(dims).clamp_min(1.0)
    total = (embedded * weight).sum(dims)
    return torch.cat([total / number, total / number.sqrt(), number.log()], -1)
