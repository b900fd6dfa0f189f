"""Execution paths: runs of a program with some latents at one value each, put together as if enumerated at once.

A latent whose value steers Python (``if z > 0``, ``list[int(z)]``), or on whose values the program cannot be run all at
once, is given one value per run. All elements of its plates take the same value in a run: a plate's elements are
independent, so that element n of a density at value k is found in the run in which every element has the value k
(replays with random values of each element check that). Latents that share a register vary together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from ppl_em.errors import PlanError, message
from ppl_em.ir import Latent
from ppl_em.ir.shapes import broadcast_shapes
from ppl_em.trace.layout import Layout
from ppl_em.trace.peel import Peeled
from ppl_em.trace.record import Record, version_of

#: Execution paths at most.
MAX_PATHS = 512

#: A path: the position in its support of every latent that steers it.
Path = dict[str, int]


class Paths:
    """The execution paths of a program.

    Args:
        layout: registers of all summed latents.
        latents: those whose values are given one by one.
        scopes: latents on which each site depends.
        summed: all latents that are summed.
        seen: the sites of runs in which provenance was followed.
    """

    def __init__(
        self,
        layout: Layout,
        latents: Mapping[str, Latent],
        scopes: Mapping[str, tuple[str, ...]],
        summed: Mapping[str, Latent],
        seen: Mapping[str, Record],
    ) -> None:
        self.layout, self.latents, self.scopes, self.summed, self.seen = layout, latents, scopes, summed, seen
        self.registers = sorted({layout.register[z] for z in latents})
        largest = {r: 1 for r in self.registers}
        for z, latent in latents.items():
            register = layout.register[z]
            largest[register] = max(largest[register], latent.cardinality)
        self.sizes = [largest[r] for r in self.registers]

    @property
    def count(self) -> int:
        """Number of paths."""
        return math.prod(self.sizes)

    def __iter__(self) -> Iterator[tuple[tuple[int, ...], Path]]:
        for cell in product(*(range(n) for n in self.sizes)):
            at = dict(zip(self.registers, cell, strict=True))
            yield cell, {z: at[self.layout.register[z]] for z in self.latents}

    def merge(self, run: Callable[[Path], dict[str, Record]]) -> dict[str, Record]:
        """Run every path; the records of each site side by side along the registers of its scope.

        Args:
            run: one run with the latents at given positions.
        """
        done: dict[tuple[int, ...], dict[str, Record]] = {}
        runs = {}
        for cell, path in self:
            # "Not reached" is seen in the run of the first value, wherever the site is not reached there.
            effective = {z: k if k < len(self.latents[z].values) else 0 for z, k in path.items()}
            key = tuple(effective.values())
            if key not in done:
                done[key] = run(effective)
            runs[cell] = done[key]
        names = dict.fromkeys(name for records in runs.values() for name in records)
        names = [n for n in self.seen if n in names] + [n for n in names if n not in self.seen]
        return {name: self._site(name, runs) for name in names}

    def _site(self, name: str, runs: Mapping[tuple[int, ...], dict[str, Record]]) -> Record:
        mine = {self.layout.register[z] for z in self.scopes.get(name, ()) if z in self.latents}
        axes = [i for i, r in enumerate(self.registers) if r in mine]
        ranges = [range(n) if i in axes else range(1) for i, n in enumerate(self.sizes)]
        places = list(product(*ranges))
        cells = [runs[cell].get(name) for cell in places]
        if not axes and cells[0] is not None:
            return cells[0]
        if not any(cells):
            raise PlanError(message("a site appears on some execution paths only, for no visible reason", site=name))
        shape = [self.sizes[i] for i in axes]
        positions = [-1 - self.layout.static - self.registers[i] for i in axes]
        grid = Grid(self.layout, shape, positions)
        own = None
        if name in self.summed:
            axis = self.registers.index(self.layout.register[name]) if name in self.latents else None
            own = Own(
                self.summed[name], self.layout.position(name), None if axis is None else [c[axis] for c in places]
            )
        widths = {
            self.layout.position(z): self.summed[z].cardinality
            for z in self.scopes.get(name, ())
            if self.summed[z].optional and z not in self.latents and z != name
        }
        return _merge(cells, grid, self.seen.get(name), own, widths)


@dataclass(frozen=True)
class Own:
    """A latent's own site.

    Args:
        latent: the latent.
        position: dimension (negative) along which its values lie.
        values: its position in the support by cell, where it is one of those that steer.
    """

    latent: Latent
    position: int
    values: list[int] | None

    def score(self, record: Record | None, cell: int, event_dim: int, inner: int, like: Tensor) -> Tensor:
        """Log-density over its values and "not reached", (K, ...) at its position (K = 1 if it steers)."""
        nowhere = self.latent.optional and self.values is not None and self.values[cell] == self.latent.cardinality - 1
        if self.values is not None:
            if record is None or nowhere:
                return like.new_full((), 0.0 if record is None and nowhere else -torch.inf)
            return _full_rank(record, event_dim)
        if record is None:
            column = like.new_full((self.latent.cardinality,), -torch.inf)
            column[-1] = 0.0
            return column.reshape((-1,) + (1,) * (-self.position - 1 + inner))
        score = _full_rank(record, event_dim)
        score = score.reshape((1,) * (-self.position + inner - score.dim()) + tuple(score.shape))
        return _pad(score, score.dim() + self.position - inner, self.latent.cardinality, -torch.inf)


class Grid:
    """Tensors of several paths joined along the registers of the latents that steer them.

    Args:
        layout: gives the rank.
        shape: number of values by register.
        positions: dimension (negative) of each register.
    """

    def __init__(self, layout: Layout, shape: Sequence[int], positions: Sequence[int]) -> None:
        self.rank, self.shape, self.positions = layout.static + layout.width, shape, positions

    def join(self, tensors: Sequence[Tensor], event_dim: int, *, constant: bool = False, pad: bool = False) -> Tensor:
        """One tensor in place of one per path; unchanged where all are one tensor.

        Args:
            tensors: in row-major order of the grid, (*batch, *event).
            event_dim: number of event dimensions, those of ``.to_event`` among them.
            constant: no parameter feeds them: what is equal now always is.
            pad: fill smaller dimensions up with zeros (what a path does not have adds nothing).
        """
        first = tensors[0]
        if all(t is first or _one(t, first) or (constant and _equal(t, first)) for t in tensors[1:]):
            return first
        dtype = first.dtype
        for t in tensors[1:]:
            dtype = torch.promote_types(dtype, t.dtype)
        wide = []
        for t in tensors:
            wide.append(t.to(dtype).reshape((1,) * (self.rank + event_dim - t.dim()) + tuple(t.shape)))
        if pad:
            largest = [max(sizes) for sizes in zip(*(t.shape for t in wide), strict=True)]
            for axis, size in enumerate(largest):  # one element of an event is one, elsewhere it stands for all
                wide = [_pad(t, axis, size, 0.0) if t.shape[axis] > 1 or axis >= self.rank else t for t in wide]
        return self._concatenate(list(torch.broadcast_tensors(*wide)), 0, event_dim)

    def _concatenate(self, tensors: list[Tensor], axis: int, event_dim: int) -> Tensor:
        if axis == len(self.shape):
            return tensors[0]
        step = len(tensors) // self.shape[axis]
        parts = [
            self._concatenate(tensors[k * step : (k + 1) * step], axis + 1, event_dim) for k in range(self.shape[axis])
        ]
        return torch.cat(parts, self.positions[axis] - event_dim)


def _merge(
    cells: Sequence[Record | None], grid: Grid, seen: Record | None, own: Own | None, widths: Mapping[int, int]
) -> Record:
    """One record of the cells' records.

    Args:
        cells: by path, in row-major order of the grid; None where a path does not reach the site.
        grid: the paths.
        seen: the site with its provenance.
        own: for a latent's own site.
        widths: number of values, "not reached" among them, of other latents at their dimensions.
    """
    present = [r for r in cells if r is not None]
    head = present[0]
    for record in present[1:]:
        if (record.role, record.frames, record.inner) != (head.role, head.frames, head.inner):
            hint = "a name of its own for each"
            what = "a site has different plates or roles on different execution paths"
            raise PlanError(message(what, site=head.name, hint=hint))
        if not _same_scale(record.scale, head.scale):
            raise PlanError(message("the scale of a site depends on a latent", site=head.name, hint="a constant scale"))
    event_dim = getattr(head.fn, "event_dim", 0)
    some = head.log_prob()
    if own is not None:
        scores = [own.score(r, i, event_dim, head.inner, some) for i, r in enumerate(cells)]
    else:
        scores = [some.new_zeros(()) if r is None else r.log_prob() for r in cells]
    elementwise = grid.join(scores, head.inner, pad=True)
    for position, size in widths.items():
        axis = position - head.inner
        if -axis <= elementwise.dim() and elementwise.shape[axis] > 1:
            elementwise = _pad(elementwise, elementwise.dim() + axis, size, 0.0)
    everywhere = len(present) == len(cells) and not widths and not (own is not None and own.latent.optional)
    if everywhere and len({r.value.shape for r in present}) == 1:
        constant = seen is not None and not _fed(seen.value_marks)
        value = grid.join([r.value for r in present], event_dim, constant=constant)
        peeled = _merge_peeled([r.peeled for r in present], grid, seen)
    else:
        value, peeled = max((r.value for r in present), key=Tensor.numel), None
    masks = [True if r is None or r.mask is None else r.mask for r in cells]
    mask = None if all(m is True for m in masks) else grid.join([torch.as_tensor(m) for m in masks], 0, constant=True)
    version = version_of(value, peeled)
    return replace(
        head,
        peeled=peeled,
        value=value,
        mask=mask,
        elementwise=elementwise,
        version=version,
        reinterpreted=head.inner,
    )


def _full_rank(record: Record, event_dim: int) -> Tensor:
    """A latent's log-density over its own values also where these are equally probable."""
    log_prob = record.log_prob()
    batch = record.value.shape[: record.value.dim() - event_dim + record.inner]
    return log_prob.expand(broadcast_shapes(log_prob.shape, batch))


def _merge_peeled(peeled: Sequence[Peeled | None], grid: Grid, seen: Record | None) -> Peeled | None:
    first = peeled[0]
    kinds = [(p.family, p.event_dims, p.options, p.inner) for p in peeled if p is not None]
    if first is None or len(kinds) < len(peeled) or any(kind != kinds[0] for kind in kinds[1:]):
        return None
    arguments = {}
    try:
        for n, event_dim in first.event_dims.items():
            constant = seen is not None and not _fed(seen.argument_marks.get(n, frozenset({"param:"})))
            tensors = [p.arguments[n] for p in peeled if p is not None]
            arguments[n] = grid.join(tensors, event_dim + first.inner, constant=constant)
        base = first.family(**arguments, **first.options, validate_args=False)
    except (RuntimeError, TypeError, ValueError):
        return None
    masks = [True if p is None or p.mask is None else p.mask for p in peeled]
    mask = None
    if any(m is not True for m in masks):
        mask = grid.join([torch.as_tensor(m) for m in masks], first.inner, constant=True)
    return replace(first, base=base, mask=mask, arguments=arguments)


def _fed(marks: frozenset[str]) -> bool:
    return any(not m.startswith("random:") for m in marks)


def _pad(tensor: Tensor, axis: int, size: int, fill: float) -> Tensor:
    """A dimension brought to a size."""
    shape = list(tensor.shape)
    missing = size - shape[axis]
    if missing <= 0:
        return tensor
    shape[axis] = missing
    return torch.cat([tensor, tensor.new_full(shape, fill)], axis)


def _one(a: Tensor, b: Tensor) -> bool:
    """Views of the same memory."""
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride() and a.dtype == b.dtype


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


def _same_scale(a: Tensor | float, b: Tensor | float) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        a, b = torch.as_tensor(a), torch.as_tensor(b)
        return a.shape == b.shape and bool((a == b).all())
    return a == b
