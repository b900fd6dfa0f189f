"""From sites with expected weights to the weighted sample that a maximum-likelihood rule fits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_em.ir import Argument as SiteArgument
from ppl_em.ir import Factor, Link, Site
from ppl_em.ir.transform import MATRIXWISE, Transform
from ppl_em.mstep.block import Argument, Block
from ppl_em.mstep.given import GivenSample, Statistics
from ppl_em.mstep.sample import WeightedSample


@dataclass(frozen=True)
class ArgumentMap:
    """Where the rows of one argument come from.

    Args:
        cells: (R,) tied group of each row; None where the argument is fixed.
        pattern: (C, *event) number of the parameter element behind each element, −1 where fixed.
        entries: per link, (parameter's name, link, positions among the flattened (C, *event) elements, index of the
            parameter element for each, slope, offset).
    """

    cells: Tensor | None
    pattern: Tensor | None
    entries: tuple[tuple[Link, Tensor, Tensor, Tensor | None, Tensor | None], ...]


@dataclass(frozen=True)
class SiteRows:
    """How one site's dimensions are divided.

    Args:
        rows: dimensions along which an argument varies, reinterpreted ones left out.
        extra: reinterpreted dimensions along which an argument varies (they share weights, not rows).
        data: dimensions that are summed: those along which only the value varies.
        own: the value varies along ``rows`` too.
        sizes: size of every named dimension of this site (stacks of a chain differ in their number of steps).
    """

    site: Site
    rows: tuple[str, ...]
    extra: tuple[str, ...]
    data: tuple[str, ...]
    own: bool
    sizes: Mapping[str, int]


class Assembly:
    """The static part of a weighted sample for a group of sites of one family: worked out once, used every step.

    Args:
        sites: lowered sites of one family.
        sizes: size of every named dimension.
        free: names of the parameters to be estimated.
    """

    def __init__(self, sites: Sequence[Site], sizes: Mapping[str, int], free: frozenset[str]) -> None:
        self.sites = tuple(sites)
        self.family = sites[0].family
        self.layouts = tuple(self._divide(s, sizes) for s in sites)
        self.counts = tuple(math.prod(k.sizes[d] for d in (*k.rows, *k.extra)) for k in self.layouts)
        self.num_rows = sum(self.counts)
        names = [n for n in sites[0].arguments if all(n in s.arguments for s in sites)]
        self.maps = {n: self._map(n, free) for n in names}
        value = sites[0].value
        self.event_dim = value.event_dim
        self._values = [self._site_values(k) for k in self.layouts]
        self._rows = self._row_numbers()

    def _divide(self, site: Site, sizes: Mapping[str, int]) -> SiteRows:
        own_sizes = dict(sizes)
        masks = [] if site.mask is None else [site.mask]
        for factor in (site.value, *masks, *(a.value for a in site.arguments.values())):
            own_sizes.update({d: n for d, n in factor.sizes.items() if n > 1 or d not in own_sizes})
        varying = {d for a in site.arguments.values() for d in a.value.dims}
        masked = set(site.mask.dims) if site.mask is not None else set()
        extra = tuple(d for d in site.inner if d in varying and d not in masked)
        rows = tuple(d for d in (*site.dims, *site.inner) if d in varying and d not in extra)
        data = tuple(d for d in (*site.dims, *site.inner) if d in site.value.dims and d not in rows and d not in extra)
        return SiteRows(site, rows, extra, data, any(d in rows for d in site.value.dims), own_sizes)

    def _row_numbers(self) -> list[Tensor]:
        numbers, start = [], 0
        for layout, count in zip(self.layouts, self.counts, strict=True):
            shape = (math.prod(layout.sizes[d] for d in layout.rows), *(layout.sizes[d] for d in layout.extra))
            numbers.append(torch.arange(start, start + count).reshape(shape))
            start += count
        return numbers

    def _site_values(self, layout: SiteRows) -> Tensor:
        value = layout.site.value
        event = tuple(value.tensor.shape[len(value.dims) :])
        data = math.prod(layout.sizes[d] for d in layout.data)
        dims = (*layout.data, *layout.extra)
        if not layout.own:
            wide = value.align(dims).expand([*(layout.sizes[d] for d in dims), *event])
            return wide.reshape(data, *(layout.sizes[d] for d in layout.extra), *event)
        dims = (*layout.rows, *dims)
        wide = value.align(dims).expand([*(layout.sizes[d] for d in dims), *event])
        rows = math.prod(layout.sizes[d] for d in layout.rows)
        return wide.reshape(rows, data, *(layout.sizes[d] for d in layout.extra), *event)

    def _expand(self, layout: SiteRows, tensor: Tensor, dims: tuple[str, ...]) -> Tensor:
        """(…named dims, *event) to (rows of the site, *event)."""
        order = (*layout.rows, *layout.extra)
        factor = Factor(tensor, dims)
        event = tuple(tensor.shape[len(dims) :])
        wide = factor.align(order).expand([*(layout.sizes[d] for d in order), *event])
        return wide.reshape(-1, *event)

    def _map(self, name: str, free: frozenset[str]) -> ArgumentMap:
        """Ties of one argument over the rows of all sites."""
        parameters = sorted({k.parameter for s in self.sites for k in s.arguments[name].links if k.parameter in free})
        if not parameters:
            return ArgumentMap(None, None, ())
        numbers, columns = [], []
        offsets, total = {}, 0
        for parameter in parameters:
            offsets[parameter] = total
            total += 1 + max(
                int(k.index.max()) for s in self.sites for k in s.arguments[name].links if k.parameter == parameter
            )
        for layout in self.layouts:
            argument = layout.site.arguments[name]
            number = torch.full(argument.value.tensor.shape, -1, dtype=torch.int64)
            slope = torch.ones(argument.value.tensor.shape, dtype=torch.float64)
            offset = torch.zeros_like(slope)
            for link in argument.links:
                if link.parameter not in free:
                    continue
                here = link.index.cpu() >= 0
                number = torch.where(here, link.index.cpu() + offsets[link.parameter], number)
                if link.slope is not None and link.offset is not None:
                    slope = torch.where(here, link.slope.double().cpu(), slope)
                    offset = torch.where(here, link.offset.double().cpu(), offset)
            dims = argument.value.dims
            numbers.append(self._expand(layout, number, dims))
            columns.append((self._expand(layout, slope, dims), self._expand(layout, offset, dims)))
        return self._ties(
            name, parameters, offsets, torch.cat(numbers), [torch.cat(c) for c in zip(*columns, strict=True)]
        )

    def _ties(
        self, name: str, parameters: list[str], offsets: dict[str, int], numbers: Tensor, affine: list[Tensor]
    ) -> ArgumentMap:
        flat = numbers.reshape(len(numbers), -1)
        # Rows with the same elements are one cell, unless their fixed elements or affine maps differ.
        key = torch.cat([flat.double(), *(t.reshape(len(t), -1) for t in affine)], 1)
        if bool((flat < 0).any()):
            values = torch.cat([self._current(k, name) for k in self.layouts]).reshape(len(flat), -1)
            key = torch.cat([key, torch.where(flat < 0, values.double(), 0.0)], 1)
        _, cells = torch.unique(key, dim=0, return_inverse=True)
        count = int(cells.max()) + 1
        first = torch.zeros(count, dtype=torch.int64)
        first[cells.flip(0)] = torch.arange(len(cells)).flip(0)
        pattern = numbers[first]
        slope, offset = (t[first] for t in affine)
        plain = bool((slope == 1).all()) and bool((offset == 0).all())
        entries = []
        links = {k.parameter: k for s in self.sites for k in s.arguments[name].links}
        bounds = [*(offsets[p] for p in parameters), int(pattern.max()) + 1]
        for i, parameter in enumerate(parameters):
            inside = (pattern >= bounds[i]) & (pattern < bounds[i + 1] if i + 1 < len(parameters) else pattern >= 0)
            where = inside.reshape(-1).nonzero().squeeze(-1)
            index = pattern.reshape(-1)[where] - bounds[i]
            a = None if plain else slope.reshape(-1)[where]
            b = None if plain else offset.reshape(-1)[where]
            entries.append((links[parameter], where, index, a, b))
        distinct = len(torch.unique(pattern)) == pattern.numel() and bool((pattern >= 0).all())
        return ArgumentMap(cells, None if distinct else pattern, tuple(entries))

    def _current(self, layout: SiteRows, name: str) -> Tensor:
        argument = layout.site.arguments[name]
        return self._expand(layout, argument.value.tensor.detach(), argument.value.dims)

    def sample(
        self, weights: Mapping[str, tuple[Factor, frozenset[str]]], parameters: Mapping[str, Tensor]
    ) -> WeightedSample:
        """The weighted sample at the given expected weights and current parameters.

        Args:
            weights: per site, expected weights and the dimensions over which they are summed already.
            parameters: current constrained values.
        """
        return WeightedSample(self.arguments(parameters), self.blocks(weights), self.num_rows, self.event_dim)

    def blocks(self, weights: Mapping[str, tuple[Factor, frozenset[str]]]) -> tuple[Block, ...]:
        """The data of every site with their expected weights, see :meth:`sample`."""
        layouts = zip(self.layouts, self._values, self._rows, strict=True)
        return tuple(Block(self._weights(k, *weights[k.site.name]), v, r) for k, v, r in layouts)

    def sample_of(self, given: Sequence[Statistics], parameters: Mapping[str, Tensor]) -> GivenSample:
        """The weighted sample whose sufficient statistics were computed elsewhere, one entry for each site."""
        return GivenSample(self.arguments(parameters), self._rows, given, self.num_rows, self.event_dim)

    def replace_value(self, site: str, value: Factor) -> None:
        """Give a site other data of the same shape (residuals, as their mean moves)."""
        for i, layout in enumerate(self.layouts):
            if layout.site.name == site:
                self._values[i] = self._site_values(replace(layout, site=replace(layout.site, value=value)))

    def replace_argument(self, site: str, name: str, value: Factor) -> None:
        """Give a site another constant value of one argument (computed by the program from other parameters)."""
        for i, layout in enumerate(self.layouts):
            if layout.site.name == site:
                arguments = {**layout.site.arguments, name: SiteArgument(value)}
                changed = replace(layout, site=replace(layout.site, arguments=arguments))
                self.layouts = (*self.layouts[:i], changed, *self.layouts[i + 1 :])

    def block(
        self,
        site: str,
        value: Factor,
        weights: tuple[Factor, frozenset[str]],
        sizes: Mapping[str, int],
        mask: Factor | None = None,
    ) -> Block:
        """Other data of a site (a minibatch) with their expected weights.

        Args:
            site: its name.
            value: the data by name.
            weights: expected weights and the dimensions over which they are summed already.
            sizes: size of each dimension in these data.
            mask: where False the data do not count.
        """
        index = next(i for i, k in enumerate(self.layouts) if k.site.name == site)
        layout = self.layouts[index]
        other = replace(layout, site=replace(layout.site, value=value, mask=mask), sizes={**layout.sizes, **sizes})
        return Block(self._weights(other, *weights), self._site_values(other), self._rows[index])

    def fitted(self, blocks: Sequence[Block], parameters: Mapping[str, Tensor]) -> WeightedSample:
        """The weighted sample of given blocks."""
        return WeightedSample(self.arguments(parameters), tuple(blocks), self.num_rows, self.event_dim)

    def chosen(self, weights: Sequence[Tensor], data: Tensor, parameters: Mapping[str, Tensor]) -> WeightedSample:
        """The weighted sample of a choice of the data.

        Args:
            weights: per site, (R_b, n) weights of the chosen data.
            data: (n,) their positions among the site's summed data.
        """
        blocks = [Block(w, v[data], r) for w, v, r in zip(weights, self._values, self._rows, strict=True)]
        return WeightedSample(self.arguments(parameters), tuple(blocks), self.num_rows, self.event_dim)

    @property
    def row_numbers(self) -> Sequence[Tensor]:
        """Numbers of each site's rows among all rows, (R_b, *E)."""
        return self._rows

    def arguments(self, parameters: Mapping[str, Tensor]) -> dict[str, Argument]:
        """The family's arguments over all rows at given parameters."""
        arguments = {}
        for name, tie in self.maps.items():
            rows = []
            for layout in self.layouts:
                argument = layout.site.arguments[name]
                rows.append(self._expand(layout, argument.evaluate(parameters).detach(), argument.value.dims))
            arguments[name] = Argument(torch.cat(rows), tie.cells, tie.pattern)
        return arguments

    def _weights(self, layout: SiteRows, weights: Factor, summed: frozenset[str]) -> Tensor:
        site = layout.site
        if site.mask is not None:
            weights = weights * site.mask.map(lambda t: t.to(weights.tensor.dtype))
        order = (*layout.rows, *layout.data)
        multiplicity = 1.0
        for d in (*site.dims, *site.inner):
            if d not in weights.dims and d not in order and d not in layout.extra and d not in summed:
                multiplicity *= layout.sizes.get(d, 1)
        weights = weights.sum([d for d in weights.dims if d not in order])
        wide = weights.align(order).expand([layout.sizes[d] for d in order])
        rows = math.prod(layout.sizes[d] for d in layout.rows)
        flat = wide.reshape(rows, -1)
        return flat * multiplicity if multiplicity != 1.0 else flat

    def write(self, proposals: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """Parameters that give the proposed argument values; None if the proposals contradict one another.

        Args:
            proposals: by argument, (C, *event) proposed cell values.
            parameters: current constrained values (elements that no proposal touches keep them).
        """
        images: dict[str, Tensor] = {}
        written: dict[str, Tensor] = {}
        transforms = {}
        for name, values in proposals.items():
            flat = values.reshape(-1)
            for link, where, index, slope, offset in self.maps[name].entries:
                target = flat[where]
                if slope is not None and offset is not None:
                    target = (target - offset) / slope
                p = link.parameter
                if p not in images:
                    images[p] = link.transform.forward(parameters[p].detach().double()).reshape(-1).clone()
                    written[p] = torch.zeros(images[p].shape, dtype=torch.bool)
                    transforms[p] = link.transform
                image = images[p].clone()
                image[index] = target
                clash = written[p][index] & ((images[p][index] - target).abs() > 1e-9 * (1 + target.abs()))
                again = (image[index] - target).abs() > 1e-9 * (1 + target.abs())
                if bool(clash.any()) or bool(again.any()) or transforms[p] is not link.transform:
                    return None
                images[p] = image
                written[p][index] = True
        result = {}
        for p, image in images.items():
            old = parameters[p]
            new = transforms[p].inverse(image.reshape(transforms[p].image_shape(old.shape)))
            if transforms[p] in MATRIXWISE and not _returns(transforms[p], new, image, written[p]):
                return None
            result[p] = new.to(old.dtype)
        return result


def _returns(transform: Transform, new: Tensor, image: Tensor, written: Tensor) -> bool:
    """Whether a matrix parameter has the proposed image in every element for which one was proposed."""
    reached, wanted = transform.forward(new).reshape(-1)[written], image[written]
    return bool(torch.isclose(reached, wanted, rtol=1e-9, atol=1e-9 * float(wanted.abs().max())).all())
