"""Evidence that the enumerated factors are the program's: replays with given values of every latent."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_em.errors import message
from ppl_em.ir import Factor, Latent, Program, Site
from ppl_em.ir.factor import lookup
from ppl_em.trace.enumeration import Enumeration, site_log_factor
from ppl_em.trace.layout import Disagreement
from ppl_em.trace.observe import fill_masked
from ppl_em.trace.record import Record
from ppl_em.trace.thinning import Thinning

#: Replays at most; each covers one value of every element, so that small supports are covered completely.
MAX_REPLAYS = 8
#: Programs of more sites, or latents of more elements, are replayed fewer times: like ones are witnesses for each other.
MANY_SITES, MANY_ELEMENTS, FEW_REPLAYS = 400, 20_000, 3


def replay(
    program: Program,
    enumeration: Enumeration,
    table: Mapping[str, Factor],
    thinning: Thinning,
    seed: int = 9973,
) -> str:
    """Run the program with drawn values of all summed latents; every site must score as its enumerated factor says.

    This is an intervention on every latent at once: dependence that tensor provenance cannot see (control flow,
    NumPy, in-place writes), dependence between the elements of a plate, and broadcasting that mixes an undeclared
    batch dimension with an enumerated one all show as a difference.

    Args:
        program: the traced program.
        enumeration: runs it.
        table: log-factor of each site at the initial parameters.
        thinning: which elements of large plates are compared.
        seed: of the drawn values.

    Returns:
        What was done, for the certificate.

    Raises:
        Disagreement: a site scores differently; named.
    """
    latents = program.summed
    start = {n: p.init for n, p in program.parameters.items()}
    largest = max(v.cardinality for v in latents.values())
    count = min(max(2, largest), MAX_REPLAYS)
    draws = Draws(latents, enumeration.seen, seed)
    if len(program.sites) > MANY_SITES or max(index.numel() for index in draws.offset.values()) > MANY_ELEMENTS:
        count = min(count, FEW_REPLAYS)
    comparison = Comparison(program, enumeration, table, thinning)
    for step in range(count):
        index = draws.at(step)
        for z, v in latents.items():
            if v.optional:
                index[z] = index[z].clamp_max(len(v.values) - 1)
        given = {z: v.values[index[z]] for z, v in latents.items()}
        records = enumeration.run(start, given)
        for z, v in latents.items():
            if z not in records:
                index[z] = torch.full_like(index[z], v.cardinality - 1)
            elif records[z].value is not given[z]:  # it was outside the support, as that turned out to be
                index[z] = _positions(v, records[z].value)
        comparison.check(records, index)
    covered = "every value of every latent" if largest <= count else f"{count} values of every latent"
    return f"{count} replays with given latents ({covered}) score each site as its enumerated factor does"


class Draws:
    """Positions of all elements of all latents, different in every replay; small supports are run through.

    Args:
        latents: summed latents.
        seen: their sample statements.
        seed: of the draws.
    """

    def __init__(self, latents: Mapping[str, Latent], seen: Mapping[str, Record], seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.latents = latents
        self.offset, self.stride = {}, {}
        self.spared: dict[str, tuple[int, ...]] = {}
        for z, v in latents.items():
            shape = tuple(seen[z].fn.batch_shape)
            shape = shape[: len(shape) - v.folded]
            self.offset[z] = torch.randint(v.cardinality, shape, generator=generator)
            # Along plates that the survey passed with one value for all, one replay has a value for each element.
            known = (1,) * (len(shape) - seen[z].value.dim()) + tuple(seen[z].value.shape)
            self.spared[z] = tuple(i for i, (n, own) in enumerate(zip(shape, known, strict=False)) if own < n)
            stride = int(torch.randint(1, 1 + max(1, v.cardinality - 1), (), generator=generator))
            self.stride[z] = _coprime(stride, v.cardinality)

    def at(self, step: int) -> dict[str, Tensor]:
        """Positions in one replay, by the batch dimensions of each latent that are not folded."""
        return {z: (self._offset(z, step) + step * self.stride[z]) % v.cardinality for z, v in self.latents.items()}

    def _offset(self, latent: str, step: int) -> Tensor:
        offset = self.offset[latent]
        for dim in self.spared[latent] if step > 0 else ():
            offset = offset.narrow(dim, 0, 1)
        return offset


class Comparison:
    """Compares the sites of a run at given latents with the enumerated factors.

    Args:
        program, enumeration, table, thinning: as for :func:`replay`.
    """

    def __init__(
        self, program: Program, enumeration: Enumeration, table: Mapping[str, Factor], thinning: Thinning
    ) -> None:
        self.program, self.enumeration, self.thinning = program, enumeration, thinning
        self.table = {n: Factor(f.tensor.detach(), f.dims) for n, f in table.items()}
        # Sites that depend on single latents alone are looked up all at once.
        scalar = {z for z, v in program.summed.items() if not v.plates}
        small = [n for n, f in self.table.items() if set(f.dims) <= scalar and n in program.sites]
        self.small: dict[str, tuple[int, list[tuple[str, int]]]] = {}
        start = 0
        for name in small:
            tensor = self.table[name].tensor.contiguous()
            self.small[name] = (start, list(zip(self.table[name].dims, tensor.stride(), strict=True)))
            start += tensor.numel()
        parts = [self.table[n].tensor.reshape(-1) for n in small]
        self.flat = torch.cat(parts) if parts else torch.zeros(0)

    def check(self, records: Mapping[str, Record], index: Mapping[str, Tensor]) -> None:
        """Compare all sites at given positions.

        Raises:
            Disagreement: a site scores differently.
        """
        at = {z: int(i) for z, i in index.items() if i.numel() == 1}
        names, places, scores = [], [], []
        rest = []
        for name, site in self.program.sites.items():
            score = self._score(name, site, records)
            if name in self.small and score.tensor.dim() == 0:
                first, strides = self.small[name]
                names.append(name)
                places.append(first + sum(at[z] * stride for z, stride in strides))
                scores.append(score.tensor)
            else:
                rest.append((name, score))
        if names:
            stacked = torch.stack(scores).detach()
            wrong = ~_agree(stacked, self.flat[torch.tensor(places)].to(stacked.dtype))
            if bool(wrong.any()):
                first = int(wrong.nonzero()[0])
                raise _mismatch(names[first], float((stacked - self.flat[torch.tensor(places)])[first].abs()))
        named = {z: self._named(z, i) for z, i in index.items()} if rest else {}
        for name, score in rest:
            self._compare(name, score, named)

    def _score(self, name: str, site: Site, records: Mapping[str, Record]) -> Factor:
        record = records.get(name)
        if record is None:  # this path does not reach it
            return Factor(torch.zeros((), dtype=self.table[name].tensor.dtype), ())
        record = fill_masked(self.thinning.record(record))
        try:
            return site_log_factor(
                record, self.thinning.site(site), self.enumeration.layout, self.enumeration.scopes[name]
            )
        except (RuntimeError, ValueError, IndexError) as error:
            raise _mismatch(name, math.nan) from error

    def _named(self, latent: str, index: Tensor) -> Factor:
        entry = self.program.latents[latent]
        index = index.reshape(tuple(index.shape) + (1,) * entry.folded)
        named = self.enumeration.layout.name_dims(self.enumeration.seen[latent], index, 0, 0, (latent,))
        return self.thinning.factor(named)

    def _compare(self, name: str, score: Factor, index: Mapping[str, Factor]) -> None:
        try:
            expected = lookup(self.table[name], index)
            dims = tuple(dict.fromkeys((*score.dims, *expected.dims)))
            a, b = torch.broadcast_tensors(score.align(dims).detach(), expected.align(dims))
        except (RuntimeError, ValueError, IndexError) as error:
            raise _mismatch(name, math.nan) from error
        equal = _agree(a, b)
        if not bool(equal.all()):
            raise _mismatch(name, float((a - b).abs()[~equal].max()))


def _agree(a: Tensor, b: Tensor) -> Tensor:
    tolerance = 1e-8 if a.dtype == torch.float64 else 1e-3
    return (a == b) | ((a - b).abs() <= tolerance * (1 + b.abs()))


def _mismatch(name: str, by: float) -> Disagreement:
    return Disagreement(
        message(
            "the density with given latents differs from the enumerated one"
            + ("" if math.isnan(by) else f" by {by:.3g} nats"),
            site=name,
            why="it depends on a latent in a way that tensor operations do not show (Python control flow, NumPy, "
            "another element of the plate, or a batch dimension that is not declared)",
            hint="torch.where / indexing in place of control flow, and a pyro.plate for every batch dimension",
        ),
        name,
    )


def _coprime(stride: int, size: int) -> int:
    while math.gcd(stride, size) != 1:
        stride += 1
    return stride


def _positions(latent: Latent, value: Tensor) -> Tensor:
    """Positions in a scalar support of given values."""
    return (value.unsqueeze(-1) == latent.values.to(value.dtype)).to(torch.int64).argmax(-1)
