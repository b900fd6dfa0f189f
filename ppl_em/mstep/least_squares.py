"""Exact maximiser of a quadratic objective: weighted least squares found from the objective alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ppl_em.mstep.sample import NoClosedForm

MAX_DENSE = 2000
"""Largest number of variables whose Hessian is held densely."""
QUADRATIC = 1e-7
"""Largest relative error of the predicted gradient at a random point."""
NULL = 1e-13
"""Curvature below this part of the largest, after scaling, is none."""

Gradient = Callable[[Tensor], Tensor]


def least_squares(objective: Callable[[Tensor], Tensor], x0: Tensor) -> Tensor:
    """Maximise a concave quadratic function of a tensor in one step.

    The Hessian is read off at x0 and proved constant by predicting the gradient at two random points. Where
    the function separates over leading dimensions of x0 (one regression per component, or per output), each
    block is solved by itself. Directions along which the function is flat keep their value.

    Args:
        objective: maps a tensor of x0's shape to a scalar, differentiable twice.
        x0: any point, of any shape; its dtype is that of the result.

    Returns:
        The maximiser nearest to x0 in the directions along which it is not unique.

    Raises:
        NoClosedForm: the objective is not quadratic, not concave, not bounded, or has too many variables.

    Example:
        >>> x = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
        >>> y = torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)
        >>> b = least_squares(lambda b: -(y - x @ b).square().sum(), torch.zeros(2, dtype=torch.float64))
        >>> b.round(decimals=9)
        tensor([1., 2.], dtype=torch.float64)
    """
    start = x0.detach().double()

    def gradient(x: Tensor) -> Tensor:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(objective(leaf), leaf)
        return slope

    hessian = _hessian(objective, start)
    _check_quadratic(gradient, hessian, start)
    values, vectors, size = _decompose(hessian)
    x = start
    for _ in range(3):  # later steps remove the rounding of the first
        x = x + _step(gradient(x).reshape(size.shape), values, vectors, size).reshape(x.shape)
    return x.to(x0.dtype)


def _layouts(shape: torch.Size) -> list[tuple[int, int]]:
    """(blocks, variables) layouts from many small blocks to a single one."""
    sizes = [math.prod(shape[:cut]) for cut in range(len(shape), -1, -1)]
    total = math.prod(shape)
    return [(blocks, total // blocks) for blocks in dict.fromkeys(sizes)]


def _hessian(objective: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Diagonal blocks (B, P, P) of the Hessian in the finest layout in which it has no others."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(objective(leaf), leaf, create_graph=True)

        def product(direction: Tensor) -> Tensor:
            if not slope.requires_grad:
                return torch.zeros_like(x)
            inner = (slope * direction.reshape(x.shape)).sum()
            (result,) = torch.autograd.grad(inner, leaf, retain_graph=True, allow_unused=True)
            return torch.zeros_like(x) if result is None else result

        generator = torch.Generator().manual_seed(0)
        probe = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        exact = product(probe)
        for blocks, variables in _layouts(x.shape):
            if variables > MAX_DENSE:
                break
            unit = torch.eye(variables, dtype=torch.float64, device=x.device)
            columns = [product(row.expand(blocks, -1)).reshape(blocks, variables) for row in unit]
            hessian = torch.stack(columns, -1)
            predicted = (hessian @ probe.reshape(blocks, variables, 1))[..., 0].reshape(x.shape)
            if bool((predicted - exact).abs().amax() <= QUADRATIC * exact.abs().amax()):
                return (hessian + hessian.mT) / 2
    raise NoClosedForm(f"a quadratic in {x.numel()} variables that does not separate is too large")


def _check_quadratic(gradient: Gradient, hessian: Tensor, x: Tensor) -> None:
    """Refuse an objective whose Hessian changes from place to place."""
    generator = torch.Generator().manual_seed(1)
    here = gradient(x)
    for _ in range(2):
        step = torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) * (1 + x.abs())
        change = (hessian @ step.reshape(*hessian.shape[:2], 1))[..., 0].reshape(x.shape)
        there = gradient(x + step)
        error = (there - here - change).abs().amax()
        scale = torch.stack([there.abs().amax(), here.abs().amax(), change.abs().amax()]).amax()
        if not bool(error <= QUADRATIC * scale):
            raise NoClosedForm("the objective is not quadratic in these parameters")


def _decompose(hessian: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Eigenvalues (B, P) and vectors of the negative Hessian with a unit diagonal, and its scale (B, P)."""
    size = hessian.diagonal(dim1=-2, dim2=-1).abs().sqrt()
    size = torch.where(size > 0, size, 1.0)
    values, vectors = torch.linalg.eigh(-hessian / size[:, :, None] / size[:, None, :])
    top = values.abs().amax(-1, keepdim=True)
    if bool((values < -1e-9 * top).any()):
        raise NoClosedForm("the objective is not concave in these parameters")
    return torch.where(values > NULL * top, values, 0.0), vectors, size


def _step(slope: Tensor, values: Tensor, vectors: Tensor, size: Tensor) -> Tensor:
    """Newton's step (B, P), zero along flat directions."""
    along = (vectors.mT @ (slope / size)[..., None])[..., 0]
    flat = values <= 0
    scale = (slope / size).abs().amax(-1, keepdim=True)
    if bool((flat & (along.abs() > 1e-6 * scale) & (along.abs() > 1e-9)).any()):
        raise NoClosedForm("the objective rises without bound along a flat direction")
    along = torch.where(flat, 0.0, along / torch.where(flat, 1.0, values))
    return (vectors @ along[..., None])[..., 0] / size
