"""One look for all figures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Okabe and Ito's colours, told apart by all readers; black first for data.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8a7a00", "#444444")
#: Draws from a model, and what was observed.
DRAWN, SEEN = "#56B4E9", "#000000"
#: Points beyond which an artist is rasterised.
DENSE = 2000

_SETTINGS = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.hashsalt": "ppl_em",
    "figure.dpi": 100,
    "savefig.dpi": 150,
}


@contextmanager
def styled() -> Iterator[None]:
    """Matplotlib's settings for the time of a figure."""
    import matplotlib as mpl

    with mpl.rc_context(_SETTINGS):  # pyright: ignore[reportArgumentType]
        yield


def figure(width: float = 6.4, height: float = 3.4) -> Any:
    """A figure that belongs to nobody's window (inches)."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def axis(width: float = 6.4, height: float = 3.4) -> Any:
    """An axis in a figure of its own."""
    return figure(width, height).add_subplot()


def colour(index: int) -> str:
    """Colour of a component."""
    return COLOURS[index % len(COLOURS)]
