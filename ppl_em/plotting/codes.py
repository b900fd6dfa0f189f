"""Latents that an encoder infers: where it puts the data, which dimensions it uses, what it reconstructs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ppl_em.errors import PplEmError, message
from ppl_em.plotting.style import COLOURS, DENSE

if TYPE_CHECKING:
    from ppl_em.result import FitResult

#: Images side by side, and draws whose mean is a reconstruction.
NUM_IMAGES, NUM_DRAWS = 10, 20
#: Sides of the smallest image.
SMALLEST = 4


def codes(result: FitResult, ax: Any, name: str | None = None) -> None:
    """Posterior means of each datum in the two dimensions that carry most information.

    Args:
        result: a fit by SVI.
        ax: the axis.
        name: the latent; the first by default.
    """
    drawn = result.particles
    chosen = next(iter(drawn.means), "") if name is None else name
    if chosen not in drawn.means:
        raise PplEmError(message("no latent of this name is drawn", site=chosen, hint=f"one of {list(drawn.means)}"))
    means, carried = drawn.means[chosen], drawn.divergences[chosen]
    if means.shape[1] == 1:
        ax.hist(means[:, 0].numpy(), bins="fd", color=COLOURS[0])
        ax.set_xlabel(f"posterior mean of {chosen}")
        ax.set_ylabel("number of data")
        ax.set_title(f"{chosen} carries {float(carried.sum()):.2g} nats per datum")
        return
    order = carried.argsort(descending=True)[:2].tolist() if len(carried) == means.shape[1] else [0, 1]
    ax.scatter(
        *means[:, order].numpy().T, s=6, color=COLOURS[0], linewidths=0, alpha=0.6, rasterized=len(means) > DENSE
    )
    ax.set_xlabel(f"posterior mean of {chosen}[{order[0]}]")
    ax.set_ylabel(f"posterior mean of {chosen}[{order[1]}]")
    ax.set_title(f"{chosen} carries {float(carried.sum()):.3g} nats per datum")


def divergence(result: FitResult, ax: Any, name: str | None = None) -> None:
    """Information that each latent dimension carries about a datum."""
    drawn = result.particles
    chosen = next(iter(drawn.divergences), "") if name is None else name
    if chosen not in drawn.divergences:
        raise PplEmError(
            message("no latent of this name is drawn", site=chosen, hint=f"one of {list(drawn.divergences)}")
        )
    carried = drawn.divergences[chosen].sort(descending=True).values.numpy()
    ax.bar(np.arange(1, len(carried) + 1), carried, color=COLOURS[0])
    ax.set_xlabel(f"dimension of {chosen}, most informative first")
    ax.set_ylabel("KL(q ‖ prior), nats per datum")
    unused = [u for u in drawn.unused() if u.split("[")[0] == chosen]
    ax.set_title(f"{len(carried) - len(unused)} of {len(carried)} dimensions are used")


def images(result: FitResult, ax: Any, site: str | None = None) -> None:
    """Square images: observed, reconstructed from their latents, and drawn anew, one row each."""
    program = result._plan_for(()).program
    found = next((s for s in program.sites.values() if s.role == "observed" and site in (None, s.name)), None)
    given = {} if found is None else result.predict(num_samples=NUM_DRAWS, seed=result.seed)
    if found is None or found.name not in given:
        raise PplEmError(message("no observed site of this name", site=str(site)))
    rows = given[found.name].flatten(2).shape[-1] if given[found.name].dim() > 2 else 0
    side = math.isqrt(rows)
    if side < SMALLEST or side**2 != rows:
        raise PplEmError(message("the observations are no square images", site=found.name))
    drawn = result.predict(num_samples=1, latents="prior", seed=result.seed)[found.name][0]
    observed = found.value.tensor.flatten(1)[:NUM_IMAGES]
    bands = [observed, given[found.name].double().mean(0).flatten(1)[:NUM_IMAGES], drawn.flatten(1)[:NUM_IMAGES]]
    strips = [torch.cat([_framed(row, side) for row in band.double()], 1) for band in bands]
    ax.imshow(torch.cat(strips).numpy(), cmap="gray_r", interpolation="nearest")
    ax.set_yticks([(side + 1) * (i + 0.5) for i in range(3)], ["observed", "reconstructed", "drawn anew"])
    ax.set_xticks([])
    ax.spines[:].set_visible(False)
    ax.set_title(f"{found.name}: data, means of {NUM_DRAWS} reconstructions, and new draws")


def _framed(row: torch.Tensor, side: int) -> torch.Tensor:
    """An image with an empty line to its right and below."""
    return torch.nn.functional.pad(row.reshape(side, side), (0, 1, 0, 1), value=float(row.min()))
