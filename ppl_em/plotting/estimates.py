"""Estimates with their intervals, and profiles of the likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_em.diagnostics.coordinates import element_labels
from ppl_em.errors import PplEmError, message
from ppl_em.plotting.style import COLOURS

if TYPE_CHECKING:
    from ppl_em.result import FitResult

#: Rows of one panel.
MOST_ROWS = 40
#: Columns of a parameter that get a panel each.
MOST_COLUMNS = 4


@dataclass(frozen=True)
class Panel:
    """Elements of one parameter that can be compared: those that differ in their component alone.

    Args:
        title: e.g. ``loc[·,1]``.
        labels: of the elements, e.g. ``loc[0,1]``.
        ticks: what tells them apart, e.g. ``0``.
    """

    title: str
    labels: tuple[str, ...]
    ticks: tuple[str, ...]


def panels(result: FitResult) -> list[Panel]:
    """One panel for each parameter, or for each place within its components (a mean's second coordinate, say)."""
    from ppl_em.relabelling import component_axes

    axes = component_axes(result._plan_for(()))
    found: list[Panel] = []
    for name, value in result._values.items():
        along = axes.get(name, ())
        if len(along) != 1 or value.dim() == 1 or value.shape[-1] > MOST_COLUMNS:
            labels = element_labels(name, value.shape)
            found.append(Panel(name, tuple(labels), tuple(x.removeprefix(name) or name for x in labels)))
            continue
        others = [range(n) if axis != along[0] else (slice(None),) for axis, n in enumerate(value.shape)]
        symmetric = value.dim() >= 3 and value.shape[-1] == value.shape[-2] and bool((value == value.mT).all())
        for place in product(*others):
            if symmetric and along[0] < value.dim() - 2 and place[-1] > place[-2]:  # pyright: ignore[reportOperatorIssue]
                continue
            marks = ["·" if isinstance(p, slice) else str(p) for p in place]
            title = f"{name}[{','.join(marks)}]"
            count = range(value.shape[along[0]])
            found.append(Panel(title, tuple(title.replace("·", str(k)) for k in count), tuple(map(str, count))))
    return found


def parameters(result: FitResult, ax: Any, name: str | None = None, level: float = 0.95) -> None:
    """Estimates and intervals, one row for each element.

    Args:
        result: a fit.
        ax: the axis.
        name: a parameter (all its elements), or the title of one of :func:`panels`; the first panel by default.
        level: confidence.
    """
    table = result.conf_int(level)
    known = {p.title: p for p in panels(result) if p.labels[0] in table.index}
    whole = {
        n: element_labels(n, v.shape) for n, v in result._values.items() if element_labels(n, v.shape)[0] in table.index
    }
    known |= {
        n: Panel(n, tuple(x), tuple(t.removeprefix(n) or n for t in x)) for n, x in whole.items() if n not in known
    }
    panel = next(iter(known.values()), None) if name is None else known.get(name)
    if panel is None:
        raise PplEmError(message("no free parameter of this name", site=str(name), hint=f"one of {list(known)}"))
    shown = table.loc[list(panel.labels[:MOST_ROWS])]
    places = np.arange(len(shown))[::-1]
    known_error = np.isfinite(shown["std_error"].to_numpy())
    low = np.where(known_error, shown["estimate"] - shown["lower"], 0.0)
    high = np.where(known_error, shown["upper"] - shown["estimate"], 0.0)
    ax.errorbar(
        shown["estimate"], places, xerr=np.clip([low, high], 0, None), fmt="none", ecolor=COLOURS[0], elinewidth=1.6
    )
    for mask, face in ((known_error, COLOURS[0]), (~known_error, "white")):
        ax.scatter(shown["estimate"][mask], places[mask], s=20, color=face, edgecolor=COLOURS[0], zorder=3)
    ax.set_yticks(places, panel.ticks[:MOST_ROWS])
    ax.set_ylim(-0.7, len(shown) - 0.3)
    ax.grid(axis="x", color="0.9", linewidth=0.6)
    ax.set_axisbelow(True)
    more = f" (first {MOST_ROWS} of {len(panel.labels)})" if len(panel.labels) > MOST_ROWS else ""
    ax.set_title(f"{panel.title}{more}")


def profile(result: FitResult, ax: Any, name: str, place: Sequence[int] = (), level: float = 0.95) -> None:
    """Profile likelihood of one element with its interval."""
    found = result.profile(name, place, level)
    falls = found.objective - result.objective
    ax.plot(found.values, falls, color=COLOURS[0], marker=".")
    for end in (found.lower, found.upper):
        if np.isfinite(end):
            ax.axvline(end, color=COLOURS[1], linewidth=1, linestyle="--")
    ax.axvline(found.estimate, color="0.6", linewidth=1)
    ax.set_xlabel(found.label)
    ax.set_ylabel("nats below the maximum")
    ax.set_title(f"{found.label}: {found.estimate:.4g}, {level:.0%} interval {found.lower:.4g} to {found.upper:.4g}")
