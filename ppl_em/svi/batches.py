"""Where batches come from: tensors in memory, whole or in random parts, and loaders."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ppl_em.errors import DataError, PlanError, message
from ppl_em.ir import Program
from ppl_em.svi.batch import Batch
from ppl_em.svi.observations import Observations, take
from ppl_em.svi.score import Scored, run_scored
from ppl_em.trace.tracing import Source

#: Elements of a plate that the test of a way to make minibatches looks at.
PROBE = 3


class Batches(Protocol):
    """All data of a fit, in batches.

    Attributes:
        num_data: number of data that all batches together stand for.
    """

    num_data: float

    def epoch(self) -> Iterator[Batch]:
        """Random batches that go through the data once."""
        ...

    def all(self) -> Iterator[tuple[float, Batch]]:
        """Batches that cover all data once, each with its share of them (up to a common factor)."""
        ...


class Whole:
    """All data at every step.

    Args:
        batch: the one batch.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch, self.num_data = batch, float(batch.size)

    def epoch(self) -> Iterator[Batch]:
        """The batch."""
        yield self.batch

    def all(self) -> Iterator[tuple[float, Batch]]:
        """The batch."""
        yield 1.0, self.batch


class Rows:
    """Some of the data in memory, in random minibatches.

    Args:
        cut: makes a batch of given rows.
        rows: the data's positions.
        batch_size: data in a batch.
    """

    def __init__(self, cut: Cut, rows: Tensor, batch_size: int) -> None:
        self.cut, self.rows, self.batch_size = cut, rows, min(batch_size, len(rows))
        self.num_data = float(len(rows))

    def epoch(self) -> Iterator[Batch]:
        """Batches of equal size in a fresh order; a rest that does not fill one is left to other epochs."""
        order = self.rows[torch.randperm(len(self.rows))]
        for start in range(0, len(order) - self.batch_size + 1, self.batch_size):
            yield self.cut(order[start : start + self.batch_size], self.num_data)

    def all(self) -> Iterator[tuple[float, Batch]]:
        """Batches in order, the last one smaller where the size does not divide the data."""
        for part in self.rows.split(self.batch_size):
            yield len(part) / self.num_data, self.cut(part, self.num_data)


class Loader:
    """A DataLoader, or any iterable of batches that can be gone through again.

    Args:
        loader: yields the model's arguments: a tensor, a tuple or list of arguments, or a dict of keyword arguments.
        source: the program with the other arguments; ``position`` is where the loader stood among them.
        position: index among the positional arguments.
        program: traced on the first batch.
        num_data: number of data in all batches.
    """

    def __init__(self, loader: Any, source: Source, position: int, program: Program, num_data: float | None) -> None:
        self.loader, self.source, self.position = loader, source, position
        self.plate = program.data_plate
        self.tells = self.plate is not None and program.plates[self.plate].full_size != program.plates[self.plate].size
        dataset = getattr(loader, "dataset", None)
        known = len(dataset) if dataset is not None and hasattr(dataset, "__len__") else None
        if self.tells:
            assert self.plate is not None
            known = program.plates[self.plate].full_size
        count = known if known is not None and (num_data is None or self.tells) else num_data
        if count is None or self.plate is None:
            raise PlanError(
                message(
                    "how many data the loader stands for is not known"
                    if self.plate
                    else "batches need a plate around the data",
                    hint="SVI(num_data=...), or pyro.plate(name, size, subsample_size=len(batch))",
                )
            )
        self.num_data = float(count)

    def epoch(self) -> Iterator[Batch]:
        """The loader's batches in its own order."""
        for item in self.loader:
            yield self._batch(item)

    def all(self) -> Iterator[tuple[float, Batch]]:
        """The loader's batches, one at a time; their shares are their sizes relative to all data."""
        for item in self.loader:
            batch = self._batch(item)
            yield batch.size / self.num_data, batch

    def _batch(self, item: Any) -> Batch:
        args, kwargs = call_arguments(item, self.source, self.position)
        size = batch_size(item)
        scale = 1.0 if self.tells else self.num_data / size
        return Batch(args, kwargs, size, scale, plate=self.plate, keep_subsamples=True)


def empty_loader() -> DataError:
    """The error of a loader that gives nothing, at first or when it is gone through again."""
    return DataError(
        message("the loader yields no batches", hint="an iterable that can be gone through again, such as a DataLoader")
    )


def call_arguments(item: Any, source: Source, position: int) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """The arguments of one call, with a loader's item in the place of the loader, or of its first item."""
    from ppl_em.arguments import as_tensors

    item = as_tensors(item)
    given = tuple(item) if isinstance(item, (tuple, list)) else () if isinstance(item, Mapping) else (item,)
    replaced = len(given)
    if any(isinstance(a, DataLoader) for a in source.args[position : position + 1]):
        replaced = 1
    before, after = source.args[:position], source.args[position + replaced :]
    if isinstance(item, Mapping):
        return (*before, *after), {**source.kwargs, **item}
    return (*before, *given, *after), source.kwargs


def batch_size(item: Any) -> int:
    """Number of data in a loader's item: the length of its first tensor.

    Raises:
        DataError: there is no tensor in it.
    """
    if isinstance(item, Mapping):
        item = list(item.values())
    if isinstance(item, (tuple, list)):
        item = next((v for v in item if hasattr(v, "shape") and len(v.shape) > 0), None)
    if item is None or not hasattr(item, "shape") or len(item.shape) == 0:
        raise DataError(message("a batch of the loader holds no tensor", value=type(item).__name__))
    return int(item.shape[0])


class Cut:
    """Makes minibatches of data in memory: slices of the arguments, or a subsample of the program's data plate.

    Args:
        source: program and all data.
        program: its trace.
        observed: observations of all data, for the encoder.
        columns: what they are.
        weights: one per datum, or None.

    Raises:
        PlanError: the program can be run on a part of its data in neither way.
    """

    def __init__(
        self,
        source: Source,
        program: Program,
        observed: Observations | None,
        columns: Sequence[Any],
        weights: Tensor | None,
    ) -> None:
        self.source, self.program, self.observed, self.columns, self.weights = (
            source,
            program,
            observed,
            columns,
            weights,
        )
        plate = program.data_plate
        if plate is None or not program.plates[plate].declared:
            raise PlanError(message("minibatches need a plate around the data", hint='pyro.plate("data", len(x))'))
        self.plate, self.size = plate, program.plates[plate].size
        self.sliced = self._test()

    def __call__(self, rows: Tensor, num_data: float) -> Batch:
        """The batch of given rows.

        Args:
            rows: positions among all data.
            num_data: number of data that the batch stands for.
        """
        observed = None if self.observed is None else take(self.observed, self.columns, self.plate, rows)
        weights = None if self.weights is None else self.weights[rows]
        if self.sliced:
            args, kwargs = self._slice(rows)
            return Batch(args, kwargs, len(rows), num_data / len(rows), {}, self.plate, rows, weights, observed)
        # The program's plate scales by its own size; what is left is to count only the rows in use.
        scale = num_data / self.size
        return Batch(
            self.source.args,
            self.source.kwargs,
            len(rows),
            scale,
            {self.plate: rows},
            self.plate,
            rows,
            weights,
            observed,
        )

    def _slice(self, rows: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        def cut(value: Any) -> Any:
            if isinstance(value, Tensor):
                return (
                    value.index_select(0, rows.to(value.device)) if value.dim() and len(value) == self.size else value
                )
            if isinstance(value, tuple) and not hasattr(value, "_fields"):
                return tuple(cut(v) for v in value)
            if isinstance(value, list):
                return [cut(v) for v in value]
            if isinstance(value, dict):
                return {k: cut(v) for k, v in value.items()}
            return value

        return tuple(cut(a) for a in self.source.args), {k: cut(v) for k, v in self.source.kwargs.items()}

    @torch.no_grad()
    def _test(self) -> bool:
        """Whether to slice; each way must give every datum the density that it has in the whole."""
        start = {n: p.init for n, p in self.program.parameters.items()}
        drawn: dict[str, Tensor] = {}

        def draw(name: str, fn: Any) -> Tensor:
            value = start[name] if name in start else fn.sample()
            drawn[name] = value
            return value

        whole = run_scored(self.source.model, self.source.args, self.source.kwargs, draw, start)
        rows = torch.arange(self.size - 1, -1, -max(1, self.size // PROBE))[:PROBE]
        values = {s.name: self._rows(s, s.value, rows, s.fn.event_dim) for s in whole if s.name in drawn}
        expected = {s.name: self._rows(s, s.log_prob(), rows, 0) for s in whole}
        args, kwargs = self._slice(rows)
        tries: list[tuple[bool, Callable[[], list[Scored]]]] = [
            (True, lambda: run_scored(self.source.model, args, kwargs, lambda n, fn: values[n], start)),
            (
                False,
                lambda: run_scored(
                    self.source.model,
                    self.source.args,
                    self.source.kwargs,
                    lambda n, fn: values[n],
                    start,
                    {self.plate: rows},
                ),
            ),
        ]
        for sliced, attempt in tries:
            try:
                found = {s.name: s for s in attempt()}
                if all(self._agrees(found.get(n), e, len(rows)) for n, e in expected.items()):
                    return sliced
            except (RuntimeError, ValueError, IndexError, KeyError, TypeError, AssertionError):
                continue
        raise PlanError(
            message(
                f"the program cannot be run on a part of plate '{self.plate}'",
                value=f"{self.size} elements",
                why="neither slices of its arguments nor a subsample of the plate give each datum the same density",
                hint='pyro.plate(name, len(x)), or "with pyro.plate(name, N) as i" and x[i], or a DataLoader',
            )
        )

    def _rows(self, site: Scored, tensor: Tensor, rows: Tensor, event_dim: int) -> Tensor:
        dim = next((f.dim for f in site.frames if f.name == self.plate), None)
        axis = -1 if dim is None else tensor.dim() - event_dim + dim
        return tensor.index_select(axis, rows) if axis >= 0 and tensor.shape[axis] == self.size else tensor

    def _agrees(self, site: Scored | None, expected: Tensor, count: int) -> bool:
        if site is None or any(f.name == self.plate and f.size != count for f in site.frames):
            return False
        found = site.log_prob()
        tolerance = 1e-6 if found.dtype == torch.float64 else 1e-2
        return found.shape == expected.shape and bool(
            torch.allclose(found, expected, tolerance, tolerance, equal_nan=True)
        )


def split_rows(size: int, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random positions of the data to train on and of those held out (both sorted).

    Raises:
        PlanError: the fraction leaves nothing for one of them.
    """
    held = round(size * fraction)
    if not 0 < held < size:
        raise PlanError(
            message("the validation fraction leaves no data on one side", value=fraction, why=f"of {size} data")
        )
    order = torch.randperm(size, generator=generator)
    return order[held:].sort().values, order[:held].sort().values


def default_batch_size(size: int, declared: int | None, asked: int | None) -> int | None:
    """Data per step: what was asked for, else what the plate declares; None for all."""
    chosen = asked if asked is not None else declared
    return None if chosen is None or chosen >= size else max(1, math.floor(chosen))
