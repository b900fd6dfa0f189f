"""Variational families by support: what kind of distribution approximates the posterior of one latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraint_registry import ConstraintRegistry

from ppl_em.errors import ModelError, message

#: softplus(0)
_LOG_TWO = 0.6931471805599453


class Family(Protocol):
    """A family of distributions over one latent's values.

    Attributes:
        num_inputs: how many unconstrained real numbers determine one member.
    """

    num_inputs: int

    def __call__(self, inputs: Tensor) -> Any:
        """The members given by ``inputs`` (*batch, num_inputs): a distribution of batch shape ``batch``."""
        ...


def softplus_scale(raw: Tensor) -> Tensor:
    """A positive scale, 1 at 0 and linear far above, from an unconstrained number."""
    return torch.nn.functional.softplus(raw) * (1 / _LOG_TWO)


class PushforwardNormal:
    """A normal distribution in unconstrained space, carried to the support by its bijection.

    Args:
        support: the latent's support.
        event_shape: shape of one value.
        draws: (n, *event_shape) draws from the prior: the family is centred and scaled by them, so that inputs of
            zero give about the prior's location and spread.
        batch_dims: number of leading dimensions of ``event_shape`` that the distributions count as batch.
    """

    def __init__(
        self, support: constraints.Constraint, event_shape: torch.Size, draws: Tensor, batch_dims: int = 0
    ) -> None:
        self.batch_dims = batch_dims
        self.transform = biject_to(support)
        self.event_shape = event_shape
        self.free_shape = self.transform.inverse_shape(event_shape)
        self.size = self.free_shape.numel()
        self.num_inputs = 2 * self.size
        self.loc, self.scale = centre(self.transform.inv(draws).reshape(len(draws), -1))
        self._unit = self.scale / _LOG_TWO

    def __call__(self, inputs: Tensor) -> Any:
        """Called as the thing that it stands for."""
        loc, raw = inputs.split(self.size, -1)
        scale = self._unit * torch.nn.functional.softplus(raw)  # as softplus_scale, in one operation less
        base = dist.Normal(self.shaped(self.place(loc)), self.shaped(scale), validate_args=False)
        event_dim = len(self.free_shape) - self.batch_dims
        return self.carry(base.to_event(event_dim) if event_dim else base)

    def centre_at(self, loc: Tensor, scale: Tensor) -> None:
        """Centre and scale the family as given, (size,) each, in place of the prior's."""
        self.loc, self.scale, self._unit = loc, scale, scale / _LOG_TWO

    def place(self, loc: Tensor) -> Tensor:
        """Standardised location (*batch, size) to unconstrained space."""
        return torch.addcmul(self.loc, self.scale, loc)

    def shaped(self, flat: Tensor) -> Tensor:
        """(*batch, size) to (*batch, *free_shape)."""
        return flat if len(self.free_shape) == 1 else flat.reshape(flat.shape[:-1] + self.free_shape)

    def carry(self, base: Any) -> Any:
        """A distribution in unconstrained space as one over the support."""
        if is_identity(self.transform):
            return base
        return dist.TransformedDistribution(base, [self.transform], validate_args=False)


def is_identity(transform: Any) -> bool:
    """Whether a bijection leaves real numbers as they are."""
    while isinstance(transform, torch.distributions.transforms.IndependentTransform):
        transform = transform.base_transform
    return transform == torch.distributions.transforms.identity_transform


def centre(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Location and spread (size,) of draws (n, size), by quantiles: priors may have no variance."""
    finite = torch.nan_to_num(draws.detach(), nan=0.0, posinf=1e3, neginf=-1e3)
    low, middle, high = torch.quantile(finite, torch.tensor([0.1587, 0.5, 0.8413]).to(finite), dim=0)
    spread = (high - low) / 2
    return middle, torch.where(spread > 1e-6, spread, torch.ones_like(spread)).clamp(1e-3, 1e3)


#: Families by support: ``variational_family.register(constraint)`` takes a function from a constraint to a factory
#: ``(event_shape, draws) -> Family``. Supports that are not registered get a `PushforwardNormal`.
variational_family = ConstraintRegistry()


def family_for(
    name: str, support: constraints.Constraint, event_shape: torch.Size, draws: Tensor, batch_dims: int = 0
) -> Family:
    """The family for a latent.

    Args:
        name: site name, for messages.
        support: the latent's support.
        event_shape: shape of one value.
        draws: (n, *event_shape) draws from its prior.
        batch_dims: number of leading dimensions of ``event_shape`` that the site counts as batch.

    Raises:
        ModelError: no family is registered for the support and no bijection to it is known.
    """
    base = support
    while isinstance(base, constraints.independent):
        base = base.base_constraint
    try:
        make: Callable[..., Family] = variational_family(base)
    except NotImplementedError:
        try:
            return PushforwardNormal(support, event_shape, draws, batch_dims)
        except NotImplementedError as error:
            raise ModelError(
                message(
                    "no variational family is known for this support",
                    site=name,
                    value=base,
                    hint="@variational_family.register(type(constraint)), or a guide of your own",
                )
            ) from error
    if batch_dims:
        why = "its family is registered for single values"
        raise ModelError(message("a batch dimension that is no plate", site=name, why=why, hint="pyro.plate for it"))
    return make(event_shape, draws)
