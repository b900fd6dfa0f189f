"""The data against draws from the fit, and leave-one-out: what the model misses, and which data it hangs on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ppl_em.diagnostics.predictive import SiteCheck
from ppl_em.diagnostics.psis import threshold
from ppl_em.errors import PplEmError, message
from ppl_em.plotting.style import COLOURS, DENSE, DRAWN, SEEN

if TYPE_CHECKING:
    from ppl_em.result import FitResult

#: Draws shown.
SHOWN = 50


def predictive(result: FitResult, ax: Any, site: str | None = None, column: int = 0) -> None:
    """Distribution of an observed column against those of data drawn anew, latents included."""
    found = _site(result, site)
    _compare(ax, found, found.marginal, column, "drawn")


def reconstruction(result: FitResult, ax: Any, site: str | None = None, column: int = 0) -> None:
    """Distribution of an observed column against those of data drawn given the posterior of their latents."""
    found = _site(result, site)
    if not len(found.reconstruction):
        raise PplEmError(message("there are no latents to reconstruct the data from"))
    _compare(ax, found, found.reconstruction, column, "reconstructed")


def loo(result: FitResult, ax: Any) -> None:
    """Tail shape of the leave-one-out weights of each datum."""
    k = result.loo.pareto_k.reshape(-1)
    limit = threshold(len(result._draws.coordinates))
    high = k > limit
    for mask, shade in ((~high, COLOURS[0]), (high, COLOURS[1])):
        ax.scatter(np.flatnonzero(mask), k[mask], s=8, color=shade, linewidths=0, rasterized=len(k) > DENSE)
    ax.axhline(limit, color=COLOURS[1], linewidth=1, linestyle="--")
    ax.set_xlabel("datum")
    ax.set_ylabel("k-hat")
    ax.set_title(
        f"elpd {result.loo.elpd:.1f} ± {result.loo.se:.1f} nats; {int(high.sum())} of {len(k)} data above {limit:.2f}"
    )


def pit(result: FitResult, ax: Any) -> None:
    """Distribution function of the LOO-PIT values minus the uniform one, with a simultaneous 95 % band."""
    found = result.loo_pit
    if not found:
        raise PplEmError(message("there are no leave-one-out predictions of single data"))
    for i, (name, values) in enumerate(found.items()):
        ordered = np.concatenate([[0.0], np.sort(values.values.numpy()), [1.0]])
        steps = np.concatenate([[0.0], np.arange(1, len(ordered) - 1) / (len(ordered) - 2), [1.0]])
        ax.step(ordered, steps - ordered, where="post", color=COLOURS[i % len(COLOURS)], label=name, linewidth=1.2)
    band = max(v.band for v in found.values())
    for edge in (-band, band):
        ax.axhline(edge, color="0.5", linewidth=1, linestyle="--")
    ax.set_xlim(0, 1)
    ax.set_xlabel("probability of a smaller value, given all other data")
    ax.set_ylabel("ECDF − uniform")
    inside = sum(v.distance <= v.band for v in found.values())
    if len(found) > 1:
        ax.legend()
    ax.set_title(
        f"{inside} of {len(found)} columns within the 95 % band: {'calibrated' if inside == len(found) else 'miscalibrated'}"
    )


def _site(result: FitResult, name: str | None) -> SiteCheck:
    sites = result.predictive_check.sites
    found = next((s for s in sites if name is None or s.name == name), None)
    if found is None:
        raise PplEmError(
            message("no observed site of this name", site=str(name), hint=f"one of {[s.name for s in sites]}")
        )
    return found


def _compare(ax: Any, site: SiteCheck, draws: Tensor, column: int, how: str) -> None:
    """Step-shaped distribution functions: they do not leak past an edge, as density estimates do."""
    seen, drawn = site.column(column, draws)
    shown = drawn[torch.linspace(0, len(drawn) - 1, min(SHOWN, len(drawn))).long()]
    everything = torch.cat([seen, shown.reshape(-1)])
    low, high = (float(q) for q in everything.quantile(torch.tensor([0.0005, 0.9995], dtype=everything.dtype)))
    grid = np.linspace(min(low, float(seen.min())), max(high, float(seen.max())), 240)
    if site.discrete and grid[-1] - grid[0] < 240:
        grid = np.arange(np.floor(grid[0]), np.ceil(grid[-1]) + 1)
    for i, row in enumerate(shown.numpy()):
        label = f"{len(shown)} {how}" if i == 0 else None
        share = np.searchsorted(np.sort(row), grid, side="right") / len(row)
        ax.step(grid, share, where="post", color=DRAWN, alpha=0.35, linewidth=0.7, label=label, rasterized=True)
    share = np.searchsorted(np.sort(seen.numpy()), grid, side="right") / len(seen)
    ax.step(grid, share, where="post", color=SEEN, linewidth=1.4, label="observed")
    ax.set_xlabel(" ".join(filter(None, (site.name, site.columns[column]))))
    ax.set_ylabel("share at or below")
    ax.legend(loc="best")
    gap = _largest_gap(seen, shown)
    ax.set_title(f"observed is within {gap:.0%} of what is {how}")


def _largest_gap(seen: Tensor, drawn: Tensor) -> float:
    points = seen.sort().values
    observed = torch.searchsorted(points, points, side="right") / len(points)
    pooled = drawn.reshape(-1).sort().values
    expected = torch.searchsorted(pooled, points, side="right") / len(pooled)
    return float((observed - expected).abs().max())
