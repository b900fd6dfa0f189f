"""Derivatives by differences of functions written with SciPy: nothing here knows the package under test."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import special, stats

Function = Callable[[np.ndarray], float]
# Central differences of fourth order.
_OFFSETS = np.array([-2, -1, 1, 2])
_WEIGHTS = np.array([1, -8, 8, -1]) / 12


def gradient(function: Callable[[np.ndarray], np.ndarray], at: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Jacobian (P, *value) of a function."""
    columns = []
    for i in range(len(at)):
        values = [function(at + o * step[i] * np.eye(len(at))[i]) for o in _OFFSETS]
        columns.append(sum(w * v for w, v in zip(_WEIGHTS, values, strict=True)) / step[i])
    return np.array(columns)


def hessian(function: Function, at: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Hessian (P, P) of a scalar function."""
    found = gradient(lambda x: gradient(lambda y: np.asarray(function(y)), x, step), at, step)
    return 0.5 * (found + found.T)


def gaussian_mixture(x: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Log-density of each datum under two full Gaussians in the plane.

    The parameters: weight of the first, means (4), covariances (xx, xy, yy) of each.
    """

    def log_density(p: np.ndarray) -> np.ndarray:
        parts = []
        for k in range(2):
            a, b, c = p[5 + 3 * k : 8 + 3 * k]
            weight = p[0] if k == 0 else 1 - p[0]
            parts.append(
                np.log(weight) + stats.multivariate_normal(p[1 + 2 * k : 3 + 2 * k], [[a, b], [b, c]]).logpdf(x)
            )
        return special.logsumexp(parts, axis=0)

    return log_density


def experts(x: np.ndarray, y: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Log-density of each datum under two lines: gate (2), intercepts (2), slopes (2), scales (2)."""

    def log_density(p: np.ndarray) -> np.ndarray:
        gate = p[0] + p[1] * x
        parts = [
            special.log_expit(gate if k else -gate) + stats.norm(p[2 + k] + p[4 + k] * x, p[6 + k]).logpdf(y)
            for k in range(2)
        ]
        return special.logsumexp(parts, axis=0)

    return log_density
