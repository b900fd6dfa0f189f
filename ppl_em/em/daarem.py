"""DAAREM: Anderson's acceleration of the EM map, damped, restarted, under a monotone guard.

Reference:
    Henderson, N. C. & Varadhan, R. (2019). Damped Anderson acceleration with restarts and monotonicity control for
    accelerating EM and EM-like algorithms. Journal of Computational and Graphical Statistics 28(4).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.em.accelerate import Space
from ppl_em.em.updates import Parameters

#: Differences that are kept at most; half as many as there are coordinates.
ORDER = 10
#: Base of the damping, and the number of accepted steps at which half of the full extrapolation is taken.
BASE, HALF_WAY = 1.2, 25
#: Singular values below this part of the largest carry rounding only.
RANK = 1e-14


class Daarem:
    """Anderson's mixing of the last residuals; the damping falls as steps are accepted."""

    def __init__(self) -> None:
        self.last: tuple[Tensor, Tensor] | None = None
        self.moves: list[Tensor] = []
        self.changes: list[Tensor] = []
        self.accepted = 0

    def propose(self, space: Space, point: Parameters, image: Parameters) -> Parameters | None:
        """The mixed step from the second evaluation on."""
        here, there = space.flat(point), space.flat(image)
        residual = there - here
        usable = torch.isfinite(residual)  # a probability of exactly zero has no logit
        here, residual = torch.where(usable, here, 0.0), torch.where(usable, residual, 0.0)
        last, self.last = self.last, (here, residual)
        if last is None:
            return None
        if len(self.changes) >= min(ORDER, max(1, len(here) // 2)):  # restart
            self.moves, self.changes = [], []
        self.moves.append(here - last[0])
        self.changes.append(residual - last[1])
        mix = self._mixing(torch.stack(self.changes, 1), residual)
        if mix is None:
            return None
        step = residual - (torch.stack(self.moves, 1) + torch.stack(self.changes, 1)) @ mix
        return space.rebuild(torch.where(usable, here + step, there), image)

    def judged(self, accepted: bool) -> None:
        """Success lessens the damping; a refused step strengthens it."""
        self.accepted = self.accepted + 1 if accepted else max(self.accepted - len(self.changes), -2 * HALF_WAY)

    def _mixing(self, changes: Tensor, residual: Tensor) -> Tensor | None:
        """Damped least-squares coefficients (m,): their squared norm is a stated part of the undamped one's."""
        left, sizes, right = torch.linalg.svd(changes, full_matrices=False)
        keep = sizes > RANK * sizes.max()
        if not bool(keep.any()):
            return None
        left, sizes, right = left[:, keep], sizes[keep], right[keep]
        along = left.T @ residual
        part = 1 / (1 + BASE ** (HALF_WAY - self.accepted))
        damping = _damping(sizes, along, part)
        return right.T @ (sizes * along / (sizes**2 + damping))


def _damping(sizes: Tensor, along: Tensor, part: float) -> float:
    """Ridge λ at which the coefficients' squared norm is ``part`` of that without, by bisection of its logarithm."""
    target = part * float((along / sizes).square().sum())

    def excess(ridge: float) -> float:
        return float((sizes * along / (sizes**2 + ridge)).square().sum()) - target

    if target == 0.0:
        return 0.0
    low, high = float(sizes.min()) ** 2 * 1e-8, float(sizes.max()) ** 2
    while excess(high) > 0:
        high *= 10
    if excess(low) <= 0:
        return low
    while high / low > 1.05:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    return high
