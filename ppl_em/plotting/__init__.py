"""Figures of a result on matplotlib axes. Titles state the finding."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ppl_em.errors import PplEmError, message
from ppl_em.plotting.codes import codes, divergence, images
from ppl_em.plotting.convergence import history, restarts
from ppl_em.plotting.data import data, series
from ppl_em.plotting.estimates import parameters, profile
from ppl_em.plotting.latents import latents
from ppl_em.plotting.predictive import loo, pit, predictive, reconstruction
from ppl_em.plotting.structures import alignments, trees
from ppl_em.plotting.style import axis, styled

if TYPE_CHECKING:
    from ppl_em.result import FitResult

__all__ = ["KINDS", "plot"]

#: Figures by name; each takes a result, an axis and options.
KINDS: dict[str, Callable[..., None]] = {
    "history": history,
    "restarts": restarts,
    "parameters": parameters,
    "profile": profile,
    "data": data,
    "series": series,
    "latents": latents,
    "trees": trees,
    "alignments": alignments,
    "codes": codes,
    "divergence": divergence,
    "images": images,
    "predictive": predictive,
    "reconstruction": reconstruction,
    "loo": loo,
    "pit": pit,
}


def plot(result: FitResult, kind: str, ax: Any = None, **options: Any) -> Any:
    """Draw one figure.

    Args:
        result: a fit.
        kind: ``"history"`` (objective by step), ``"restarts"`` (where each start ended), ``"parameters"`` (estimates
            with intervals; ``name=`` of the parameter), ``"profile"`` (profile likelihood; ``name=`` and ``place=``),
            ``"data"`` (observations by component, with the components' contours), ``"series"`` (a time series coloured
            by state), ``"latents"`` (posterior probabilities of the states), ``"trees"`` (the best parse
            of a sentence; ``row=``), ``"alignments"`` (frames by label; ``row=``), ``"codes"`` (posterior means that an
            encoder gives the data), ``"divergence"`` (information in each of its dimensions), ``"images"`` (square
            images, reconstructed and drawn anew), ``"predictive"`` and
            ``"reconstruction"`` (data against draws), ``"loo"`` (k-hat per datum), ``"pit"`` (calibration).
        ax: the axis; a new figure by default.
        options: of the figure, e.g. ``columns=(0, 2)`` for ``"data"``.

    Returns:
        The axis.

    Raises:
        PplEmError: there is no such figure, or this fit does not have it.
    """
    if kind not in KINDS:
        raise PplEmError(message("unknown kind of plot", value=kind, hint=f"one of {sorted(KINDS)}"))
    with styled():
        ax = axis() if ax is None else ax
        KINDS[kind](result, ax, **options)
        ax.spines[["top", "right"]].set_visible(False)
    return ax
