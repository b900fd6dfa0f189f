"""Whether and how the data of a fit by EM are taken in parts: a loader's batches, or parts of a plate in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ppl_em.em.partition import MemoryParts, Parts, divided_plate
from ppl_em.em.shards import Shard, inside, unscaled
from ppl_em.errors import DataError, PlanError, message
from ppl_em.ir import Program
from ppl_em.plan.plan import Plan, make_plan
from ppl_em.planner import Planner, rule_lookup
from ppl_em.trace.tracing import Source

#: Bytes of traced program and E-step for each byte of data: traced batches are kept where they fit the budget.
OVERHEAD = 16


def divide(plan: Plan, planner: Planner, source: Source, loader: tuple[int, Any] | None) -> tuple[Plan, Parts | None]:
    """The data of an exact plan in parts, where they come from a loader or a variant of EM asks for it.

    Args:
        plan: of all data, or of a loader's first batch.
        planner: made it.
        source: program and data.
        loader: where a loader stood among the arguments, and the loader.

    Returns:
        The plan, which says how the data are gone through, and the parts; None where all are taken at once.

    Raises:
        PlanError: the data cannot be taken in parts.
    """
    settings = planner.em
    if loader is None and settings.variant == "batch":
        return plan, None
    if settings.globals == "variational":
        what = f'EM(variant="{settings.variant}", globals="variational") cannot be had'
        raise PlanError(message(what, hint='globals="point", or variant="batch"'))
    if loader is None:
        parts: Parts = MemoryParts(plan, settings.batch_size, partial(replanned, plan))
    elif planner.weights is not None:
        raise PlanError(
            message("weights need all data in one call", hint="poutine.scale in the program, fed by the loader")
        )
    else:
        parts = LoaderParts(loader[1], loader[0], source, planner, plan)
    text = parts.describe()
    if settings.variant == "stepwise":
        rate = f"(t + {settings.step_offset:g})^-{settings.step_exponent:g}"
        text = text.removesuffix("; expected statistics add up")
        text += f"; stepwise: statistics averaged over batches with weight {rate}"
    elif settings.variant == "incremental":
        text += "; incremental: those of one part are renewed at each step"
    return replace(plan, parts=text, partial=loader is not None), parts


class LoaderParts:
    """Batches of a loader: each is one call of the program.

    Args:
        loader: yields the model's arguments.
        position: where the loader stood among the positional arguments.
        source: the program; the loader's first batch stands in the loader's place.
        planner: plans a batch as the first one was planned.
        plan: of the first batch.
    """

    def __init__(self, loader: Any, position: int, source: Source, planner: Planner, plan: Plan) -> None:
        self.loader, self.position, self.source, self.first = loader, position, source, plan
        tracing = {**planner.tracing, "witness": False}
        self.planner = replace(planner, values={}, weights=None, tracing=tracing)
        self.plate = divided_plate(plan, _first_size(source, position))
        inside(plan, self.plate)
        count = _count(loader)
        held = sum(t.numel() * t.element_size() for t in _tensors(source.args))
        batch = plan.program.plates[self.plate].size
        full = plan.program.plates[self.plate].full_size
        self._told = full if full != batch else count
        self._seen = 0
        share = math.inf if count is None else count / max(1, batch)
        self.kept = held * share * OVERHEAD <= planner.budget
        self._shards: list[Shard] = []

    @property
    def num_data(self) -> float:
        """Number of data in all batches; a loader that does not tell is gone through once."""
        if self._told is None:
            from ppl_em.svi.batches import batch_size

            self._told = sum(batch_size(item) for item in self.loader)
        return float(self._told)

    def __iter__(self) -> Iterator[Shard]:
        """The loader's batches in its own order (in that of the first pass, where they are kept)."""
        if self.kept and self._shards:
            yield from self._shards
            return
        found: list[Shard] = []
        for shard in self._pass():
            if self.kept:
                found.append(shard)
            yield shard
        self._shards = found

    def epoch(self, generator: torch.Generator) -> Iterator[Shard]:
        """The loader's batches in its own order; kept ones in random order."""
        if self.kept and self._shards:
            for i in torch.randperm(len(self._shards), generator=generator).tolist():
                yield self._shards[i]
            return
        yield from self._pass()

    def _pass(self) -> Iterator[Shard]:
        from ppl_em.svi.batches import empty_loader

        empty = True
        for item in self.loader:
            empty = False
            yield self.shard(item)
        if empty:
            raise empty_loader()

    def shard(self, item: Any) -> Shard:
        """One batch, traced and planned.

        Raises:
            DataError: what lies outside the plate is not the same for all batches.
        """
        from ppl_em.svi.batches import call_arguments

        args, kwargs = call_arguments(item, self.source, self.position)
        _, plan = self.planner.plan(Source(self.source.model, args, kwargs, self.source.seed, batch=True))
        return batch_shard(plan, self.first, self.plate)

    def sample(self, generator: torch.Generator) -> Plan:
        """The plan of the first batch."""
        return self.first

    def describe(self) -> str:
        """How the loader is gone through."""
        size = self.first.program.plates[self.plate].size
        how = "traced once and kept in memory" if self.kept else "streamed: traced anew at every pass"
        return f"batches of a loader ({self.plate}={size} each), {how}; expected statistics add up"


def batch_shard(plan: Plan, first: Plan, plate: str) -> Shard:
    """What one batch adds to the first one's plan.

    Raises:
        DataError: what lies outside the plate is not the same for both.
    """
    if plate not in plan.program.plates:
        raise DataError(message(f"a batch has no plate '{plate}'", hint="batches that the program treats alike"))
    program = unscaled(plan.program, plate)
    if program is not plan.program:
        plan = replanned(plan, program)
    ours = {s.name: s for s in first.program.sites.values() if plate not in s.plates}
    for site in program.sites.values():
        if plate in site.plates or site.role == "latent":
            continue
        known = ours.get(site.name)
        same = known is not None and known.value.tensor.shape == site.value.tensor.shape
        if not same or known is None or not torch.equal(known.value.tensor, site.value.tensor):
            why = f"it lies outside plate '{plate}', where data are counted once"
            hint = f"the site inside plate '{plate}'"
            raise DataError(message("an observation changes from batch to batch", site=site.name, why=why, hint=hint))
    return Shard(inside(plan, plate), program.plates[plate].size)


def replanned(plan: Plan, program: Program) -> Plan:
    """The plan for other data of the same program, by the same engines."""
    engines = tuple({e.engine.name: e.engine for e in plan.blocks}.values())
    return make_plan(program, engines, rule_lookup, max_bytes=math.inf)


def _first_size(source: Source, position: int) -> int | None:
    """Length of the first batch."""
    tensors = list(_tensors(source.args[position:])) or list(_tensors(tuple(source.kwargs.values())))
    return next((len(t) for t in tensors if t.dim()), None)


def _count(loader: Any) -> int | None:
    dataset = getattr(loader, "dataset", None)
    return len(dataset) if dataset is not None and hasattr(dataset, "__len__") else None


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for v in value:
            yield from _tensors(v)
    elif isinstance(value, Mapping):
        for v in value.values():
            yield from _tensors(v)
