"""In which order to sum latents out: the cheapest of several orders, by the sizes that they would make.

Reference:
    Smith, D. G. A. & Gray, J. (2018). opt_einsum: a Python package for optimizing contraction order for einsum-like
    expressions. JOSS 3(26).
    Kjærulff, U. (1990). Triangulation of graphs: algorithms giving small total state space.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import opt_einsum

#: Latents and factors up to which the exact search over contraction paths is affordable.
OPTIMAL_LATENTS, OPTIMAL_FACTORS = 8, 12
#: Factors up to which opt_einsum's greedy search is tried as well.
GREEDY_FACTORS = 60

#: Operations for each element of a bucket and each factor in it: forward and backward.
PER_ELEMENT = 4.0

Scope = frozenset[str]


@dataclass(frozen=True)
class OrderCost:
    """What an order costs.

    Args:
        total: elements of all buckets together, counted once for each factor in them.
        stored: elements of all buckets together.
        largest: elements of the largest bucket.
    """

    total: float
    stored: float
    largest: float

    @property
    def flops(self) -> float:
        """Operations of an E-step."""
        return PER_ELEMENT * self.total


def cheapest_order(
    latents: Sequence[str], scopes: Sequence[Scope], sizes: Mapping[str, int]
) -> tuple[list[str], OrderCost]:
    """The cheapest elimination order found.

    Args:
        latents: to be summed out.
        scopes: names of the dimensions of each factor.
        sizes: number of elements along each dimension.
    """
    candidates = [greedy_order(latents, scopes, sizes)]
    if len(latents) > 2 and len(scopes) <= GREEDY_FACTORS:
        exact = len(latents) <= OPTIMAL_LATENTS and len(scopes) <= OPTIMAL_FACTORS
        candidates.append(_path_order(latents, scopes, sizes, "dp" if exact else "greedy"))
    priced = [(order_cost(order, scopes, sizes), order) for order in candidates]
    cost, order = min(priced, key=lambda item: (item[0].total, item[0].largest))
    return order, cost


def greedy_order(latents: Sequence[str], scopes: Sequence[Scope], sizes: Mapping[str, int]) -> list[str]:
    """Next always the latent whose bucket is smallest."""
    near: dict[str, set[str]] = {z: set() for z in latents}
    for scope in scopes:
        for z in scope:
            if z in near:
                near[z] |= scope
    place = {z: i for i, z in enumerate(latents)}
    logs = {d: math.log(n) for d, n in sizes.items()}

    def price(z: str) -> float:
        return math.fsum(logs.get(d, 0.0) for d in near[z])

    heap = [(price(z), place[z], z) for z in latents]
    heapq.heapify(heap)
    current = {z: p for p, _, z in heap}
    order = []
    while heap:
        cost, _, z = heapq.heappop(heap)
        if z not in near or cost != current[z]:
            continue
        order.append(z)
        union = near.pop(z) - {z}
        for d in union:
            if d in near:
                near[d] |= union
                near[d].discard(z)
                current[d] = price(d)
                heapq.heappush(heap, (current[d], place[d], d))
    return order


def order_cost(order: Iterable[str], scopes: Sequence[Scope], sizes: Mapping[str, int]) -> OrderCost:
    """Cost of an order, without memory."""
    factors: dict[int, Scope] = dict(enumerate(scopes))
    touching: dict[str, set[int]] = {}
    for i, scope in factors.items():
        for d in scope:
            touching.setdefault(d, set()).add(i)
    total = stored = largest = 0.0
    for step, z in enumerate(order):
        mine = touching.pop(z, set())
        union: set[str] = set().union(*(factors[i] for i in mine))
        size = math.exp(min(700.0, sum(math.log(sizes.get(d, 1)) for d in union)))
        total += size * (len(mine) + 2)
        stored += size
        largest = max(largest, size)
        new = len(scopes) + step
        for i in mine:
            for d in factors.pop(i):
                if d in touching:
                    touching[d].discard(i)
        factors[new] = frozenset(union - {z})
        for d in factors[new]:
            touching.setdefault(d, set()).add(new)
    return OrderCost(total, stored, largest)


def _path_order(latents: Sequence[str], scopes: Sequence[Scope], sizes: Mapping[str, int], method: str) -> list[str]:
    """The order in which latents vanish along a contraction path of opt_einsum."""
    keep = frozenset(d for s in scopes for d in s if d not in latents)
    known = {d: sizes.get(d, 1) for s in scopes for d in s}
    find = opt_einsum.paths.dynamic_programming if method == "dp" else opt_einsum.paths.greedy
    path = find(list(scopes), keep, known, None)
    order: list[str] = []
    factors = list(scopes)
    for contraction in path:
        taken = [factors[i] for i in contraction]
        for i in sorted(contraction, reverse=True):
            del factors[i]
        union: Scope = frozenset().union(*taken)
        elsewhere: Scope = frozenset().union(*factors) if factors else frozenset()
        gone = [z for z in latents if z in union and z not in elsewhere and z not in order]
        order += gone
        factors.append(union - frozenset(gone))
    return order + [z for z in latents if z not in order]
