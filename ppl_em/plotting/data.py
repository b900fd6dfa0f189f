"""The data as the fit sees them: coloured by component, with the components' contours; series coloured by state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ppl_em.errors import PplEmError, message
from ppl_em.plotting.components import Components, densities, find_components, moments
from ppl_em.plotting.style import DENSE, colour

if TYPE_CHECKING:
    from ppl_em.result import FitResult

#: Probability inside each contour.
MASSES = (0.5, 0.95)


def data(result: FitResult, ax: Any, columns: tuple[int, int] = (0, 1)) -> None:
    """Observations coloured by their most probable component: a pair of columns, or a histogram of a single one.

    Args:
        result: a fit with one latent per datum.
        ax: the axis.
        columns: of vector-valued observations.
    """
    found = _components(result)
    if found.observed.shape[1] == 1:
        _histogram(result, found, ax)
        return
    first, second = columns
    names = column_labels(result, found)
    values = found.observed[found.kept][:, [first, second]].numpy()
    labels = found.labels[found.kept].numpy()
    for k in range(found.weights.numel()):
        chosen = labels == k
        ax.scatter(*values[chosen].T, s=10, color=colour(k), alpha=0.65, linewidths=0, rasterized=len(values) > DENSE)
    located = moments(found, result._values)
    if located is not None:
        means, covariances = located
        pair = torch.tensor([first, second])
        for k in range(found.weights.numel()):
            covariance = covariances[k][pair][:, pair].numpy()
            for mass in MASSES:
                ax.plot(*contour(means[k, pair].numpy(), covariance, mass), color=colour(k), linewidth=1.2)
            ax.annotate(
                f"{float(found.weights[k]):.0%}",
                means[k, pair].numpy(),
                ha="center",
                va="center",
                weight="bold",
                color=colour(k),
                zorder=5,
                bbox={"facecolor": "white", "alpha": 0.9, "edgecolor": "none", "pad": 1.0},
            )
    ax.set_xlabel(names[first])
    ax.set_ylabel(names[second])
    inside = f"; contours hold {' and '.join(f'{m:.0%}' for m in MASSES)}" if located is not None else ""
    ax.set_title(f"{_sizes(found)}{inside}")


def series(result: FitResult, ax: Any, row: int = 0, column: int = 0) -> None:
    """One time series coloured by its most probable path of states.

    Args:
        result: a fit with a chain of states.
        ax: the axis.
        row: which series, where there are many.
        column: of vector-valued observations.
    """
    found = _components(result)
    plan = result._plan_for(())
    axis = next((e.block.axis for e in plan.blocks if e.block.axis is not None), None)
    if axis is None:
        raise PplEmError(message("there is no chain of states", hint='plot("data")'))
    steps = len(axis.states)
    span = slice(row * steps, (row + 1) * steps)
    kept = found.kept[span].numpy()
    values = found.observed[span, column].numpy()[kept]
    labels = found.labels[span].numpy()[kept]
    time = np.arange(len(values))
    ax.plot(time, values, color="0.75", linewidth=0.8, zorder=1)
    located = moments(found, result._values)
    if located is not None:
        level = located[0][:, column].numpy()[labels]
        ax.step(time, level, where="mid", color="0.35", linewidth=1.0, label="mean of the state", zorder=2)
        ax.legend(loc="best")
    for k in np.unique(labels):
        ax.scatter(
            time[labels == k], values[labels == k], s=12, color=colour(int(k)), zorder=3, rasterized=steps > DENSE
        )
    changes = int((np.diff(labels) != 0).sum())
    ax.set_xlabel("step")
    ax.set_ylabel(column_labels(result, found)[column])
    which = f"series {row}: " if len(found.observed) > steps else ""
    ax.set_title(f"{which}{len(np.unique(labels))} states on the most probable path, {changes} changes")


def contour(mean: np.ndarray, covariance: np.ndarray, mass: float, num_points: int = 120) -> np.ndarray:
    """The ellipse of a two-dimensional normal distribution that holds a probability, (2, num_points)."""
    # The squared Mahalanobis distance is exponential with mean 2 in two dimensions.
    radius = np.sqrt(-2.0 * np.log1p(-mass))
    angle = np.linspace(0.0, 2.0 * np.pi, num_points)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    return mean[:, None] + radius * np.linalg.cholesky(covariance) @ circle


def column_labels(result: FitResult, found: Components) -> list[str]:
    """Names of the observed columns: the table's, else numbered."""
    count = found.observed.shape[1]
    names = next((list(c) for c in result._columns if len(c) == count), None)
    first = str(next(iter(found.site.members)))
    site = first if len(found.site.members) < 2 else first.rstrip("0123456789").rstrip("_")
    return names or ([site] if count == 1 else [f"{site}[{i}]" for i in range(count)])


def _histogram(result: FitResult, found: Components, ax: Any) -> None:
    values = found.observed[found.kept][:, 0]
    labels = found.labels[found.kept]
    count = found.weights.numel()
    whole = bool((values == values.round()).all())
    low, high = float(values.min()), float(values.max())
    if whole and high - low <= 60:
        edges = np.arange(low - 0.5, high + 1.0)
        points = torch.arange(low, high + 1, dtype=values.dtype)
    else:
        edges = np.histogram_bin_edges(values.numpy(), bins="fd")
        points = torch.linspace(low, high, 200, dtype=values.dtype)
    groups = [values[labels == k].numpy() for k in range(count)]
    ax.hist(groups, bins=edges, stacked=True, color=[colour(k) for k in range(count)], alpha=0.65)
    curves = densities(found, result._values, points)
    if curves is not None:
        scale = len(values) * (edges[1] - edges[0])
        for k in range(count):
            ax.plot(points, curves[k] * found.weights[k] * scale, color=colour(k), linewidth=1.4)
    ax.set_xlabel(column_labels(result, found)[0])
    ax.set_ylabel("number of data")
    ax.set_title(f"{_sizes(found)}{'; curves: expected' if curves is not None else ''}")


def _sizes(found: Components) -> str:
    shares = sorted(found.weights.tolist(), reverse=True)
    shown = ", ".join(f"{s:.0%}" for s in shares[:6]) + (" …" if len(shares) > 6 else "")
    return f"{len(shares)} components: {shown}"


def _components(result: FitResult) -> Components:
    found = find_components(result)
    if found is None:
        raise PplEmError(message("no observed site has one value for each element of a latent"))
    return found
