"""Looking at some elements of large plates only, where a check does not need them all."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ppl_em.ir import Argument, Factor, Link, Plate, Site
from ppl_em.ir.design import Design
from ppl_em.trace.peel import Peeled
from ppl_em.trace.record import Record, version_of

#: Plates of more elements than this are thinned, to this many.
LARGE, KEPT = 20_000, 2_000
#: Plates inside each other are thinned where they have more elements together, but to no fewer each than these.
MANY, FEWEST = 100_000, 64


class Thinning:
    """Which elements of large plates are looked at: evenly spaced ones, the same at every site.

    Args:
        plates: all plates.
        nested: names of the plates around each site.
    """

    def __init__(self, plates: Mapping[str, Plate], nested: Iterable[tuple[str, ...]] = ()) -> None:
        kept = {n: KEPT if p.size > LARGE and p.declared else p.size for n, p in plates.items()}
        for names in nested:
            while math.prod(kept[n] for n in names) > MANY:
                largest = max((n for n in names if plates[n].declared), key=lambda n: kept[n], default=None)
                if largest is None or kept[largest] <= FEWEST:
                    break
                kept[largest] = max(FEWEST, kept[largest] // 2)
        self.index = {
            n: torch.linspace(0, p.size - 1, kept[n]).long().unique() for n, p in plates.items() if kept[n] < p.size
        }

    def record(self, record: Record) -> Record:
        """A record of some elements only: its density costs no more than these."""
        cut = {f.dim: self.index[f.name] for f in record.frames if f.dim is not None and f.name in self.index}
        if not cut:
            return record
        event_dim = getattr(record.fn, "event_dim", 0)
        peeled = None if record.peeled is None else _thin_peeled(record.peeled, cut)
        if peeled is None or record.elementwise is not None:
            elementwise = _take(record.log_prob(), cut, record.inner)
            return replace(record, elementwise=elementwise, mask=_take_mask(record.mask, cut))
        value = _take(record.value, cut, event_dim)
        version = version_of(value, peeled)
        return replace(record, peeled=peeled, value=value, mask=_take_mask(record.mask, cut), version=version)

    def factor(self, factor: Factor) -> Factor:
        """A factor at these elements."""
        return Factor(self._tensor(factor.tensor, factor.dims), factor.dims)

    def site(self, site: Site) -> Site:
        """A site with these elements only."""
        if not any(p in self.index for p in site.plates):
            return site
        arguments = {n: self._argument(a) for n, a in site.arguments.items()}
        mask = None if site.mask is None else self.factor(site.mask)
        return replace(site, arguments=arguments, value=self.factor(site.value), mask=mask)

    def _argument(self, argument: Argument) -> Argument:
        dims = argument.value.dims
        links = []
        for link in argument.links:
            index, slope, offset = (
                None if t is None else self._tensor(t, dims) for t in (link.index, link.slope, link.offset)
            )
            assert index is not None
            links.append(Link(link.parameter, index, link.transform, slope, offset))
        design = None if argument.design is None else self._design(argument.design)
        return replace(argument, value=self.factor(argument.value), links=tuple(links), design=design)

    def _design(self, design: Design) -> Design:
        """A linear predictor at these elements; data dimensions are thinned where they are large."""
        sizes = design.shape[len(design.cells) :]
        features = self._tensor(design.features.unflatten(1, sizes), ("", *design.data)) if sizes else design.features
        offset = design.offset
        if offset is not None and sizes:
            offset = self._tensor(offset.unflatten(1, sizes), ("", *design.data)).flatten(1)
        kept = tuple(features.shape[1:-1]) if sizes else sizes
        shape = (*design.shape[: len(design.cells)], *kept)
        return replace(design, features=features.flatten(1, -2) if sizes else features, offset=offset, shape=shape)

    def _tensor(self, tensor: Tensor, dims: tuple[str, ...]) -> Tensor:
        for axis, dim in enumerate(dims):
            if dim in self.index and tensor.shape[axis] > len(self.index[dim]):
                tensor = tensor.index_select(axis, self.index[dim].to(tensor.device))
        return tensor


def _thin_peeled(peeled: Peeled, cut: Mapping[int, Tensor]) -> Peeled | None:
    arguments = {n: _take(t, cut, peeled.inner + peeled.event_dims[n]) for n, t in peeled.arguments.items()}
    try:
        base = peeled.family(**arguments, **peeled.options, validate_args=False)
    except (RuntimeError, TypeError, ValueError):
        return None
    mask = peeled.mask
    if isinstance(mask, Tensor):
        mask = _take(mask, cut, peeled.inner)
    return replace(peeled, base=base, arguments=arguments, mask=mask)


def _take(tensor: Tensor, cut: Mapping[int, Tensor], right: int) -> Tensor:
    """Elements along batch dimensions that stand left of ``right`` further dimensions."""
    for dim, index in cut.items():
        axis = dim - right
        if -axis <= tensor.dim() and tensor.shape[axis] > len(index):
            tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor


def _take_mask(mask: Tensor | bool | None, cut: Mapping[int, Tensor]) -> Tensor | bool | None:
    return _take(mask, cut, 0) if isinstance(mask, Tensor) else mask
