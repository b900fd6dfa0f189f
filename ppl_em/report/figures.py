"""The report's pictures as SVG, the same bytes for the same result."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ppl_em.distributions import CTC, PCFG
from ppl_em.errors import PplEmError
from ppl_em.plotting import plot
from ppl_em.plotting.components import find_components
from ppl_em.plotting.estimates import MOST_ROWS, panels
from ppl_em.plotting.structures import drawable
from ppl_em.plotting.style import figure, styled

if TYPE_CHECKING:
    from ppl_em.result import FitResult

#: Pictures of one kind at most: panels of parameters, pairs of columns, columns, series.
MOST_PANELS, MOST_PAIRS, MOST_COLUMNS, MOST_SERIES = 12, 6, 6, 3
#: Width and height in inches.
SIZES = {"small": (3.5, 2.5), "plain": (5.2, 3.0), "wide": (10.4, 2.7), "tall": (10.4, 3.9)}


@dataclass(frozen=True)
class Figure:
    """A picture.

    Args:
        svg: the file's bytes.
        alt: what it shows, for those who do not see it.
        size: ``"small"``, ``"plain"``, ``"wide"`` or ``"tall"`` (the page's whole width).
        group: heading under which it stands with others.
    """

    svg: bytes
    alt: str
    size: str = "plain"
    group: str = ""


def figures(result: FitResult) -> dict[str, list[Figure]]:
    """Pictures by section; those that this fit does not have are left out."""
    columns = _columns(result)[:MOST_COLUMNS]
    found = {
        "data": _data(result),
        "parameters": _parameters(result),
        "predictive": [
            *(_one(result, "predictive", "small", "Latents drawn anew (marginal)", **c) for c in columns),
            *(_one(result, "reconstruction", "small", "Latents given the data (reconstruction)", **c) for c in columns),
        ],
        "loo": [_one(result, "loo")],
        "latents": [
            *(_one(result, kind) for kind in ("latents", "codes", "divergence")),
            *_structures(result, "trees", PCFG, "Parse trees"),
            *_structures(result, "alignments", CTC, "Alignments"),
        ],
        "convergence": [_one(result, "history"), _one(result, "restarts") if len(result.restarts) > 1 else None],
        "calibration": [_one(result, "pit")],
    }
    present = {name: [p for p in pictures if p is not None] for name, pictures in found.items()}
    return {name: pictures for name, pictures in present.items() if pictures}


def _columns(result: FitResult) -> list[dict[str, Any]]:
    """Site and column of every observed number; none where the program's sites cannot be drawn anew."""
    try:
        sites = result.predictive_check.sites
    except PplEmError:
        return []
    return [{"site": s.name, "column": c} for s in sites for c in range(len(s.columns))]


def svg(draw: Callable[[Any], None], width: float, height: float) -> bytes:
    """A drawing as SVG without a date, with reproducible identifiers.

    Args:
        draw: draws on a matplotlib figure.
        width, height: in inches.
    """
    with styled():
        page = figure(width, height)
        draw(page)
        target = io.BytesIO()
        page.savefig(target, format="svg", metadata={"Date": None, "Creator": "ppl_em"})
    return target.getvalue()


def _one(result: FitResult, kind: str, size: str = "plain", group: str = "", **options: Any) -> Figure | None:
    """One axis in a picture; None where this fit does not have it."""
    titles: list[str] = []

    def draw(page: Any) -> None:
        ax = page.add_subplot()
        plot(result, kind, ax, **options)
        titles.append(ax.get_title(loc="left"))

    width, height = SIZES[size]
    try:
        picture = svg(draw, width, height)
    except PplEmError:
        return None
    return Figure(picture, ". ".join(filter(None, (group, *titles))), size, group)


def _structures(result: FitResult, kind: str, family: type, group: str) -> list[Figure | None]:
    """Pictures of the first few hidden structures of a family of distributions."""
    try:
        rows = drawable(result, family, MOST_SERIES)
    except PplEmError:
        return []
    return [_one(result, kind, "tall", group, row=row) for row in rows]


def _data(result: FitResult) -> list[Figure | None]:
    found = find_components(result)
    if found is None:
        return [_one(result, "images", "wide")]
    steps = next((len(e.block.axis.states) for e in result.plan.blocks if e.block.axis is not None), 0)
    if steps:
        shown = min(MOST_SERIES, len(found.observed) // steps)
        return [*(_one(result, "series", "wide", row=r) for r in range(shown)), _one(result, "data")]
    width = found.observed.shape[1]
    pairs = [(i, j) for i in range(width) for j in range(i + 1, width)][:MOST_PAIRS]
    if len(pairs) < 2:
        return [_one(result, "data")]
    return [_one(result, "data", "small", columns=p) for p in pairs]


def _parameters(result: FitResult) -> list[Figure | None]:
    try:
        table = result.conf_int()
    except PplEmError:
        return []
    shown = [p for p in panels(result) if p.labels[0] in table.index and len(p.labels) <= MOST_ROWS]
    return [
        _one(result, "parameters", "small" if len(p.labels) <= 8 else "plain", name=p.title)
        for p in shown[:MOST_PANELS]
    ]
