"""Distributions made of others, as families with the arguments of all their parts.

``MixtureSameFamily(Categorical(w), Normal(loc, scale))`` is read as one family with the arguments ``mixture_probs``,
``component_loc`` and ``component_scale``, so that links, ties and weighted maximum likelihood see through it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import (
    AffineTransform,
    ExpTransform,
    PowerTransform,
    SigmoidTransform,
    SoftplusTransform,
    TanhTransform,
    Transform,
)

#: Elementwise bijections that are seen through, and their own arguments.
TRANSFORMS: Mapping[type, tuple[str, ...]] = {
    AffineTransform: ("loc", "scale"),
    ExpTransform: (),
    PowerTransform: ("exponent",),
    SigmoidTransform: (),
    SoftplusTransform: (),
    TanhTransform: (),
}


class Compound(TorchDistribution):
    """A family that consists of others.

    Attributes:
        parts: family of each part, by the prefix of its arguments' names.
        reinterpreted: batch dimensions of the parts that belong to the event (``.to_event``).
        probability_rows: arguments whose rows are probability vectors that the density normalises itself.
    """

    parts: ClassVar[Mapping[str, type]] = {}
    reinterpreted: ClassVar[int] = 0
    probability_rows: ClassVar[frozenset[str]] = frozenset()

    def __init__(self, **arguments: Any) -> None:
        arguments.pop("validate_args", None)  # values are checked against the distribution of the program
        self.arguments: dict[str, Tensor] = arguments
        super().__init__(torch.Size(), validate_args=False)

    @classmethod
    def own(cls, part: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of one part, by that part's names for them."""
        prefix = f"{part}_"
        return {n.removeprefix(prefix): v for n, v in arguments.items() if n.startswith(prefix)}

    def part(self, name: str) -> Any:
        """One part as a distribution."""
        return self.parts[name](**self.own(name, self.arguments), validate_args=False)

    def _score(self, name: str, value: Tensor) -> Tensor:
        """Log-density under one part, reinterpreted dimensions added up."""
        log_prob = self.part(name).log_prob(value)
        return log_prob.sum(tuple(range(-self.reinterpreted, 0))) if self.reinterpreted else log_prob


class MixtureOf(Compound):
    """A finite mixture over the last batch dimension of its components; arguments ``mixture_…``, ``component_…``."""

    def log_joint(self, value: Tensor) -> Tensor:
        """Log-density of the value with each component, (…, K)."""
        mixture = self.part("mixture").logits
        event_dim = self.reinterpreted + _event_dim(self.parts["component"])
        return mixture + self._score("component", value.unsqueeze(-1 - event_dim))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, (…)."""
        return self.log_joint(value).logsumexp(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, (*sample_shape, …)."""
        draws = self.part("component").sample(sample_shape)
        event_dim = self.reinterpreted + _event_dim(self.parts["component"])
        chosen = self.part("mixture").sample(sample_shape)
        axis = -1 - event_dim
        index = chosen.reshape(chosen.shape + (1,) * (1 + event_dim))
        return torch.take_along_dim(draws, index, axis).squeeze(axis)


class MaskedPair(Compound):
    """``component1`` where the mask is true, ``component0`` elsewhere."""

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, (…); a value need lie in the support of its own component only."""
        first, second = self._score("component0", value), self._score("component1", value)
        return torch.where(self.arguments["mask"] > 0, second, first)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, (*sample_shape, …)."""
        first, second = (self.part(name).sample(sample_shape) for name in ("component0", "component1"))
        mask = self.arguments["mask"]
        inner = self.reinterpreted + _event_dim(self.parts["component0"])
        return torch.where(mask.reshape(mask.shape + (1,) * inner) > 0, second, first)


class TransformedOf(Compound):
    """An elementwise image of the part ``base``.

    Attributes:
        chain: classes of the transforms, in the order in which they are applied.
    """

    chain: ClassVar[tuple[type[Transform], ...]] = ()

    def transforms(self) -> list[Any]:
        """The transforms with their arguments."""
        kinds: tuple[Any, ...] = self.chain
        return [kind(*(self.arguments[f"transform{i}_{n}"] for n in TRANSFORMS[kind])) for i, kind in enumerate(kinds)]

    def preimage(self, value: Tensor) -> Tensor:
        """What the transforms map to the value."""
        for transform in reversed(self.transforms()):
            value = transform.inv(value)
        return value

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density, (…)."""
        volume: Tensor | float = 0.0
        for transform in reversed(self.transforms()):
            before = transform.inv(value)
            volume = volume + transform.log_abs_det_jacobian(before, value)
            value = before
        inner = _event_dim(self.parts["base"]) + self.reinterpreted
        if inner and isinstance(volume, Tensor):
            volume = volume.expand(torch.broadcast_shapes(volume.shape, value.shape)).sum(tuple(range(-inner, 0)))
        return self._score("base", value) - volume

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws, (*sample_shape, …)."""
        value: Any = self.part("base").sample(sample_shape)
        for transform in self.transforms():
            value = transform(value)
        return value


_MADE: dict[Any, type[Any]] = {}


def compound_family(
    kind: type[Compound],
    name: str,
    parts: tuple[tuple[str, type], ...],
    arguments: tuple[tuple[str, Any], ...],
    reinterpreted: int = 0,
    chain: tuple[type[Transform], ...] = (),
) -> type[Any]:
    """The family of all distributions that are put together in the same way; one class for each way.

    Args:
        kind: how the parts are put together.
        name: of the distribution in the program.
        parts: prefix and family of each part.
        arguments: names and constraints.
        reinterpreted: see `Compound`.
        chain: see `TransformedOf`.
    """
    key = (kind, name, parts, arguments, reinterpreted, chain)
    if key in _MADE:
        return _MADE[key]
    rows = frozenset(n for n, _ in arguments if _normalised(dict(parts), n))
    shown = " and ".join(dict.fromkeys(family.__name__ for prefix, family in parts if prefix != "mixture"))
    members = {
        "parts": dict(parts),
        "arg_constraints": dict(arguments),
        "reinterpreted": reinterpreted,
        "probability_rows": rows,
        "chain": chain,
    }
    return _MADE.setdefault(key, type(f"{name}[{shown}]", (kind,), members))


def _normalised(parts: Mapping[str, type], name: str) -> bool:
    """Whether an argument is a vector of probabilities, or of log-probabilities, of a categorical part."""
    vectors = ("Categorical", "OneHotCategorical", "Multinomial")
    part = next((p for p in sorted(parts, key=len, reverse=True) if name.startswith(f"{p}_")), None)
    return part is not None and parts[part].__name__ in vectors and name.endswith(("_probs", "_logits"))


def _event_dim(family: type) -> int:
    """Event dimensions of one value of a family."""
    support = getattr(family, "support", constraints.real)
    return int(getattr(support, "event_dim", 0)) if not isinstance(support, property) else 0
