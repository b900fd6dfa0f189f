"""Bijections between a parameter as the user wrote it and the argument of a distribution that it feeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Transform:
    """A bijection of whole parameters, usually elementwise.

    Args:
        name: as the plan prints it.
        forward: parameter to argument values, same shape.
        inverse: argument values to parameter.
        elementwise: False if rows (the last axis) are transformed together, as by softmax.
        longer: how many more elements than the parameter a row of the argument values has.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    inverse: Callable[[Tensor], Tensor]
    elementwise: bool = True
    longer: int = 0

    def image_shape(self, shape: torch.Size) -> tuple[int, ...]:
        """Shape of the argument values that come from a parameter of a shape."""
        return (*shape[:-1], shape[-1] + self.longer) if self.longer else tuple(shape)


def _softplus_inverse(x: Tensor) -> Tensor:
    return x + torch.log(-torch.expm1(-x))


def _log(x: Tensor) -> Tensor:
    # A probability of exactly zero has no finite logit: the smallest normal number stands for it.
    return x.clamp_min(torch.finfo(x.dtype).tiny).log()


def _logit(x: Tensor) -> Tensor:
    return _log(x) - _log(1 - x)


def _break_stick(x: Tensor) -> Tensor:
    left = (1 - x).cumprod(-1)
    one = torch.ones_like(x[..., :1])
    return torch.cat([x, one], -1) * torch.cat([one, left], -1)


def _breaks(pieces: Tensor) -> Tensor:
    left = pieces.flip(-1).cumsum(-1).flip(-1)[..., :-1]
    return torch.where(left > 0, pieces[..., :-1] / torch.where(left > 0, left, 1.0), 0.5)


IDENTITY = Transform("identity", lambda x: x, lambda x: x)

#: Tried in this order when a parameter's link to an argument is looked for.
ELEMENTWISE: tuple[Transform, ...] = (
    IDENTITY,
    Transform("exp", torch.exp, _log),
    Transform("softplus", torch.nn.functional.softplus, _softplus_inverse),
    Transform("sqrt", torch.sqrt, torch.square),
    Transform("reciprocal", torch.reciprocal, torch.reciprocal),
    Transform("sigmoid", torch.sigmoid, _logit),
    Transform("square", torch.square, torch.sqrt),
    Transform("log", torch.log, torch.exp),
    Transform("exp(x/2)", lambda x: torch.exp(0.5 * x), lambda x: 2 * _log(x)),
    Transform("exp(-x)", lambda x: torch.exp(-x), lambda x: -_log(x)),
    Transform("rsqrt", torch.rsqrt, lambda x: x**-2),
    Transform("tanh", torch.tanh, torch.atanh),
)

#: Of rows: the argument is a probability vector, the parameter is its unnormalised form.
ROWWISE: tuple[Transform, ...] = (
    Transform("softmax", lambda x: torch.softmax(x, -1), _log, elementwise=False),
    Transform("log_softmax", lambda x: torch.log_softmax(x, -1), lambda x: x, elementwise=False),
    Transform("normalise", lambda x: x / x.sum(-1, keepdim=True), lambda x: x, elementwise=False),
)

#: Of matrices: the argument is a covariance (or its root), the parameter is its Cholesky factor (or it).
MATRIXWISE: tuple[Transform, ...] = (
    Transform("L Lᵀ", lambda x: x @ x.mT, lambda x: torch.linalg.cholesky(x), elementwise=False),
    Transform("cholesky", lambda x: torch.linalg.cholesky(x), lambda x: x @ x.mT, elementwise=False),
)

#: Of rows of one element less: each takes its part of what is left of a stick of length one (the stick-breaking
#: construction of a truncated Dirichlet process).
STICK_BREAKING = Transform("stick breaking", _break_stick, _breaks, elementwise=False, longer=1)
