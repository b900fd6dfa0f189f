"""Forward–backward compiled to machine code, one series after the other: needs numba, which is optional.

Nothing but the forward messages of one series is stored: marginals go into the expected statistics as they arise.

Reference:
    Rabiner, L. R. (1989). A tutorial on hidden Markov models. Proceedings of the IEEE 77(2), section V.A.
"""

from __future__ import annotations

import numba  # type: ignore[import-not-found]
import numpy as np

# A message whose greatest element falls below this between two rescalings could lose digits.
_SMALLEST = 1e-250

_compiled = numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "contract", "nsz"})


@_compiled
def _product(vector, matrix, out):
    """Row vector times matrix, four rows of the matrix at a time."""
    size = len(vector)
    out[:] = 0.0
    whole = size - size % 4
    for i in range(0, whole, 4):
        a, b, c, d = vector[i], vector[i + 1], vector[i + 2], vector[i + 3]
        for j in range(size):
            out[j] += a * matrix[i, j] + b * matrix[i + 1, j] + c * matrix[i + 2, j] + d * matrix[i + 3, j]
    for i in range(whole, size):
        a = vector[i]
        for j in range(size):
            out[j] += a * matrix[i, j]


@_compiled
def _forward(rows, density, start, trans, period, alpha, inverse):
    """Forward messages of one series; log of what they were divided by, not a number where digits could be lost."""
    size, log_norm = len(start), 0.0
    for t in range(len(rows)):
        here, message = density[rows[t]], alpha[t]
        if t == 0:
            for k in range(size):
                message[k] = start[k] * here[k]
        else:
            _product(alpha[t - 1], trans, message)
            for k in range(size):
                message[k] *= here[k]
        inverse[t] = 1.0
        if t % period == 0 or t == len(rows) - 1:
            total = 0.0
            for k in range(size):
                total += message[k]
            if not total > _SMALLEST:
                return np.nan
            log_norm += np.log(total)
            inverse[t] = 1.0 / total
            for k in range(size):
                message[k] *= inverse[t]
    return log_norm


@_compiled
def expected_counts(
    starts, rows, density, start, trans, outof, period, weight, features, alpha, log_z, first, xi, statistics
):
    """Log-partitions and expected statistics of series that share one transition matrix.

    Args:
        starts: (N + 1) where each series begins among the steps.
        rows: (M) which row of ``density`` each step observes.
        density: (R, K) what each state makes of it.
        start: (N or 1, K) initial factor.
        trans, outof: (K, K) transitions, rows the previous state, and their transpose.
        period: messages are rescaled every so many steps.
        weight: (N) how often each series counts.
        features: (M, F) what is to be summed with the marginals; of no columns, the marginals of each row are summed.
        alpha: (longest series, K) memory to work in.
        log_z: (N) to be filled; not a number where digits could be lost.
        first: (N, K) to be filled with the marginals of first states.
        xi: (K, K) to be added to: products of messages, to be multiplied by the transitions.
        statistics: (F, K) or (R, K) to be added to.
    """
    size, inverse = len(trans), np.empty(len(alpha))
    beta, onward, marginal = np.empty(size), np.empty(size), np.empty(size)
    for n in range(len(log_z)):
        a, b = starts[n], starts[n + 1]
        log_z[n] = _forward(rows[a:b], density, start[n if len(start) > 1 else 0], trans, period, alpha, inverse)
        if np.isnan(log_z[n]):
            return
        beta[:] = 1.0
        for t in range(b - a - 1, -1, -1):
            row = rows[a + t]
            here, message = density[row], alpha[t]
            for k in range(size):
                marginal[k] = weight[n] * message[k] * beta[k]
            if features.shape[1] == 0:
                for k in range(size):
                    statistics[row, k] += marginal[k]
            else:
                for f in range(features.shape[1]):
                    x = features[a + t, f]
                    for k in range(size):
                        statistics[f, k] += x * marginal[k]
            if t == 0:
                for k in range(size):
                    first[n, k] = message[k] * beta[k]
                break
            for k in range(size):
                onward[k] = here[k] * beta[k] * inverse[t]
            previous = alpha[t - 1]
            for i in range(size):
                x = weight[n] * previous[i]
                for k in range(size):
                    xi[i, k] += x * onward[k]
            _product(onward, outof, beta)
