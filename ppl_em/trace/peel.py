"""Reading a distribution: wrappers peeled off, arguments in the form in which the user gave them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor

#: Which of several equivalent arguments was given shows in the instance's dictionary.
_ALTERNATIVES = (("probs", "logits"), ("gate", "gate_logits"), ("covariance_matrix", "precision_matrix", "scale_tril"))


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
    """

    base: Any
    inner: int
    mask: Tensor | bool | None
    arguments: dict[str, Tensor]
    event_dims: dict[str, int]
    options: dict[str, Any]

    @property
    def family(self) -> type:
        """Class of the innermost distribution."""
        return type(self.base)


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
    constraints = fn.arg_constraints if hasattr(fn, "arg_constraints") else {}
    for name in _given(source, constraints):
        value = getattr(source, name, None)
        if isinstance(value, Tensor):
            arguments[name] = compact(value)
            event_dims[name] = min(_event_dim(constraints[name], value, source), value.dim())
        elif isinstance(value, (int, float)):
            options[name] = value
    return Peeled(fn, inner, mask, arguments, event_dims, options)


def _innermost(fn: Any) -> Any:
    while isinstance(fn, (torch.distributions.Independent, dist.MaskedDistribution, ExpandedDistribution)):
        fn = fn.base_dist
    return fn


def _given(fn: Any, constraints: dict[str, Any]) -> list[str]:
    names = list(constraints)
    for group in _ALTERNATIVES:
        present = [n for n in group if n in names]
        if len(present) > 1:
            given = [n for n in present if n in fn.__dict__]
            parameter = fn.__dict__.get("_param")
            if len(given) > 1 and parameter is not None:
                given = [n for n in given if fn.__dict__[n] is parameter] or given
            keep = (given or present)[0]
            names = [n for n in names if n not in present or n == keep]
    return names


def _event_dim(constraint: Any, value: Tensor, fn: Any) -> int:
    declared = getattr(constraint, "event_dim", 0)
    # Some families declare elementwise constraints on vector arguments (LowRank's cov_diag, logits of a Categorical):
    # what exceeds the batch shape is the argument's own.
    return max(declared, value.dim() - len(fn.batch_shape))
