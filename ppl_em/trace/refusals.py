"""Discrete latents that cannot be summed: an error, or left to another method with the reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ppl_em.errors import PlanError, message
from ppl_em.exact.elimination_order import OrderCost, cheapest_order, greedy_order, order_cost
from ppl_em.ir import Latent
from ppl_em.trace.layout import Layout, allocate
from ppl_em.trace.record import Record


class Refusals:
    """Latents that are not summed.

    Args:
        strict: the first refusal is raised.

    Attributes:
        reasons: by latent.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.reasons: dict[str, str] = {}

    def add(self, names: Iterable[str], error: PlanError) -> None:
        """Refuse latents.

        Raises:
            PlanError: ``error``, if strict.
        """
        if self.strict:
            raise error
        for name in names:
            self.reasons.setdefault(name, str(error))


def connected(name: str, scopes: Mapping[str, tuple[str, ...]]) -> list[str]:
    """Latents that are connected to those of a site by common sites."""
    return next(g for g in groups_of(scopes) if scopes[name][0] in g)


def groups_of(scopes: Mapping[str, tuple[str, ...]]) -> list[list[str]]:
    """Latents in groups that are connected by common sites, in program order."""
    home: dict[str, str] = {}

    def root(z: str) -> str:
        while home.setdefault(z, z) != z:
            home[z] = home[home[z]]
            z = home[z]
        return z

    for scope in scopes.values():
        for z in scope:
            home[root(z)] = root(scope[0])
    groups: dict[str, list[str]] = {}
    for z in home:
        groups.setdefault(root(z), []).append(z)
    return list(groups.values())


def refuse_large(
    records: Mapping[str, Record],
    scopes: Mapping[str, tuple[str, ...]],
    summed: Mapping[str, Latent],
    limit: float,
    refusals: Refusals,
) -> None:
    """Refuse the latents of sites whose enumerated log-factor would not fit.

    Args:
        records, scopes, summed: the program.
        limit: elements of one log-factor.
        refusals: filled.
    """
    for name, scope in scopes.items():
        if any(z in refusals.reasons for z in scope):
            continue
        states = sum(math.log(summed[z].cardinality) for z in scope)
        batch = math.prod(getattr(records[name].fn, "batch_shape", ()))
        if states + math.log(max(1, batch)) > math.log(limit):
            refusals.add(connected(name, scopes), _too_large(name, scope, summed, batch, limit))


def refuse_costly(
    scopes: Mapping[str, tuple[str, ...]], summed: Mapping[str, Latent], max_flops: float, refusals: Refusals
) -> None:
    """Refuse connected latents that no order of elimination sums within the budget, before anything is enumerated.

    One element of every plate is counted: what is refused here could not be had for a single datum.

    Args:
        scopes, summed: the program.
        max_flops: operations that an E-step may cost.
        refusals: filled.
    """
    sizes = {z: v.cardinality for z, v in summed.items()}
    groups = groups_of(scopes)
    number = {z: i for i, group in enumerate(groups) for z in group}
    factors: list[dict[frozenset[str], None]] = [{} for _ in groups]
    for scope in scopes.values():
        if scope:
            factors[number[scope[0]]][frozenset(scope)] = None
    for group, inside in zip(groups, map(list, factors), strict=True):
        cost = order_cost(greedy_order(group, inside, sizes), inside, sizes)
        if cost.flops > max_flops:
            cost = cheapest_order(group, inside, sizes)[1]
        if cost.flops > max_flops:
            refusals.add(group, _too_costly(group, inside, sizes, cost, max_flops))


def _too_costly(
    group: list[str], scopes: list[frozenset[str]], sizes: Mapping[str, int], cost: OrderCost, limit: float
) -> PlanError:
    hints = ['method="svi"']
    fewer = _states_within(group, scopes, sizes, limit)
    if fewer is not None:
        states, flops = fewer
        hints.append(f"fewer states (K {max(sizes[z] for z in group)}→{states}: {flops:.1e} operations)")
    hints.append("a larger Auto(max_flops=...)")
    return PlanError(
        message(
            f"summing these {len(group)} connected latents takes {cost.flops:.1e} operations and "
            f"{8 * cost.largest:.1e} bytes for each datum",
            site=", ".join(group[:5]) + (" …" if len(group) > 5 else ""),
            why=f"the budget is {limit:.1e} operations in an E-step",
            hint=", ".join(hints),
        )
    )


def _states_within(
    group: list[str], scopes: list[frozenset[str]], sizes: Mapping[str, int], limit: float
) -> tuple[int, float] | None:
    """The largest number of states, at most, of every latent with which the budget would suffice, and the cost."""
    for states in range(max(sizes[z] for z in group) - 1, 1, -1):
        capped = {z: min(sizes[z], states) for z in group}
        flops = order_cost(greedy_order(group, scopes, capped), scopes, capped).flops
        if flops <= limit:
            return states, flops
    return None


def _too_large(name: str, scope: tuple[str, ...], summed: Mapping[str, Latent], batch: int, limit: float) -> PlanError:
    sizes = [summed[z].cardinality for z in scope]
    elements = math.prod(sizes) * max(1, batch)
    largest = max(sizes)
    shown = (
        "×".join(map(str, sizes))
        if len(sizes) <= 4
        else f"{largest}^{len(sizes)}"
        if len(set(sizes)) == 1
        else f"{len(sizes)} latents"
    )
    hints = ['method="svi"']
    fitting = int((limit / max(1, batch)) ** (1 / len(sizes)))
    if fitting >= 2 and fitting < largest:
        hints.append(f"fewer states (K {largest}→{fitting})")
    hints.append(
        f"a site that depends on at most {max(1, int(math.log(limit / max(1, batch)) / math.log(largest)))} of them"
    )
    hints.append("a larger Auto(memory_bytes=...)")
    return PlanError(
        message(
            f"the log-factor would have {float(elements):.2e} elements ({shown} states × {batch}), "
            f"{8 * float(elements):.1e} bytes",
            site=name,
            why=f"the budget is {limit:.0e} elements",
            hint=", ".join(hints),
        )
    )


def refuse_wide(
    records: Mapping[str, Record],
    scopes: Mapping[str, tuple[str, ...]],
    summed: Mapping[str, Latent],
    folded: Mapping[str, int],
    refusals: Refusals,
) -> Layout:
    """Registers of the latents; those that would need too many tensor dimensions are refused."""
    cardinality = {z: v.cardinality for z, v in summed.items()}
    while True:
        kept = {n: tuple(z for z in s if z in cardinality) for n, s in scopes.items()}
        try:
            return allocate(records, kept, cardinality, {z: d for z, d in folded.items() if z in cardinality})
        except PlanError as error:
            widest = max(kept, key=lambda n: len(kept[n]))
            gone = connected(widest, kept)
            refusals.add(gone, error)
            cardinality = {z: k for z, k in cardinality.items() if z not in gone}
