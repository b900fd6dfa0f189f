"""The demonstration: a mixture of two Gaussians on the eruptions of Old Faithful.

The program below is what a user writes; it is fitted from the defaults of `ppl_em.fit`. R's mclust reaches a
log-likelihood of -1130.264 for the same model on the same data.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

from ppl_em import arviz_bridge, output

if TYPE_CHECKING:
    from ppl_em.result import FitResult

__all__ = ["load", "mixture", "run"]

PICTURE = "mixture.png"
NETCDF = "posterior.nc"
REPORT = "report.html"
NAMES = ("plan.txt", "summary.csv", PICTURE, NETCDF, REPORT, "report.json")
"""All that the demonstration writes."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # Okabe and Ito: told apart by everyone


def load() -> pd.DataFrame:
    """Returns the eruptions of Old Faithful: length and waiting time in minutes, 272 rows."""
    with resources.files("ppl_em").joinpath("data/faithful.csv").open(encoding="utf-8") as file:
        return pd.read_csv(file).astype(float)


def mixture(x: torch.Tensor, num_components: int = 2) -> None:
    """A mixture of Gaussians with full covariances.

    Args:
        x: Observations, shape (n, d).
        num_components: Number of components.
    """
    n, d = x.shape
    weights = pyro.param("weights", torch.ones(num_components) / num_components, constraint=constraints.simplex)
    loc = pyro.param("loc", x[:num_components].clone())
    cov = pyro.param("cov", torch.eye(d).repeat(num_components, 1, 1), constraint=constraints.positive_definite)
    with pyro.plate("eruption", n):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(loc[z], covariance_matrix=cov[z]), obs=x)


def run(parent: Path, echo: Callable[[str], Any]) -> Path:
    """Fits the mixture, prints what happens, and writes a picture, a netCDF file and a report.

    Args:
        parent: Where to make the directory ``ppl-em-demo``.
        echo: Prints one piece of text.

    Returns:
        The directory written.
    """
    import ppl_em

    directory = output.open_output(_free_directory(parent), NAMES, force=True)
    data = load()
    echo(f"Old Faithful: {data.shape[0]} eruptions, {' and '.join(data.columns)} in minutes\n")
    plan = ppl_em.explain(mixture, data)
    echo(f"{plan}\n")
    result = ppl_em.fit(mixture, data, seed=0, progress=True)
    _echo_progress(result, echo)
    table = result.summary()
    echo(f"\n{table.to_string()}\n")
    echo(f"{_verdict(result)}\n")
    echo(str(result.diagnose()))

    directory.write_text("plan.txt", str(plan))
    directory.write("summary.csv", table.to_csv)
    directory.write(NETCDF, lambda path: arviz_bridge.save(result.to_arviz(), path))
    directory.write(PICTURE, lambda path: draw(result, data, path))
    result.report(directory.path / REPORT)
    echo(f"\nwritten to {directory.path.name}/: {', '.join(NAMES)}")
    return directory.path


def draw(result: FitResult, data: pd.DataFrame, path: Path) -> None:
    """Draws the data coloured by component, with the components' ellipses that hold 50 % and 95 %.

    Args:
        result: A fit of `mixture`.
        data: The observations, two columns.
        path: The picture to write.
    """
    from matplotlib.figure import Figure

    labels = result.posterior().mode()["z"].numpy()
    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    for k, (weight, loc, cov) in enumerate(
        zip(*(result.params[name].numpy() for name in ("weights", "loc", "cov")), strict=True)
    ):
        colour = COLOURS[k % len(COLOURS)]
        axes.scatter(*data.to_numpy()[labels == k].T, s=12, color=colour, alpha=0.7, linewidths=0)
        for mass in (0.5, 0.95):
            axes.plot(*ellipse(loc, cov, mass), color=colour, linewidth=1)
        box = {"boxstyle": "round", "facecolor": "white", "edgecolor": "none", "alpha": 0.8}
        axes.annotate(f"{weight:.0%}", loc, color=colour, weight="bold", ha="center", va="center", bbox=box)
    axes.set_xlabel(f"{data.columns[0]} (minutes)")
    axes.set_ylabel(f"{data.columns[1]} (minutes)")
    axes.set_title(_finding(result), fontsize=10)
    figure.savefig(path, dpi=150)


def ellipse(loc: np.ndarray, cov: np.ndarray, mass: float, num_points: int = 200) -> np.ndarray:
    """Returns the contour of a 2-D Gaussian that holds a probability.

    Args:
        loc: Mean, shape (2,).
        cov: Covariance, shape (2, 2).
        mass: The probability inside.
        num_points: Points on the contour.

    Returns:
        Points, shape (2, num_points).
    """
    # The squared Mahalanobis distance is exponential with mean 2 in two dimensions.
    radius = np.sqrt(-2.0 * np.log1p(-mass))
    angle = np.linspace(0.0, 2.0 * np.pi, num_points)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    return loc[:, None] + radius * np.linalg.cholesky(cov) @ circle


def _echo_progress(result: FitResult, echo: Callable[[str], Any]) -> None:
    """Prints about eight of the objective's values on the way."""
    steps = len(result.history) - 1
    shown = sorted({*np.unique(np.geomspace(1, max(steps, 1), 7).astype(int)).tolist(), 0} & {*range(steps + 1)})
    echo("step  log-likelihood")
    for step in shown:
        echo(f"{step:4d}  {float(result.history[step]):14.6f}")


def _verdict(result: FitResult) -> str:
    """Says in a sentence what was reached."""
    kind = "exact log-likelihood" if result.exact else f"{result.objective_name} (inexact)"
    return f"verdict: {kind} {result.objective:.6f} after {result.num_steps} steps. {result.status.value}"


def _finding(result: FitResult) -> str:
    """Says what the components mean: their share, length and waiting time."""
    weights, loc = result.params["weights"].tolist(), result.params["loc"].tolist()
    kinds = sorted(zip(loc, weights, strict=True))
    parts = [f"{weight:.0%} last {mean[0]:.1f} min after {mean[1]:.0f} min" for mean, weight in kinds]
    return f"{len(kinds)} kinds of eruption:\n{', '.join(parts)}"


def _free_directory(parent: Path) -> Path:
    """Returns ``ppl-em-demo``, or the first numbered one after it that holds nothing of anybody else's."""
    number = 1
    while True:
        path = parent / ("ppl-em-demo" if number == 1 else f"ppl-em-demo-{number}")
        if not path.exists() or (path.is_dir() and {entry.name for entry in path.iterdir()} <= {*NAMES}):
            return path
        number += 1
