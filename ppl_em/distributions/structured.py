"""Distributions that sum over a hidden structure inside `log_prob`, and their registry.

A parse tree or an alignment is not a finite set of enumerated sites, yet its posterior is tractable by
dynamic programming. Such a distribution enters a program as one observed site; its `log_prob` is the log
partition function log Z of the hidden structure, and the derivative of log Z by the log of a probability is
the posterior expectation of how often that probability was used. That identity gives every structured
distribution its E-step.

The extension point: derive from `StructuredDistribution`, name the arguments that are counted, predict the
cost, and decorate the class with `register_structured`. `arg_constraints` names every argument on which the
density depends, by the name of the constructor's argument; the event dims of a constraint are those of the
whole argument (`constraints.independent(constraints.simplex, 1)` for a table with one simplex in each row).
Arguments come as the program has them or with leading batch dims, of size one where they are shared.
Arguments that are counted but are no probabilities (logits, say) need `expected_counts`, `normalised` and
`expected_log_prob` of their own.

Reference:
    Eisner, J. (2016). Inside-outside and forward-backward algorithms are just backprop.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppl_em.errors import PplEmError, message

__all__ = [
    "HiddenCost",
    "StructuredDistribution",
    "is_structured",
    "register_structured",
    "structured_distributions",
]


class HiddenCost(NamedTuple):
    """Predicted cost of log Z and its derivatives.

    Attributes:
        flops: Floating-point operations, forward and backward.
        bytes: Peak memory beyond arguments and value.
    """

    flops: float
    bytes: float


class StructuredDistribution(TorchDistribution):
    """A distribution with a tractable hidden structure.

    Subclasses implement `log_prob` (differentiable), `hidden_cost`, and set `counted`.

    Attributes:
        counted: Names of the arguments that are tables of probabilities of which the probability of the value
            is a polynomial, each term using an entry as often as the hidden structure does.
        impossible: Why a value may have probability zero, for messages.
    """

    counted: ClassVar[tuple[str, ...]] = ()
    impossible: ClassVar[str] = "no hidden structure gives them"

    def __repr__(self) -> str:
        given = {name: self.__dict__.get(name) for name in self.arg_constraints}
        shown = [
            f"{name}: {tuple(value.shape) if isinstance(value, Tensor) else value}"
            for name, value in given.items()
            if value is not None
        ]
        return f"{type(self).__name__}({', '.join(shown)})"

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draws values; predictions and predictive checks need it, the fit does not.

        Raises:
            PplEmError: The subclass does not define it.
        """
        kind = type(self).__name__
        raise PplEmError(message(f"{kind} draws no values", hint=f"defining {kind}.sample(sample_shape)"))

    def lengths_of(self, value: Tensor) -> Tensor:
        """Returns the number of symbols of padded sequences, (…): those before the first negative entry."""
        return (value >= 0).long().cumprod(-1).sum(-1)

    def hidden_cost(self, value_shape: torch.Size) -> HiddenCost:
        """Predicts the cost of `log_prob` and `expected_counts` from shapes alone.

        Args:
            value_shape: Shape of the value, batch and event.

        Returns:
            Floating-point operations and bytes.
        """
        raise NotImplementedError(f"{type(self).__name__} does not predict its cost. Try defining hidden_cost.")

    def expected_counts(self, value: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Posterior expectation of how often each probability was used: θ · ∂ log Z / ∂ θ.

        Args:
            value: As for `log_prob`.
            weights: One weight per batch element, shape broadcastable to that of `log_prob`; one if None.

        Returns:
            For each counted argument a tensor of the argument's own shape, summed over the batch dims along
            which the argument is shared. Impossible values add zero.
        """
        counts = self._counts(value, weights)
        if not all(bool(count.isfinite().all()) for count in counts.values()):
            # A derivative can exceed the range of float32 although the count is at most the number of uses.
            wide = self._with_arguments({name: getattr(self, name).double() for name in self.counted})
            found = wide._counts(value, weights)
            counts = {name: count.to(counts[name].dtype) for name, count in found.items()}
        return counts

    def _counts(self, value: Tensor, weights: Tensor | None) -> dict[str, Tensor]:
        leaves = {name: getattr(self, name).detach().clone().requires_grad_() for name in self.counted}
        with torch.enable_grad():
            log_z = self._with_arguments(leaves).log_prob(value)
            weighted = log_z if weights is None else log_z * weights.detach()
            total = weighted.where(log_z.isfinite(), 0).sum()
            gradients = torch.autograd.grad(total, list(leaves.values()), materialize_grads=True, allow_unused=True)
        pairs = zip(leaves.items(), gradients, strict=True)
        return {name: leaf.detach() * grad.where(leaf != 0, 0) for (name, leaf), grad in pairs}

    def normalised(self, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The M-step of free probability tables: each table maximises Σ counts · log θ over its simplex.

        Args:
            counts: As returned by `expected_counts`.

        Returns:
            New arguments by name. A row without counts keeps its current value.
        """
        updated = {}
        for name, count in counts.items():
            dims = tuple(range(-self._row_dims(name), 0))
            total = count.sum(dims, keepdim=True)
            updated[name] = torch.where(total > 0, count / total.masked_fill(total == 0, 1), getattr(self, name))
        return updated

    def expected_log_prob(self, counts: Mapping[str, Tensor]) -> Tensor:
        """Q, the posterior expectation of the log-probability of value and structure, Σ counts · log θ.

        Args:
            counts: As returned by `expected_counts`, at these or at other arguments.

        Returns:
            A scalar, differentiable in the arguments; −inf where a probability that is used is zero.
        """
        terms = []
        for name, count in counts.items():
            used = count != 0
            theta = getattr(self, name)
            terms.append((count * theta.where(used, 1).log()).where(used, 0).sum())
        return torch.stack(terms).sum()

    def leading(self, value: Tensor, count: int) -> tuple[StructuredDistribution, Tensor]:
        """Returns the distribution and the value of the first `count` elements of the leading batch dim.

        Args:
            value: (*batch, …), of full batch shape.
            count: How many.
        """
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[: value.dim() - len(self.event_shape)])
        kept = {}
        for name, constraint in self.arg_constraints.items():
            argument = self.__dict__.get(name)
            if isinstance(argument, Tensor) and argument.dim() - constraint.event_dim == len(batch) > 0:
                kept[name] = argument[:count]
        new = self._with_arguments(kept)
        new._batch_shape = torch.Size((min(count, self.batch_shape[0]), *self.batch_shape[1:])) if batch else batch
        if len(self.batch_shape) < len(batch):
            new._batch_shape = self.batch_shape
        return new, value[:count] if batch else value

    def _row_dims(self, name: str) -> int:
        """Number of rightmost dims of an argument that are normalised together."""
        constraint: Any = self.arg_constraints[name]  # type: ignore[index]
        while isinstance(constraint, constraints.independent):
            constraint = constraint.base_constraint
        return int(constraint.event_dim)

    def _with_arguments(self, arguments: Mapping[str, Tensor]) -> StructuredDistribution:
        """Returns a copy in which the named arguments are replaced by tensors of the same shape."""
        new = copy.copy(self)
        for name, tensor in arguments.items():
            object.__setattr__(new, name, tensor)
        return new


_REGISTRY: list[type[StructuredDistribution]] = []
_D = TypeVar("_D", bound=type[StructuredDistribution])


def register_structured(cls: _D) -> _D:
    """Class decorator: makes a distribution known to the planner as an exact block.

    Args:
        cls: A subclass of `StructuredDistribution` that defines `log_prob`, `hidden_cost` and `counted`.

    Returns:
        The class.

    Raises:
        TypeError: If the class lacks a part of the protocol.
    """
    missing = [
        name
        for name in ("log_prob", "hidden_cost", "expected_counts")
        if getattr(cls, name, None) is None or getattr(cls, name) is getattr(TorchDistribution, name, None)
    ]
    if getattr(cls, "hidden_cost", None) is StructuredDistribution.hidden_cost:
        missing.append("hidden_cost")
    if not getattr(cls, "counted", ()):
        missing.append("counted")
    if missing:
        raise TypeError(
            f"{cls.__name__} cannot be registered as structured: it lacks {', '.join(missing)}. "
            "Try deriving from StructuredDistribution and defining them."
        )
    if cls not in _REGISTRY:
        _REGISTRY.append(cls)
    return cls


def structured_distributions() -> tuple[type[StructuredDistribution], ...]:
    """Returns the registered classes in the order of their registration."""
    return tuple(_REGISTRY)


def is_structured(distribution: object) -> bool:
    """Whether a distribution, or a class of distributions, is registered (itself or a base class of it)."""
    cls = distribution if isinstance(distribution, type) else type(distribution)
    return any(issubclass(cls, registered) for registered in _REGISTRY)
