"""SQUAREM: extrapolation of the EM map in unconstrained space.

Reference:
    Varadhan, R. & Roland, C. (2008). Simple and globally convergent methods for accelerating the convergence of any
    EM algorithm. Scandinavian Journal of Statistics 35(2). Scheme S3.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import transform_to

from ppl_em.em.boundary import inside
from ppl_em.em.updates import Parameters
from ppl_em.plan.plan import Plan


def extrapolate(plan: Plan, first: Parameters, second: Parameters, third: Parameters) -> Parameters | None:
    """A point further along the path of three consecutive iterates, or None where it is not defined.

    Args:
        plan: gives the constraints.
        first, second, third: θ, M(θ), M(M(θ)).
    """
    names = [n for n, p in plan.program.parameters.items() if not p.frozen]
    constraints = {n: plan.program.parameters[n].constraint for n in names}
    points = []
    for values in (first, second, third):
        free = [transform_to(constraints[n]).inv(values[n].detach()).double().reshape(-1) for n in names]
        points.append(torch.cat(free))
    change = points[1] - points[0]
    curve = points[2] - points[1] - change
    usable = torch.isfinite(change) & torch.isfinite(curve)  # a probability of exactly zero has no logit
    change, curve = torch.where(usable, change, 0.0), torch.where(usable, curve, 0.0)
    norm = float(curve.norm())
    if norm == 0.0:
        return None
    step = -float(change.norm()) / norm
    if step > -1.0:
        return None
    jumped = points[0] - 2 * step * change + step**2 * curve
    jumped = torch.where(usable, jumped, points[2])
    return _rebuild(plan, third, names, jumped)


def _rebuild(plan: Plan, like: Parameters, names: list[str], flat: Tensor) -> Parameters:
    values, at = dict(like), 0
    for n in names:
        transform = transform_to(plan.program.parameters[n].constraint)
        shape = transform.inv(like[n].detach()).shape
        count = shape.numel()
        piece = flat[at : at + count].reshape(shape)
        values[n] = inside(plan.program.parameters[n].constraint, transform(piece).to(like[n].dtype))
        at += count
    return values
