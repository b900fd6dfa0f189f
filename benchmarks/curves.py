"""Cost against size: the points of tasks that differ in one size, the power by which it grows, and a picture."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.race import Outcome
from benchmarks.task import Task


@dataclass(frozen=True)
class Curve:
    """Times of one family of tasks along one size.

    Attributes:
        family: What is fitted.
        axis: The size, N, K, T or D.
        seconds: By contender, time of a step by size.
    """

    family: str
    axis: str
    seconds: Mapping[str, Mapping[int, float]]


def curves(results: Mapping[tuple[str, int], Mapping[str, Outcome]], tasks: Mapping[str, Task]) -> list[Curve]:
    """Returns the curves, at one thread, of which at least two points were measured."""
    found: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for (name, threads), outcomes in results.items():
        for point in tasks[name].points if threads == 1 else ():
            curve = found.setdefault((point.family, point.axis), {})
            for contender, outcome in outcomes.items():
                curve.setdefault(contender, {})[point.size] = outcome.step_seconds
    return [
        Curve(family, axis, several)
        for (family, axis), curve in found.items()
        if (several := {contender: points for contender, points in curve.items() if len(points) > 1})
    ]


def growth(points: Mapping[int, float]) -> float:
    """Slope of log time against log size, by least squares: 1 where time is linear in the size."""
    logs = [(math.log(size), math.log(seconds)) for size, seconds in points.items()]
    x, y = (statistics.fmean(column) for column in zip(*logs, strict=True))
    return sum((a - x) * (b - y) for a, b in logs) / sum((a - x) ** 2 for a, _ in logs)


def draw(found: Sequence[Curve], path: Path) -> None:
    """Draws one panel for each curve, both axes logarithmic, with the power beside each contender's name."""
    from matplotlib.figure import Figure

    columns = min(4, len(found))
    rows = math.ceil(len(found) / columns)
    figure = Figure(figsize=(3.4 * columns, 3.0 * rows), layout="constrained")
    for i, curve in enumerate(found):
        axes = figure.add_subplot(rows, columns, i + 1)
        for contender, points in sorted(curve.seconds.items(), key=lambda item: item[0] != "ppl_em"):
            sizes = sorted(points)
            label = f"{contender}: {curve.axis}$^{{{growth(points):.2f}}}$"
            axes.loglog(sizes, [1e3 * points[n] for n in sizes], marker="o", markersize=4, label=label)
        axes.set_title(curve.family, fontsize=10)
        axes.set_xlabel(curve.axis)
        axes.set_ylabel("ms per step")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
