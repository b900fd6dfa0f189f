"""Latents without observed descendants: summed before the bound is taken, so that they add nothing to it.

An expected log-probability E_q[log π_z] is not normalised: Σ_z exp E_q[log π_z] < 1. A latent of which nothing is
observed would lower the bound by that much, for want of data. Its true sum is one, whatever the parameters are.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from ppl_em.ir import Factor
from ppl_em.plan.plan import Plan


def unobserved_normalised(plan: Plan, logs: Mapping[str, Factor]) -> dict[str, Factor]:
    """Log-factors of sites, those of latents without observed descendants normalised over the latent.

    Args:
        plan: the plan; its blocks know these elements.
        logs: E_q[log p] by site.
    """
    found = dict(logs)
    for entry in plan.blocks:
        latents = {z.name for z in entry.block.latents}
        for site in entry.block.sites:
            alive = entry.block.count_weights(site)
            own = entry.block.axis is None and entry.block.slices is None and site.name in latents
            if alive is None or not own or site.name not in logs or site.name not in logs[site.name].dims:
                continue
            factor = logs[site.name]
            total = torch.logsumexp(factor.align((*(d for d in factor.dims if d != site.name), site.name)), -1)
            total = Factor(total, tuple(d for d in factor.dims if d != site.name))
            shift = total * alive.map(lambda t, like=total: (t == 0).to(like.tensor.dtype))
            found[site.name] = factor + shift.map(torch.neg)
    return found
