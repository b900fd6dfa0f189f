"""Reading distributions that are made of others: mixtures of one family, masked mixtures, transformed ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.transforms import ComposeTransform

from ppl_em.distributions.compound import (
    TRANSFORMS,
    Compound,
    MaskedPair,
    MixtureOf,
    TransformedOf,
    compound_family,
)
from ppl_em.distributions.hidden_markov import HiddenMarkovOf
from ppl_em.trace.given import event_dim_of, given_arguments

_MIXTURES = (torch.distributions.MixtureSameFamily, dist.MixtureSameFamily)
_TRANSFORMED = (torch.distributions.TransformedDistribution, dist.TransformedDistribution)


@dataclass
class Parts:
    """What a distribution is made of.

    Args:
        tensors: arguments by name, prefixed by their part.
        event_dims: number of event dimensions of each.
        families: family of each part.
        declared: constraints of the arguments.
        reinterpreted: batch dimensions of the parts that belong to the event, None before the first part.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    event_dims: dict[str, int] = field(default_factory=dict)
    families: dict[str, type] = field(default_factory=dict)
    declared: dict[str, Any] = field(default_factory=dict)
    reinterpreted: int | None = None

    def add(self, prefix: str, fn: Any, extra: int = 0, own_inner: bool = False) -> bool:
        """Add a part; False where it is not a plain distribution.

        Args:
            prefix: of its arguments' names.
            fn: the part.
            extra: batch dimensions that its arguments have besides those of the site (components).
            own_inner: its reinterpreted dimensions are not those of the other parts.
        """
        inner = 0
        while isinstance(fn, (torch.distributions.Independent, ExpandedDistribution)):
            inner += fn.reinterpreted_batch_ndims if isinstance(fn, torch.distributions.Independent) else 0
            fn = fn.base_dist
        named = given_arguments(fn, getattr(fn, "arg_constraints", {}))
        values = {n: getattr(fn, n, None) for n in named}
        known = values and all(isinstance(v, (Tensor, int, float)) for v in values.values())
        if not known or (not own_inner and self.reinterpreted not in (None, inner)):
            return False
        self.families[prefix] = type(fn)
        if not own_inner:
            self.reinterpreted = inner
        for n, value in values.items():
            constraint = fn.arg_constraints[n]
            tensor = value if isinstance(value, Tensor) else torch.as_tensor(value)
            own = event_dim_of(constraint, tensor, fn)
            self.put(f"{prefix}_{n}", tensor, own + inner + extra, constraint)
        return True

    def put(self, name: str, tensor: Tensor, event_dim: int, constraint: Any) -> None:
        """Add one argument."""
        event_dim = min(event_dim, tensor.dim())
        declared = getattr(constraint, "event_dim", 0)
        self.tensors[name] = tensor
        self.event_dims[name] = event_dim
        wider = event_dim - declared
        self.declared[name] = constraints.independent(constraint, wider) if wider > 0 else constraint

    def family(self, kind: type[Compound], fn: Any, chain: tuple[type, ...] = ()) -> type[Any]:
        """The family of all distributions that are put together like this one."""
        parts, declared = tuple(self.families.items()), _hashable(self.declared)
        return compound_family(kind, type(fn).__name__, parts, declared, self.reinterpreted or 0, chain)


def compound_parts(fn: Any) -> tuple[type[Compound], dict[str, Tensor], dict[str, int]] | None:
    """Family, arguments and their event dimensions of a distribution that is made of others; None if it is not.

    Args:
        fn: a distribution without wrappers.
    """
    parts = Parts()
    if type(fn) in _MIXTURES:
        read = parts.add("component", fn.component_distribution, 1)
        if read and parts.add("mixture", fn.mixture_distribution, own_inner=True):
            return parts.family(MixtureOf, fn), parts.tensors, parts.event_dims
    elif type(fn) is dist.DiscreteHMM:
        return _hidden_markov(fn, parts)
    elif isinstance(fn, dist.MaskedMixture):
        if parts.add("component0", fn.component0) and parts.add("component1", fn.component1):
            parts.put("mask", vars(fn)["mask"], 0, constraints.boolean)
            return parts.family(MaskedPair, fn), parts.tensors, parts.event_dims
    elif type(fn) in _TRANSFORMED and parts.add("base", fn.base_dist):
        chain = _flat(fn.transforms)
        if chain is not None:
            inner = parts.reinterpreted or 0
            for i, transform in enumerate(chain):
                for n in TRANSFORMS[type(transform)]:
                    value = getattr(transform, n)
                    tensor = (
                        value
                        if isinstance(value, Tensor)
                        else torch.tensor(float(value)).to(next(iter(parts.tensors.values())))
                    )
                    parts.put(f"transform{i}_{n}", tensor, inner, constraints.real)
            return parts.family(TransformedOf, fn, tuple(map(type, chain))), parts.tensors, parts.event_dims
    return None


def _hidden_markov(fn: Any, parts: Parts) -> tuple[type[Compound], dict[str, Tensor], dict[str, int]] | None:
    """The tables of a hidden Markov model and the arguments of what its states emit, by time and state."""
    emitted = fn.observation_dist
    if len(emitted.batch_shape) < 2:
        emitted = emitted.expand((1, *emitted.batch_shape))
    if not parts.add("observation", emitted, 2):
        return None
    trans = fn.transition_logits if fn.transition_logits.dim() > 2 else fn.transition_logits.unsqueeze(0)
    parts.put("initial_logits", fn.initial_logits, 1, constraints.real_vector)
    parts.put("transition_logits", trans, 3, constraints.real_vector)
    family: Any = parts.family(HiddenMarkovOf, fn)
    family.event_dim_of_step = len(emitted.event_shape)
    family.probability_rows = frozenset({"initial_logits", "transition_logits"})
    return family, parts.tensors, parts.event_dims


def _flat(transforms: Any) -> list[Any] | None:
    """Transforms one after the other, compositions taken apart; None where one is not seen through."""
    found: list[Any] = []
    for transform in transforms:
        inner = _flat(transform.parts) if isinstance(transform, ComposeTransform) else [transform]
        if inner is None:
            return None
        found += inner
    return found if all(type(t) in TRANSFORMS and getattr(t, "event_dim", 0) == 0 for t in found) else None


_seen: dict[Any, Any] = {}


def _hashable(declared: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Constraints as keys: wrapped ones that are alike are one object."""
    found = []
    for name, constraint in declared.items():
        if isinstance(constraint, constraints.independent):
            key = (constraint.base_constraint, constraint.reinterpreted_batch_ndims)
            constraint = _seen.setdefault(key, constraint)
        found.append((name, constraint))
    return tuple(found)
