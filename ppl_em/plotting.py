"""Figures of a result on a matplotlib axis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ppl_em.errors import PplEmError, message

if TYPE_CHECKING:
    from ppl_em.result import FitResult

#: Okabe and Ito's colours, told apart by all readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")


def plot(result: FitResult, kind: str, ax: Any = None) -> Any:
    """Draw one figure.

    Args:
        result: a fit.
        kind: ``"history"`` (objective by step) or ``"restarts"`` (where each start ended).
        ax: the axis; a new figure by default.

    Returns:
        The axis.
    """
    kinds = {"history": _history, "restarts": _restarts}
    if kind not in kinds:
        raise PplEmError(message("unknown kind of plot", value=kind, hint=f"one of {sorted(kinds)}"))
    if ax is None:
        from matplotlib.figure import Figure

        ax = Figure(figsize=(6, 3.5), layout="constrained").add_subplot()
    kinds[kind](result, ax)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def _history(result: FitResult, ax: Any) -> None:
    ax.plot(result.history.numpy(), color=COLOURS[0], marker="." if len(result.history) < 40 else "")
    ax.set_xlabel("step")
    ax.set_ylabel(f"{result.objective_name.replace('_', ' ')} (nats)")
    ax.set_title(f"{result.objective:.3f} nats after {result.num_steps} steps: {result.status.name.lower().replace('_', ' ')}")


def _restarts(result: FitResult, ax: Any) -> None:
    values = [r.objective for r in result.restarts]
    colours = [COLOURS[1] if r.screened else COLOURS[0] for r in result.restarts]
    ax.scatter(range(1, len(values) + 1), values, c=colours)
    ax.set_xlabel("start")
    ax.set_ylabel(f"{result.objective_name.replace('_', ' ')} (nats)")
    best = sum(1 for v in values if v > result.objective - 1e-3)
    ax.set_title(f"{best} of {len(values)} starts reached the best optimum")
