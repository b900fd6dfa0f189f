"""What is known about the latents: how sure the assignment of each datum is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ppl_em.errors import PplEmError, message
from ppl_em.plotting.style import colour

if TYPE_CHECKING:
    from ppl_em.result import FitResult


def latents(result: FitResult, ax: Any, name: str | None = None) -> None:
    """Histogram of each element's largest posterior probability, coloured by the value that has it.

    Args:
        result: a fit with summed latents.
        ax: the axis.
        name: the latent, or the family of a chain; the first by default.
    """
    plan = result._plan_for(())
    if result.log_likelihood is None:
        raise PplEmError(message("the posterior is approximate", hint='plot("codes")'))
    posterior = result.posterior()
    for entry in plan.blocks:
        axis = entry.block.axis
        known = (axis.states[0],) if axis is not None else entry.block.names
        chosen = next((z for z in known if name is None or z == name or z.startswith(f"{name}_")), None)
        if chosen is None:
            continue
        probs = posterior.path(chosen).probs if axis is not None else posterior.probabilities(chosen)
        flat = probs.reshape(-1, probs.shape[-1])
        best, which = (t.numpy() for t in flat.max(-1))
        count = flat.shape[1]
        edges = np.linspace(1 / count, 1, 25)
        groups = [best[which == k] for k in range(count)]
        ax.hist(groups, bins=edges, stacked=True, color=[colour(k) for k in range(count)])
        ax.set_xlabel("probability of the most probable value")
        ax.set_ylabel("number of elements")
        label = chosen if axis is None else f"{axis.states[0]} … {axis.states[-1]}"
        ax.set_title(f"{label}: {float((best > 0.9).mean()):.0%} of {len(best)} elements are at least 90 % sure")
        return
    raise PplEmError(message("no summed latent of this name", site=str(name or ""), hint="result.plan names them"))
