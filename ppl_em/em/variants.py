"""Variants of the E-step that replace the posterior by one assignment: classification EM and stochastic EM.

Reference:
    Celeux, G. & Govaert, G. (1992). A classification EM algorithm for clustering and two stochastic versions.
    Computational Statistics & Data Analysis 14(3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ppl_em.em.e_step import EStep, site_factors
from ppl_em.exact.chain_slices import positions, slices_of
from ppl_em.exact.engine import Weights, count_weights
from ppl_em.ir import Factor
from ppl_em.ir.block import Block
from ppl_em.plan.plan import Plan


def harden(plan: Plan, parameters: Mapping[str, Tensor], e: EStep, kind: str, generator: torch.Generator) -> EStep:
    """Expected weights replaced by those of the joint mode (``"hard"``, ``"map"``) or of one joint draw (``"sample"``)."""
    factors = site_factors(plan, parameters)
    weights = dict(e.weights)
    for entry in plan.blocks:
        posterior = entry.engine.posterior(entry.block, factors)
        if kind != "sample":
            chosen = posterior.mode()
        else:
            drawn = posterior.sample(1, generator)
            chosen = {z: f.reduce(["@draw"], lambda t, dims: t.squeeze(dims)) for z, f in drawn.items()}
        weights.update(assignment_weights(entry.block, chosen))
    return replace(e, weights=weights)


def assignment_weights(block: Block, chosen: Mapping[str, Factor]) -> dict[str, Weights]:
    """One-hot expected weights of every site of a block, given a position of each latent.

    Args:
        block: the block (stacked if a chain).
        chosen: position in the support, by latent and plates.
    """
    result = {}
    for site in block.sites:
        hot = Factor(torch.ones(()), ())
        for dim, position in positions(block, site, chosen).items():
            hot = hot * _one_hot(position, dim, block.sizes[dim])
        weights = count_weights(block, site, hot)
        time = slices_of(block).time if site.name in block.times else None
        if time is not None and time in weights.dims and time not in site.dims:
            result[site.name] = Weights(weights.sum([time]), frozenset([time]))
        else:
            result[site.name] = Weights(weights)
    return result


def _one_hot(position: Factor, name: str, size: int) -> Factor:
    hot = torch.nn.functional.one_hot(position.tensor, size).to(torch.get_default_dtype())
    return Factor(hot, (*position.dims, name))
