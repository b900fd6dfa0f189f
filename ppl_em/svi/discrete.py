"""Variational families of discrete latents that no exact engine sums: free probabilities of their values."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

from ppl_em.errors import ModelError, message
from ppl_em.trace.record import Record


class Finite(TorchDistribution):
    """A distribution over listed values.

    Args:
        values: (K, *event_shape).
        logits: (*batch_shape, K) unnormalised log-probabilities.
    """

    arg_constraints = {"logits": constraints.real_vector}  # type: ignore[assignment]
    has_enumerate_support = True

    def __init__(self, values: Tensor, logits: Tensor) -> None:
        self.values, self.logits = values, logits.log_softmax(-1)
        super().__init__(logits.shape[:-1], values.shape[1:], validate_args=False)

    @property
    def support(self) -> constraints.Constraint:
        """Counts or vectors of them."""
        return (
            constraints.independent(constraints.nonnegative_integer, len(self.event_shape))
            if self.event_shape
            else constraints.nonnegative_integer
        )

    @property
    def probs(self) -> Tensor:
        """Probabilities (*batch_shape, K)."""
        return self.logits.exp()

    def expand(self, batch_shape: Any, _instance: Any = None) -> Finite:
        """The same distribution over a larger batch."""
        return Finite(self.values, self.logits.expand(*batch_shape, len(self.values)))

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws (*sample_shape, *batch_shape, *event_shape)."""
        index = torch.distributions.Categorical(logits=self.logits, validate_args=False).sample(
            torch.Size(sample_shape)
        )
        return self.values[index]

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-probability of values (*, *event_shape); −inf for one that is not listed."""
        listed = self.values.reshape((len(self.values), -1))
        given = value.reshape((*value.shape[: value.dim() - len(self.event_shape)], 1, -1))
        equal = (given == listed).all(-1)
        return torch.where(equal, self.logits, -math.inf).amax(-1)

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All values (K, *batch_shape or ones, *event_shape)."""
        listed = self.values.reshape((-1, *[1] * len(self.batch_shape), *self.event_shape))
        return listed.expand((-1, *self.batch_shape, *self.event_shape)) if expand else listed


class Table:
    """Free probabilities for each element of a latent's shape.

    Args:
        record: the latent's sample statement.
        shape: shape of the value of one element of all plates.
        why: why no exact engine sums the latent, for the message.

    Raises:
        ModelError: its values cannot be listed.
    """

    def __init__(self, record: Record, shape: torch.Size, why: str) -> None:
        assert record.peeled is not None
        base = record.peeled.base
        try:
            listed = base.enumerate_support(expand=False)
        except NotImplementedError as error:
            hint = "a guide that draws it, or a truncated version of the distribution"
            text = message("no variational family is known for this discrete latent", site=record.name, hint=hint)
            raise ModelError(f"{text} It is not summed: {why}") from error
        event = tuple(base.event_shape)
        self.values = listed.reshape((listed.shape[0], *event))
        self.elements = shape[: len(shape) - len(event)]
        #: Dimensions of the elements that the site counts as its event.
        self.event_dim = record.fn.event_dim - len(event)
        self.one_hot = isinstance(base, dist.OneHotCategorical)
        self.binary = self.values.is_floating_point() and self.values.reshape(-1).tolist() == [0.0, 1.0] and not event
        self.counted = not event and self.values.tolist() == list(range(len(self.values)))
        self.num_inputs = math.prod(self.elements) * len(self.values)

    def __call__(self, inputs: Tensor) -> Any:
        """The members given by unnormalised log-probabilities (*batch, num_inputs)."""
        logits = inputs.reshape((*inputs.shape[:-1], *self.elements, len(self.values)))
        return self._of(logits).to_event(self.event_dim)

    def _of(self, logits: Tensor) -> Any:
        if self.one_hot:
            return dist.OneHotCategorical(logits=logits, validate_args=False)
        if self.binary:
            return dist.Bernoulli(logits=logits[..., 1] - logits[..., 0], validate_args=False)
        if self.counted and not self.values.is_floating_point():
            return dist.Categorical(logits=logits, validate_args=False)
        return Finite(self.values, logits)
