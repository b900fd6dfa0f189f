"""What was observed, as an encoder reads it: values and masks by site, taken from the arguments where they stand there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_em.distributions.partly_observed import without_gaps
from ppl_em.ir import Program
from ppl_em.trace.run import Record, run_program
from ppl_em.trace.tracing import Source

#: Categorical observations of at most this many values are given to an encoder as indicators.
MAX_CATEGORIES = 64
#: Where a tensor stands among the arguments: ("args", 0) or ("kwargs", "x"), then positions in containers.
Path = tuple[Any, ...]


@dataclass(frozen=True)
class Column:
    """One observed site, or an argument with one entry per datum (a covariate).

    Args:
        name: site name, or ``"args[1]"`` for a covariate.
        event_dim: number of event dimensions of its values.
        plates: (plate, dimension counted from the right of the batch shape).
        categories: number of categories; 0 where numeric.
        masked: whether some entries may be hidden.
        path: where it stands among the arguments, None where the program computes it.
    """

    name: str
    event_dim: int
    plates: tuple[tuple[str, int], ...]
    categories: int = 0
    masked: bool = False
    path: Path | None = None

    def axis(self, plate: str, value: Tensor) -> int | None:
        """Axis of ``value`` along which a plate runs, None if it does not vary along it."""
        dim = dict(self.plates).get(plate)
        axis = value.dim() - self.event_dim + dim if dim is not None else -1
        return axis if axis >= 0 else None


#: Values with optional masks (True where seen), by column.
Observations = dict[str, tuple[Tensor, Tensor | None]]


def columns_of(program: Program, records: Mapping[str, Record], source: Source) -> tuple[Column, ...]:
    """Observed sites in data plates, and tensors among the arguments that have one entry per datum."""
    found = []
    tensors = list(_tensors(source))
    taken: list[Tensor] = []
    for name, record in records.items():
        if record.role != "observed" or record.peeled is None:
            continue
        plates = tuple((f.name, f.dim) for f in record.frames if f.dim is not None)
        event_dim = len(record.fn.event_shape)
        path = next((p for p, t in tensors if _same_memory(t, record.value)), None)
        taken += [t for p, t in tensors if p == path]
        masked = record.mask is not None and record.mask is not True or record.peeled.mask is not None
        masked = masked or (record.value.is_floating_point() and bool(torch.isnan(record.value).any()))
        if path is None and not masked and [n for n, _ in plates] == [program.data_plate]:
            if any(_part_of(record.value, t) and _per_datum(t, program) for _, t in tensors):
                continue  # a column of an argument: the encoder reads the whole argument
        found.append(Column(name, event_dim, plates, _categories(record), masked, path))
    holes = any(r.hidden is not None for r in records.values())
    for path, tensor in tensors:
        if holes and tensor.is_floating_point() and bool(tensor.isnan().any()):
            continue  # what is observed, with holes: the encoder reads the sites
        if _per_datum(tensor, program) and not any(tensor is t for t in taken):
            assert program.data_plate is not None
            found.append(Column(_spelled(path), tensor.dim() - 1, ((program.data_plate, -1),), 0, False, path))
    return tuple(found)


def _per_datum(tensor: Tensor, program: Program) -> bool:
    plate = program.data_plate
    if plate is None or not program.plates[plate].declared or tensor.is_complex():
        return False
    return 0 < tensor.dim() <= 3 and tensor.shape[0] == program.plates[plate].size


def _part_of(a: Tensor, b: Tensor) -> bool:
    return a.numel() < b.numel() and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def _categories(record: Record) -> int:
    assert record.peeled is not None
    if record.peeled.family.__name__ != "Categorical" or record.value.is_floating_point():
        return 0
    count = int(record.peeled.base.param_shape[-1])
    return count if count <= MAX_CATEGORIES else 0


def _same_memory(a: Tensor, b: Tensor) -> bool:
    same = a.shape == b.shape and a.dtype == b.dtype and a.stride() == b.stride() and a.device == b.device
    return same and a.data_ptr() == b.data_ptr()


def _tensors(source: Source) -> list[tuple[Path, Tensor]]:
    found: list[tuple[Path, Tensor]] = []

    def visit(path: Path, value: Any) -> None:
        if isinstance(value, Tensor):
            found.append((path, value))
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                visit((*path, i), item)
        elif isinstance(value, dict):
            for key, item in value.items():
                visit((*path, key), item)

    visit(("args",), source.args)
    visit(("kwargs",), dict(source.kwargs))
    return found


def _spelled(path: Path) -> str:
    return path[0] + "".join(f"[{key!r}]" for key in path[1:])


def _follow(path: Path, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    value: Any = args if path[0] == "args" else kwargs
    for key in path[1:]:
        value = value[key]
    return value


class Reader:
    """Reads observations off a call's arguments, or off a run of the program where it computes what it observes.

    Args:
        model: the program.
        columns: what to read.
    """

    def __init__(self, model: Any, columns: tuple[Column, ...]) -> None:
        self.model, self.columns = model, columns
        self.direct = all(c.path is not None and not c.masked for c in columns)

    @torch.no_grad()
    def __call__(
        self,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        parameters: Mapping[str, Tensor],
        keep_subsamples: bool = False,
    ) -> Observations:
        """Values and masks by column.

        Args:
            args, kwargs: the call's arguments.
            parameters: constrained values, for programs that have to be run.
            keep_subsamples: see :func:`ppl_em.trace.run.run_program`.
        """
        if self.direct:
            return {c.name: (_follow(c.path, args, kwargs), None) for c in self.columns if c.path is not None}
        run = run_program(self.model, tuple(args), kwargs, parameters=parameters, keep_subsamples=keep_subsamples)
        result: Observations = {}
        for column in self.columns:
            if column.name in run.records:
                result[column.name] = _seen(run.records[column.name], column)
            elif column.path is not None:
                result[column.name] = (_follow(column.path, args, kwargs), None)
        return result


def _seen(record: Record, column: Column) -> tuple[Tensor, Tensor | None]:
    """Value and mask, broadcast to a common batch shape; NaN counts as hidden."""
    value = record.value
    if not column.masked:
        return value, None
    batch = value.dim() - column.event_dim
    seen = torch.ones(value.shape[:batch], dtype=torch.bool, device=value.device)
    if record.mask is not None:
        seen = seen & torch.as_tensor(record.mask, device=value.device)
    assert record.peeled is not None
    if record.peeled.mask is not None:
        own = torch.as_tensor(record.peeled.mask, device=value.device)
        inner = record.peeled.inner
        for _ in range(min(inner, own.dim())):
            # A datum is seen if anything of it is; in place of what is missing stands a typical value.
            own = own.all(-1) if record.hidden is None else own.any(-1)
        seen = seen & own
    if value.is_floating_point():
        hidden = torch.isnan(value)
        for _ in range(column.event_dim):
            hidden = hidden.any(-1) if record.hidden is None else hidden.all(-1)
        seen = seen & ~hidden
        value = torch.nan_to_num(value if record.hidden is None else without_gaps(value))
    value = value.expand((*seen.shape, *value.shape[batch:]))
    return value, seen


def take(observed: Observations, columns: Sequence[Column], plate: str, index: Tensor) -> Observations:
    """The observations of some elements of a plate."""
    result: Observations = {}
    for column in columns:
        value, mask = observed[column.name]
        axis = column.axis(plate, value)
        if axis is None or value.shape[axis] == 1:
            result[column.name] = (value, mask)
            continue
        hidden = None if mask is None else mask.index_select(axis, index)
        result[column.name] = (value.index_select(axis, index), hidden)
    return result
