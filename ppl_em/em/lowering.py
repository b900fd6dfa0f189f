"""Which blocks of a plan run in their fast form, and the proof that its M-step is the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_em.em.e_step import EStep, e_step
from ppl_em.em.lookup import LookupForm
from ppl_em.em.updates import VERIFY_DATA, ClosedForm, Conjugate, LeastSquares, Ridge, Updater
from ppl_em.ir.block import Block
from ppl_em.lower.chain import LoweredChain
from ppl_em.lower.families import LOWERINGS
from ppl_em.lower.lookup import LoweredLookup
from ppl_em.lower.mixture import LoweredMixture
from ppl_em.lower.posterior import DatumLatent
from ppl_em.lower.regression import LoweredRegression
from ppl_em.plan.plan import Plan

#: Data that a rule is verified on at least: scatter matrices need more data than dimensions.
MIN_VERIFY = 1000


def lower_blocks(plan: Plan, updaters: Sequence[Updater]) -> dict[int, Any]:
    """Fast forms of the blocks that admit one, by position in the plan.

    A block's observations are lowered if every parameter that they depend on has a closed form in the expected
    statistics of these sites alone.
    """
    lowered: dict[int, Any] = {}
    lookups = {u.update.sites[0]: u for u in updaters if isinstance(u, LookupForm)}
    for i, entry in enumerate(plan.blocks):
        if entry.engine.name == "mixture" and _looked_up(entry.block, lookups, updaters):
            seen = [s.name for s in entry.block.sites if s.role == "observed"]
            lowered[i] = LoweredLookup(entry.block, {n: lookups[n].lookup for n in seen})
            continue
        kind = next((k for k in (LoweredMixture, LoweredChain, LoweredRegression) if k.accepts(entry.block)), None)
        if kind is None or entry.engine.name not in ("mixture", "chain"):
            continue
        names = {s.name for s in entry.block.sites if s.role == "observed"}
        everything = {s.name for s in entry.block.sites}
        fits = True
        regression = kind is LoweredRegression
        for updater in _readers(updaters):
            if regression and isinstance(updater, LeastSquares):
                fits &= set(updater.update.sites) <= names or not set(updater.update.sites) & names
                continue
            if not isinstance(updater, ClosedForm):
                fits &= not {s.name for s in updater.sites} & everything
                continue
            touched = set(updater.update.sites) & names
            if touched:
                fits &= touched == set(updater.update.sites)
                fits &= (regression and bool(updater.residual)) or _matches(updater, entry.block)
        if fits:
            lowered[i] = kind(entry.block)
    return lowered


def _readers(updaters: Sequence[Updater]) -> list[Updater]:
    """The updaters, one for each likelihood in the place of those that combine several with a prior."""
    found: list[Updater] = []
    for updater in updaters:
        if isinstance(updater, Conjugate):
            found += updater.children
        else:
            found.append(updater.likelihood if isinstance(updater, Ridge) else updater)
    return found


def _looked_up(block: Block, lookups: Mapping[str, LookupForm], updaters: Sequence[Updater]) -> bool:
    """All observations of a block are looked up in tables, and the prior has a closed form."""
    observed = {s.name for s in block.sites if s.role == "observed"}
    everything = {s.name for s in block.sites}
    closed = all(isinstance(u, ClosedForm) for u in updaters if set(u.update.sites) & everything)
    return closed and bool(observed) and observed <= set(lookups) and DatumLatent.of(block)


def _matches(updater: ClosedForm, block: Any) -> bool:
    """The rule's rows are the states of the block, its data those of the block."""
    state = block.names[0] if block.axis is None else block.axis.now
    data = block.latents[0].plates if block.axis is None else (*block.plates, block.axis.time)
    if updater.family.__name__ not in LOWERINGS:
        return False
    return all(k.rows == (state,) and set(k.data) == set(data) and not k.own for k in updater.assembly.layouts)


def prove(
    plan: Plan, lowered: Mapping[int, Any], updater: ClosedForm, parameters: Mapping[str, Tensor], e: EStep
) -> None:
    """Verify a rule's stationarity on a thinned sample, where its weights are not at hand.

    Raises:
        Refused: the proposal is not stationary.
    """
    if isinstance(updater, LookupForm) or not all(n in e.moments for n in updater.update.sites):
        return
    for i, entry in enumerate(plan.blocks):
        if i not in lowered or not {s.name for s in entry.block.sites} >= set(updater.update.sites):
            continue
        if isinstance(lowered[i], LoweredRegression):
            updater.step(dict(parameters), e_step(plan, parameters))
            return
        emission = lowered[i].emission
        states = emission.num_states
        keep = min(emission.num_data, max(MIN_VERIFY, VERIFY_DATA // (states * emission.width)))
        rows = torch.linspace(0, emission.num_data - 1, keep).long()
        generator = torch.Generator().manual_seed(1)
        # The conditions hold for any weights: random ones prove the rule as well as the posterior's.
        weights = torch.rand(states, keep, generator=generator, dtype=torch.float64)
        updater.verify(updater.assembly.chosen([weights] * len(updater.update.sites), rows, parameters))
        return
