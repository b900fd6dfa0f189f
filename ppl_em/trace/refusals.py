"""Discrete latents that cannot be summed: an error, or left to another method with the reason."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from ppl_em.errors import PlanError, message
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
    found = dict.fromkeys(scopes[name])
    grown = True
    while grown:
        before = len(found)
        for scope in scopes.values():
            if any(z in found for z in scope):
                found.update(dict.fromkeys(scope))
        grown = len(found) > before
    return list(found)


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
