"""The oracle: sums over every joint assignment of a block's latents, one by one. Slow and plain on purpose."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import product

import torch
from torch import Tensor

from ppl_em.ir import Factor
from ppl_em.ir.block import Block

#: Joint assignments at most.
MAX_ASSIGNMENTS = 2_000_000


def assignments(block: Block) -> Iterator[dict[str, dict[tuple[int, ...], int]]]:
    """Every joint assignment: latent → plate element → position in its support."""
    cells = []
    for latent in block.latents:
        for element in product(*(range(block.sizes[p]) for p in latent.plates)):
            cells.append((latent.name, element, latent.cardinality))
    total = 1
    for _, _, k in cells:
        total *= k
    if total > MAX_ASSIGNMENTS:
        raise ValueError(f"{total} joint assignments are too many to list (at most {MAX_ASSIGNMENTS})")
    for values in product(*(range(k) for _, _, k in cells)):
        chosen: dict[str, dict[tuple[int, ...], int]] = {z.name: {} for z in block.latents}
        for (name, element, _), value in zip(cells, values, strict=True):
            chosen[name][element] = value
        yield chosen


def log_joint(
    block: Block, factors: Mapping[str, Factor], chosen: Mapping[str, Mapping[tuple[int, ...], int]]
) -> Tensor:
    """Sum of all log-factors at one joint assignment."""
    total = torch.zeros((), dtype=torch.float64)
    homes = {z.name: z.plates for z in block.latents}
    for site in block.sites:
        factor = factors[site.name]
        for element in product(*(range(block.sizes[p]) for p in site.plates)):
            at = dict(zip(site.plates, element, strict=True))
            index = []
            for dim, size in factor.sizes.items():
                if dim in homes:
                    position = chosen[dim][tuple(at[p] for p in homes[dim])]
                else:
                    position = at[dim]
                index.append(0 if size == 1 else position)
            total = total + factor.tensor[tuple(index)].double()
    return total


def brute_force(block: Block, factors: Mapping[str, Factor]) -> tuple[Tensor, dict[str, Factor]]:
    """Log Z summed over the block's plates (a scalar), and the marginal of every latent.

    Args:
        block: a small block.
        factors: log-factors by site.
    """
    scores, choices = [], []
    for chosen in assignments(block):
        scores.append(log_joint(block, factors, chosen))
        choices.append(chosen)
    joint = torch.stack(scores)
    log_z = torch.logsumexp(joint, 0)
    weights = (joint - log_z).exp()
    marginals = {}
    for latent in block.latents:
        table = torch.zeros([*(block.sizes[p] for p in latent.plates), latent.cardinality], dtype=torch.float64)
        for chosen, weight in zip(choices, weights, strict=True):
            for element, value in chosen[latent.name].items():
                table[(*element, value)] += weight
        marginals[latent.name] = Factor(table, (*latent.plates, latent.name))
    return log_z, marginals
