"""Whether the last iterates of SVI wander about one place: split R-hat of global variational parameters.

Reference:
    Dhaka, A., Catalina, A., Andersen, M., Magnusson, M., Huggins, J. & Vehtari, A. (2020). Robust, accurate stochastic
    optimization for variational inference. NeurIPS.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_em.methods import SVI

if TYPE_CHECKING:
    from ppl_em.svi.result import ApproximateResult

#: Further steps that are taken.
STEPS = 400
#: R-hat above which the iterates have not settled.
LIMIT = 1.1


def split_r_hat(path: Tensor) -> Tensor:
    """Split R-hat (P,) of a path (T, P): the two halves held against each other."""
    half = len(path) // 2
    halves = torch.stack([path[:half], path[half : 2 * half]]).double()
    within = halves.var(1).mean(0)
    between = half * halves.mean(1).var(0)
    safe = torch.where(within > 0, within, torch.ones_like(within))
    ratio = ((half - 1) / half * within + between / half) / safe
    return torch.where(within > 0, ratio, torch.ones_like(ratio)).sqrt()


def iterates_r_hat(result: ApproximateResult, lr: float = 1e-3) -> float | None:
    """Largest split R-hat over further steps at a constant rate; None without global variational parameters.

    Modules are trained in place: they hold the fit's values again afterwards.

    Args:
        result: a fit by SVI with its data.
        lr: rate of the further steps.
    """
    import ppl_em

    plan = result._plan_for(())
    program = plan.program
    latents = [program.latents[n] for n in plan.approximated]
    if not any(program.data_plate not in z.plates for z in latents):
        return None
    names = [n for n, v in result.guide_params.items() if "$$$" not in n and v.numel() <= 10_000]
    source = result._source_for(())
    settings = SVI(max_steps=STEPS, lr=lr, schedule="constant", globals="mean-field")
    path = []
    try:
        for state in ppl_em.iterate(
            result._model, *source.args, model_kwargs=source.kwargs, init=result, method=settings, seed=result.seed
        ):
            found = {**state.params, **getattr(state, "guide_params", {})}
            path.append(torch.cat([found[n].detach().reshape(-1).double() for n in names if n in found]))
    finally:
        program.leaves(result._values)
    return float(split_r_hat(torch.stack(path)).max()) if path and path[0].numel() else None
