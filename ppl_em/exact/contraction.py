"""The plan of a plated contraction: which latents are summed out of which factors in which order, and its cost.

Reference:
    Obermeyer, F. et al. (2019). Tensor variable elimination for plated factor graphs. ICML. Algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from ppl_em.exact.elimination_order import cheapest_order
from ppl_em.ir import Factor
from ppl_em.ir.block import Block
from ppl_em.ir.factor import add_all

#: Elements of unrolled plates, all together, up to which unrolling is considered.
MAX_PIECES = 4000


class Crossing(Exception):
    """A factor crosses plates each of which has latents of its own.

    Args:
        plates: the plates that it crosses.
    """

    def __init__(self, plates: frozenset[str]) -> None:
        super().__init__(", ".join(sorted(plates)))
        self.plates = plates


@dataclass(frozen=True)
class Piece:
    """A factor, or one element of it along the plates that are unrolled.

    Args:
        term: its number among the given factors.
        element: position along each unrolled plate.
        names: latents' names for this element, by their own names.
        dims: latents (by their names for this element) on which it depends.
        plates: the plates that are left.
    """

    term: int
    element: Mapping[str, int]
    names: Mapping[str, str]
    dims: frozenset[str]
    plates: frozenset[str]


@dataclass(frozen=True)
class Step:
    """One operation: factors are added and a latent is summed out, or plates are multiplied out of one factor.

    Args:
        inputs: numbers of the factors, pieces first.
        output: number of the result.
        latent: what is summed out, or None.
        plates: the plates that are multiplied out.
    """

    inputs: tuple[int, ...]
    output: int
    latent: str | None = None
    plates: frozenset[str] = frozenset()


@dataclass
class Contraction:
    """How a block is contracted.

    Args:
        block: gives plates and sizes.
        scopes: (latents, plates) of each factor.
        unrolled: plates whose elements are taken one by one.
        sizes: number of elements along each dimension (1 for latents that are conditioned on).

    Raises:
        Crossing: a factor crosses plates that would have to be unrolled.
    """

    block: Block
    scopes: Sequence[tuple[tuple[str, ...], tuple[str, ...]]]
    unrolled: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        block = self.block
        self.sizes = self.sizes or dict(block.sizes)
        self.homes: dict[str, frozenset[str]] = {}
        self.original: dict[str, tuple[str, dict[str, int]]] = {}
        for latent in block.latents:
            over = [p for p in latent.plates if p in self.unrolled]
            rest = frozenset(p for p in latent.plates if p not in self.unrolled)
            for element in _elements(over, self.sizes):
                name = element_name(latent.name, element)
                self.homes[name], self.original[name] = rest, (latent.name, element)
        count = sum(math.prod(self.sizes[p] for p in plates if p in self.unrolled) for _, plates in self.scopes)
        if count > MAX_PIECES:
            raise Crossing(frozenset(self.unrolled))
        self.pieces = [piece for i in range(len(self.scopes)) for piece in self._pieces(i)]
        self.steps: list[Step] = []
        self.results: list[int] = []
        self.flops, self.stored, self.largest = 0.0, 0.0, 0.0
        self._plan()

    def _pieces(self, term: int) -> Iterable[Piece]:
        latents, plates = self.scopes[term]
        over = [p for p in plates if p in self.unrolled]
        rest = frozenset(p for p in plates if p not in self.unrolled)
        homes = {z.name: z.plates for z in self.block.latents}
        for element in _elements(over, self.sizes):
            names = {z: element_name(z, {p: element[p] for p in homes[z] if p in self.unrolled}) for z in latents}
            yield Piece(term, element, names, frozenset(names.values()), rest)

    def _plan(self) -> None:
        outer = frozenset(self.block.plates)
        live = {i: (p.dims, p.plates) for i, p in enumerate(self.pieces)}
        left = dict.fromkeys(self.homes)
        by_home: dict[frozenset[str], list[str]] = {}
        for z, home in self.homes.items():
            by_home.setdefault(home, []).append(z)
        while live:
            leaf = max((plates for _, plates in live.values()), key=lambda p: (len(p), sorted(p)))
            group = {i: dims for i, (dims, plates) in live.items() if plates == leaf}
            for i in group:
                del live[i]
            inside = [z for z in by_home.get(leaf, ()) if z in left]
            group = self._sum_out(inside, group, leaf)
            for z in inside:
                del left[z]
            for i, dims in group.items():
                kept = outer | frozenset().union(*(self.homes[d] for d in dims))
                if not dims and leaf <= outer:
                    self.results.append(i)
                elif leaf <= kept:
                    raise Crossing(leaf - outer)
                else:
                    step = Step((i,), self._next(), None, leaf - kept)
                    self.steps.append(step)
                    live[step.output] = (dims, kept & leaf)

    def _next(self) -> int:
        return len(self.pieces) + len(self.steps)

    def _sum_out(
        self, inside: list[str], group: dict[int, frozenset[str]], leaf: frozenset[str]
    ) -> dict[int, frozenset[str]]:
        if not inside:
            return group
        width = math.prod(self.sizes[p] for p in leaf)
        sizes = {d: self._cardinality(d) for dims in group.values() for d in dims}
        order, cost = cheapest_order(inside, list(group.values()), sizes)
        self.flops += width * cost.flops
        self.stored += width * cost.stored
        self.largest = max(self.largest, width * cost.largest)
        for z in order:
            touching = [i for i, dims in group.items() if z in dims]
            if not touching:
                continue
            union = frozenset().union(*(group.pop(i) for i in touching)) - {z}
            step = Step(tuple(touching), self._next(), z)
            self.steps.append(step)
            group[step.output] = union
        return group

    def _cardinality(self, name: str) -> int:
        return self.sizes[self.original[name][0]]

    def run(
        self, factors: Sequence[Factor], reduce: Callable[[Factor, tuple[str, ...]], Factor]
    ) -> tuple[Factor, list[tuple[str, Factor]]]:
        """Carry it out.

        Args:
            factors: log-factors, with all their latents and plates.
            reduce: sums (or maximises) a factor over a latent.

        Returns:
            The result by the block's plates, and (latent's name, bucket) in elimination order.
        """
        held: dict[int, Factor] = {i: _piece_of(factors[p.term], p) for i, p in enumerate(self.pieces)}
        buckets = []
        for step in self.steps:
            taken = [held.pop(i) for i in step.inputs]
            if step.latent is None:
                held[step.output] = taken[0].sum(step.plates)
            else:
                bucket = add_all(taken)
                buckets.append((step.latent, bucket))
                held[step.output] = reduce(bucket, (step.latent,))
        return add_all(held[i] for i in self.results), buckets


def element_name(latent: str, element: Mapping[str, int]) -> str:
    """Name of one element of a latent along unrolled plates."""
    return latent + "".join(f"@{p}={i}" for p, i in element.items())


def _elements(plates: Sequence[str], sizes: Mapping[str, int]) -> Iterable[dict[str, int]]:
    for cell in product(*(range(sizes[p]) for p in plates)):
        yield dict(zip(plates, cell, strict=True))


def _piece_of(factor: Factor, piece: Piece) -> Factor:
    if not piece.element:
        return factor
    index = tuple(piece.element.get(d, slice(None)) for d in factor.dims)
    dims = tuple(piece.names.get(d, d) for d in factor.dims if d not in piece.element)
    return Factor(factor.tensor[index], dims)


def plan_contraction(
    block: Block,
    scopes: Sequence[tuple[tuple[str, ...], tuple[str, ...]]],
    sizes: Mapping[str, int] | None = None,
    unrolled: tuple[str, ...] = (),
) -> Contraction:
    """The cheapest contraction; plates that are crossed are unrolled, the cheaper ones.

    Args:
        block, scopes, sizes: as for :class:`Contraction`.
        unrolled: plates unrolled already.

    Raises:
        Crossing: even unrolled it is too large to be planned.
    """
    try:
        return Contraction(block, scopes, unrolled, dict(sizes or block.sizes))
    except Crossing as crossing:
        options = [p for p in sorted(crossing.plates) if p not in unrolled]
        found: list[Contraction] = []
        for plate in options:
            try:
                found.append(plan_contraction(block, scopes, sizes, (*unrolled, plate)))
            except Crossing:
                continue
        if not found:
            raise
        return min(found, key=lambda c: (c.flops, c.largest))
