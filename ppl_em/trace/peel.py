"""Reading a distribution: wrappers peeled off, arguments in the form in which the user gave them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor

from ppl_em.distributions.partly_observed import PartlyObservedMixture
from ppl_em.trace.compounds import compound_parts
from ppl_em.trace.given import event_dim_of, given_arguments


@dataclass(frozen=True)
class Peeled:
    """A distribution without its wrappers.

    Args:
        base: the innermost distribution; its batch shape ends in ``inner`` reinterpreted dimensions.
        inner: number of batch dimensions of ``base`` that ``.to_event`` made part of the event.
        mask: mask of ``MaskedDistribution`` wrappers, or None.
        arguments: compact tensors (size 1 where expanded) by name, batch dimensions first.
        event_dims: number of event dimensions of each argument.
        options: constructor arguments that are not tensors.
        compound: family of a distribution that is made of others.
    """

    base: Any
    inner: int
    mask: Tensor | bool | None
    arguments: dict[str, Tensor]
    event_dims: dict[str, int]
    options: dict[str, Any]
    compound: type | None = None

    @property
    def family(self) -> type:
        """Class of the innermost distribution, or the family of all that are put together like it."""
        return self.compound or type(self.base)


def compact(tensor: Tensor) -> Tensor:
    """Expanded (stride 0) dimensions reduced to size 1."""
    index = tuple(
        slice(0, 1) if stride == 0 and size > 1 else slice(None)
        for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return tensor[index]


def peel(fn: Any, given: Any = None) -> Peeled:
    """Take ``Independent``, ``MaskedDistribution`` and ``ExpandedDistribution`` off a distribution.

    Args:
        fn: the distribution of a sample statement, after its plates expanded it.
        given: the same as the program passed it, from which the arguments are read.
    """
    inner, masks = 0, []
    while True:
        if isinstance(fn, torch.distributions.Independent):
            inner += fn.reinterpreted_batch_ndims
            fn = fn.base_dist
        elif isinstance(fn, dist.MaskedDistribution):
            # It counts as it stands now.
            masks.append((fn._mask.clone() if isinstance(fn._mask, Tensor) else fn._mask, inner))
            fn = fn.base_dist
        elif isinstance(fn, ExpandedDistribution):
            fn = fn.base_dist
        else:
            break
    mask: Tensor | bool | None = None
    for part, outside in masks:
        if isinstance(part, Tensor):  # a mask around .to_event covers whole events
            part = part.reshape(part.shape + (1,) * (inner - outside))
        mask = part if mask is None else mask & part
    arguments, event_dims, options = {}, {}, {}
    source = fn if given is None else _innermost(given)
    made_of = compound_parts(source)
    if made_of is not None:
        family, tensors, event_dims = made_of
        if isinstance(fn, PartlyObservedMixture):
            family = type(fn)
        return Peeled(fn, inner, mask, {n: compact(t) for n, t in tensors.items()}, event_dims, {}, family)
    constraints = fn.arg_constraints if hasattr(fn, "arg_constraints") else {}
    for name in given_arguments(source, constraints):
        value = getattr(source, name, None)
        if isinstance(value, Tensor):
            arguments[name] = compact(value)
            event_dims[name] = min(event_dim_of(constraints[name], value, source), value.dim())
        elif isinstance(value, (int, float)):
            options[name] = value
    return Peeled(fn, inner, mask, arguments, event_dims, options)


def _innermost(fn: Any) -> Any:
    while isinstance(fn, (torch.distributions.Independent, dist.MaskedDistribution, ExpandedDistribution)):
        fn = fn.base_dist
    return fn
