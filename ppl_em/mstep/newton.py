"""Damped Newton ascent with a line search, for one small problem or for many independent ones at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

ARMIJO = 1e-4
"""Part of the predicted gain that a step must realise."""
HALVINGS = 60
"""A step is halved at most this often: below that the point no longer moves."""
STALLS = 2
"""A problem is given up after this many steps in a row without progress."""
BOUND = 1e-9
"""A variable this close to its bound is at it."""
ROUNDING = 64 * torch.finfo(torch.float64).eps
"""Changes of the objective smaller than this part of it are rounding."""


@dataclass(frozen=True)
class NewtonResult:
    """Where the ascent ended.

    Attributes:
        x: the maximiser, shaped as the start.
        value: the objective there.
        gradient: its gradient there.
        num_steps: steps taken.
        converged: whether the predicted remaining gain is below the tolerance.
    """

    x: Tensor
    value: Tensor
    gradient: Tensor
    num_steps: int
    converged: bool


def newton(
    objective: Callable[[Tensor], Tensor], x0: Tensor, *, max_steps: int = 100, tol: float = 1e-20
) -> NewtonResult:
    """Maximise a smooth function of a small unconstrained tensor (for a GLM: by reweighted least squares).

    Newton's direction with the absolute values of the Hessian's eigenvalues: an ascent direction even where
    the function is not concave, the plain Newton step where it is. No step decreases the objective beyond
    rounding.

    Args:
        objective: maps a tensor of x0's shape to a scalar, differentiable twice.
        x0: the start, of any shape; the Hessian is dense in its elements.
        max_steps: bound on the number of steps.
        tol: predicted remaining gain, relative to max(1, |objective|), at which to stop.

    Raises:
        ValueError: the objective is not finite at the start.

    Reference: Dauphin et al. (2014), Identifying and attacking the saddle point problem; Nelder, Wedderburn
    (1972), Generalized linear models.

    Example:
        >>> counts = torch.tensor([3.0, 5.0], dtype=torch.float64)
        >>> fit = newton(lambda x: (counts * x - x.exp()).sum(), torch.zeros(2, dtype=torch.float64))
        >>> fit.x.exp()
        tensor([3.0000, 5.0000], dtype=torch.float64)
    """
    shape = x0.shape
    result = newton_batch(lambda x: objective(x.reshape(shape))[None], x0.reshape(1, -1), None, max_steps, tol)
    if not bool(result.value.isfinite().all()):
        raise ValueError(f"the objective is {float(result.value)} at the start. Try a start of positive density.")
    return NewtonResult(
        result.x.reshape(shape),
        result.value.reshape(()),
        result.gradient.reshape(shape),
        result.num_steps,
        result.converged,
    )


def newton_batch(
    objective: Callable[[Tensor], Tensor],
    x0: Tensor,
    upper: Tensor | None = None,
    max_steps: int = 100,
    tol: float = 1e-20,
) -> NewtonResult:
    """Maximise B independent functions of P variables each.

    Args:
        objective: maps (B, P) to (B,); element b depends on row b alone.
        x0: (B, P) start.
        upper: (B, P) upper bounds, or ``None``.
        max_steps: bound on the number of steps.
        tol: predicted remaining gain of each function, relative to max(1, |objective|), at which to stop.
    """
    x = x0.detach().double()
    x = x if upper is None else torch.minimum(x, upper)
    value, gradient, direction, gain = _direction(objective, x, upper)
    stalled = torch.zeros_like(gain)
    num_steps = 0
    for num_steps in range(max_steps + 1):
        scale = value.abs().clamp(min=1.0)
        # Below rounding the objective cannot judge: the end is where predicted gains stop shrinking.
        active = (gain > tol * scale) & (stalled < STALLS) & value.isfinite()
        if num_steps == max_steps or not bool(active.any()):
            break
        moved = _line_search(objective, x, value, direction, gain, active, upper)
        if not bool((moved != x).any()):
            break
        before, least = value, gain
        x = moved
        value, gradient, direction, gain = _direction(objective, x, upper)
        still = (value <= before + ROUNDING * scale) & (gain > least / 2)
        stalled = torch.where(still, stalled + 1, 0.0)
    converged = bool((gain <= ROUNDING * value.abs().clamp(min=1.0)).all())
    return NewtonResult(x, value, gradient, num_steps, converged)


def _direction(
    objective: Callable[[Tensor], Tensor], x: Tensor, upper: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Value (B,), gradient (B, P), ascent direction (B, P) and predicted gain (B,)."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        value = objective(x)
        (gradient,) = torch.autograd.grad(value.sum(), x, create_graph=True)
        columns = [_column(gradient[:, index].sum(), x) for index in range(x.shape[1])]
    gradient = gradient.detach()
    hessian = torch.stack(columns, -1) if columns else x.new_zeros(*x.shape, 0)
    hessian = torch.nan_to_num((hessian + hessian.mT) / 2)
    slope = torch.nan_to_num(gradient)
    if upper is not None:
        bound = (x >= upper) & (slope > 0)
        slope = torch.where(bound, 0.0, slope)
        hessian = torch.where(bound[:, :, None] | bound[:, None, :], 0.0, hessian)
    # Scaled to a unit diagonal, so that a poorly scaled variable is not mistaken for a flat direction.
    size = hessian.diagonal(dim1=-2, dim2=-1).abs().sqrt()
    size = torch.where(size > 0, size, 1.0)
    values, vectors = torch.linalg.eigh(hessian / size[:, :, None] / size[:, None, :])
    curvature = values.abs()
    # A slope without curvature (a density whose second derivative is lost at a kink) is followed as it is.
    flat = curvature <= 1e-12 * curvature.amax(-1, keepdim=True)
    along = (vectors.mT @ (slope / size)[..., None])[..., 0] / torch.where(flat, 1.0, curvature)
    direction = (vectors @ along[..., None])[..., 0] / size
    return value.detach(), gradient, direction, (slope * direction).sum(-1) / 2


def _column(total: Tensor, x: Tensor) -> Tensor:
    """One column of each Hessian, zero where the gradient is constant."""
    if not total.requires_grad:
        return torch.zeros_like(x)
    (column,) = torch.autograd.grad(total, x, retain_graph=True, allow_unused=True)
    return torch.zeros_like(x) if column is None else column.detach()


@torch.no_grad()
def _line_search(
    objective: Callable[[Tensor], Tensor],
    x: Tensor,
    value: Tensor,
    direction: Tensor,
    gain: Tensor,
    active: Tensor,
    upper: Tensor | None,
) -> Tensor:
    """Halve the step of each function until it gains enough; a function without such a step stays."""
    length = torch.ones_like(value)
    if upper is not None:
        # Stop at the first bound that is met; a variable already at its bound does not hold the others back.
        direction = torch.where((x >= upper) & (direction > 0), 0.0, direction)
        room = torch.where(direction > 0, (upper - x) / direction, torch.inf)
        length = room.amin(-1).clamp(max=1.0)
    result = x
    waiting = active.clone()
    slack = ROUNDING * value.abs().clamp(min=1.0)
    for _ in range(HALVINGS):
        trial = x + length[:, None] * direction
        trial = trial if upper is None else torch.where(trial >= upper - BOUND, upper, trial)
        reached = objective(torch.where(waiting[:, None], trial, x))
        full = (length == 1) & (gain <= 100 * slack)
        good = waiting & (reached >= value + 2 * ARMIJO * length * gain - torch.where(full, slack, 0.0))
        result = torch.where(good[:, None], trial, result)
        waiting = waiting & ~good
        if not bool(waiting.any()):
            break
        length = torch.where(waiting, length / 2, length)
    return result
