"""All data in parts: what EM asks of them, and elements of a plate of a program in memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from ppl_em.em.shards import Shard, inside, obstacle, take
from ppl_em.errors import PlanError, message
from ppl_em.ir import Program
from ppl_em.plan.plan import Plan

#: Data at least on which starts are tried.
START_DATA = 1000


class Parts(Protocol):
    """All data of a fit, in parts.

    Attributes:
        plate: the plate that is divided.
        kept: the same parts, in the same order, at each pass.
    """

    plate: str
    kept: bool

    @property
    def num_data(self) -> float:
        """Number of data in all parts."""
        ...

    def __iter__(self) -> Iterator[Shard]:
        """All parts, each once."""
        ...

    def epoch(self, generator: torch.Generator) -> Iterator[Shard]:
        """All data once, in random parts."""
        ...

    def sample(self, generator: torch.Generator) -> Plan:
        """The plan of some of the data, with what lies outside the plate."""
        ...

    def describe(self) -> str:
        """How the data are gone through, for the plan."""
        ...


class MemoryParts:
    """Elements of the data plate of a program in memory.

    Args:
        plan: of all data.
        size: number of elements in a part; None chooses.
        replan: gives the plan for some of the elements.

    Raises:
        PlanError: the program has no data plate, or a site would need a run of the program.
    """

    kept = True

    def __init__(self, plan: Plan, size: int | None, replan: Callable[[Program], Plan]) -> None:
        plate = plan.program.data_plate
        if plate is None:
            raise PlanError(message("minibatches need a plate around the data", hint='pyro.plate("data", len(x))'))
        inside(plan, plate)
        found = obstacle(plan.program, plate)
        if found is not None:
            why = "its arguments are computed by a run of the program on all data"
            raise PlanError(message("the data cannot be taken in parts", site=found, why=why, hint="a DataLoader"))
        self.plan, self.plate, self._replan = plan, plate, replan
        count = plan.program.plates[plate].size
        self.num_data = float(count)
        self.size = min(count, size or default_size(count))
        self._shards: list[Shard] = []

    def __iter__(self) -> Iterator[Shard]:
        """Consecutive elements."""
        if not self._shards:
            rows = torch.arange(int(self.num_data))
            self._shards = [self.shard(part) for part in rows.split(self.size)]
        yield from self._shards

    def epoch(self, generator: torch.Generator) -> Iterator[Shard]:
        """Elements in a fresh random order."""
        for rows in torch.randperm(int(self.num_data), generator=generator).split(self.size):
            yield self.shard(rows)

    def shard(self, rows: Tensor) -> Shard:
        """The part of given elements."""
        program = take(self.plan.program, self.plate, rows)
        return Shard(inside(self._replan(program), self.plate), len(rows))

    def sample(self, generator: torch.Generator) -> Plan:
        """The plan of some of the data, drawn at random."""
        count = min(int(self.num_data), max(self.size, START_DATA))
        rows = torch.randperm(int(self.num_data), generator=generator)[:count].sort().values
        return self._replan(take(self.plan.program, self.plate, rows))

    def describe(self) -> str:
        """How the data are divided."""
        return f"{self.plate}={int(self.num_data)} in parts of {self.size}; expected statistics add up"


def default_size(count: int) -> int:
    """Data in a part where nothing is said: a hundredth of them, at least 100."""
    return max(min(count, 100), math.ceil(count / 100))


def divided_plate(plan: Plan, size: int | None) -> str:
    """The plate along which batches divide the data: around all observations, of the batch's size.

    Args:
        plan: of a batch.
        size: number of data in the batch, where it is known.

    Raises:
        PlanError: there is none.
    """
    program = plan.program
    observed = [s for s in program.sites.values() if s.role != "latent" and s.point is None]
    plates = [p for p in program.plates if program.plates[p].declared and any(p in s.plates for s in observed)]
    around = [p for p in plates if all(p in s.plates or not s.plates for s in observed)]
    fitting = [p for p in around if size is None or program.plates[p].size == size]
    if program.data_plate in fitting:
        return program.data_plate
    if fitting:
        return fitting[0]
    hint = 'pyro.plate("data", len(batch)) around what the batch holds'
    why = None if size is None else f"no plate around the observations has the batch's {size} elements"
    raise PlanError(message("batches need a plate around the data", why=why, hint=hint))
