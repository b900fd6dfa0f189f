"""The exact log-likelihood at many parameter values at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ppl_em.diagnostics.coordinates import Coordinates
from ppl_em.em.e_step import objective
from ppl_em.exact.chain import Chain, chain_tensors
from ppl_em.exact.forward_backward import chain_log_z
from ppl_em.ir import Factor
from ppl_em.ir.block import Block
from ppl_em.per_datum import contributions
from ppl_em.plan.plan import Plan

#: Elements of the largest log-factor times parameter values worked on at once.
CHUNK_ELEMENTS = 4e6


def objectives(plan: Plan, coordinates: Coordinates, points: Tensor) -> Tensor:
    """Objective (S,) at each of the coordinates points (S, P)."""
    return _map(plan, coordinates, points, objective)


def log_likelihoods(plan: Plan, coordinates: Coordinates, points: Tensor) -> Tensor:
    """Log-likelihood of each datum (S, n) at each of the coordinates points (S, P)."""
    return _map(plan, coordinates, points, _by_datum)


def _by_datum(plan: Plan, values: Mapping[str, Tensor]) -> Tensor:
    return contributions(plan, values).reshape(-1)


class _PlainChain(Chain):
    """Forward recursion in ordinary operations, which ``torch.func`` can vectorise."""

    def log_z(self, block: Block, factors: Mapping[str, Factor]) -> Factor:
        chain = chain_tensors(block, factors)
        total = chain_log_z(chain.init, chain.trans, chain.obs, differentiable=True)
        return Factor(total.expand([block.sizes[p] for p in block.plates]), block.plates)


def _transformable(plan: Plan) -> Plan:
    blocks = tuple(replace(b, engine=_PlainChain()) if type(b.engine) is Chain else b for b in plan.blocks)
    return replace(plan, blocks=blocks)


@torch.no_grad()
def _map(plan: Plan, coordinates: Coordinates, points: Tensor, function: Callable[[Plan, Mapping[str, Tensor]], Tensor]) -> Tensor:
    """A function of constrained values over rows of coordinates: vectorised where the program admits it."""
    if not coordinates.modules and all(s.lowered for s in plan.sites()):
        largest = max((b.bytes / 8 for b in plan.blocks), default=1e5)
        chunk = max(1, min(len(points), int(CHUNK_ELEMENTS / max(largest, 1.0))))
        plan = _transformable(plan)
        try:
            return torch.func.vmap(lambda u: function(plan, coordinates.values(u)), chunk_size=chunk)(points)
        except (RuntimeError, NotImplementedError):
            pass  # an operation that cannot be vectorised: one point after the other
    rows = []
    for point in points:
        with coordinates.leaves(point) as (values, _):
            rows.append(function(plan, {n: v.detach() for n, v in values.items()}).detach())
    return torch.stack(rows)
