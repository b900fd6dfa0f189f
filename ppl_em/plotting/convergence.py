"""How the fit got where it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_em.plotting.style import COLOURS

if TYPE_CHECKING:
    from ppl_em.result import FitResult


def history(result: FitResult, ax: Any) -> None:
    """Objective by step."""
    values = result.history.numpy()
    ax.plot(values, color=COLOURS[0], marker="." if len(values) < 40 else "", linewidth=1.2)
    ax.set_xlabel("step")
    name = "ELBO" if result.objective_name == "elbo" else result.objective_name.replace("_", "-")
    ax.set_ylabel(f"{name} (nats)")
    ended = result.status.name.lower().replace("_", " ")
    ax.set_title(f"{result.objective:.3f} nats after {result.num_steps} steps: {ended}".replace("-", "−", 1))


def restarts(result: FitResult, ax: Any) -> None:
    """Distance of each start's end from the best, in order."""
    order = sorted(result.restarts, key=lambda r: -r.objective)
    best = order[0].objective
    gaps = np.array([max(best - r.objective, 0.0) for r in order])
    places = np.arange(1, len(order) + 1)
    dropped = np.array([r.screened for r in order])
    for mask, shade, label in ((~dropped, COLOURS[0], "run to its end"), (dropped, COLOURS[4], "dropped early")):
        if mask.any():
            ax.scatter(places[mask], gaps[mask], color=shade, label=label, s=22, clip_on=False)
    if gaps.max() > 1e-2:
        ax.set_yscale("symlog", linthresh=1e-2)
    else:
        ax.set_ylim(-1e-3, 1e-2)
    ax.set_xlabel("start, best first")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.set_ylabel("nats below the best")
    if dropped.any():
        ax.legend()
    reached = int((gaps < 1e-2).sum())
    ax.set_title(f"{reached} of {len(order)} starts reached the best optimum")
