"""Evidence that the enumerated factors are the program's: replays with given values of every latent."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_em.errors import PlanError, message
from ppl_em.ir import Factor, Latent, Program, Site
from ppl_em.ir.factor import lookup
from ppl_em.trace.enumeration import Enumeration, site_log_factor
from ppl_em.trace.observe import fill_masked
from ppl_em.trace.run import Record, Run

#: Replays at most; each covers one value of every element, so that small supports are covered completely.
MAX_REPLAYS = 8


def replay(program: Program, enumeration: Enumeration, first: Run) -> str:
    """Run the program with drawn values of all summed latents; every site must score as its enumerated factor says.

    This is an intervention on every latent at once: dependence that tensor provenance cannot see (control flow,
    NumPy, in-place writes), dependence between the elements of a plate, and broadcasting that mixes an undeclared
    batch dimension with an enumerated one all show as a difference.

    Returns:
        What was done, for the certificate.

    Raises:
        PlanError: a site scores differently; named.
    """
    latents = {z: v for z, v in program.latents.items() if v.kind == "discrete"}
    start = {n: p.init for n, p in program.parameters.items()}
    table = enumeration.log_factors(start, program.sites, {n: _scope(first, n, latents) for n in program.sites})
    largest = max(v.cardinality for v in latents.values())
    count = min(largest, MAX_REPLAYS)
    generator = torch.Generator().manual_seed(9973)
    offsets = {z: torch.randint(v.cardinality, first.records[z].fn.batch_shape, generator=generator) for z, v in latents.items()}
    strides = {z: int(torch.randint(1, 1 + max(1, v.cardinality - 1), (), generator=generator)) for z, v in latents.items()}
    for step in range(count):
        index = {z: (offsets[z] + step * _coprime(strides[z], v.cardinality)) % v.cardinality for z, v in latents.items()}
        given = {z: v.support[index[z]] for z, v in latents.items() if v.support is not None}
        records = enumeration.run(start, given)
        named = {z: _named_index(first.records[z], index[z], program, z, enumeration) for z in latents}
        for name, site in program.sites.items():
            _compare(name, site, table[name], records, named, program, enumeration)
    covered = "every value of every latent" if largest <= MAX_REPLAYS else f"{count} values of every latent"
    return f"{count} replays with given latents ({covered}) score each site as its enumerated factor does"


def _coprime(stride: int, size: int) -> int:
    while math.gcd(stride, size) != 1:
        stride += 1
    return stride


def _scope(run: Run, name: str, latents: Mapping[str, Latent]) -> tuple[str, ...]:
    found = {m[7:] for m in run.records[name].marks if m.startswith("latent:")} | {name}
    return tuple(z for z in latents if z in found)


def _named_index(record: Record, index: Tensor, program: Program, latent: str, enumeration: Enumeration) -> Factor:
    return enumeration.layout.name_dims(record, index, 0, 0, (latent,))


def _compare(
    name: str,
    site: Site,
    table: Factor,
    records: Mapping[str, Record],
    index: Mapping[str, Factor],
    program: Program,
    enumeration: Enumeration,
) -> None:
    record = fill_masked(records[name])
    seen = site_log_factor(record, site, enumeration.layout, ())
    seen = Factor(seen.tensor.detach(), seen.dims)
    expected = lookup(Factor(table.tensor.detach(), table.dims), index)
    dims = tuple(dict.fromkeys((*seen.dims, *expected.dims)))
    a, b = torch.broadcast_tensors(seen.align(dims), expected.align(dims))
    tolerance = 1e-8 if a.dtype == torch.float64 else 1e-3
    equal = (a == b) | ((a - b).abs() <= tolerance * (1 + b.abs()))
    if not bool(equal.all()):
        worst = float((a - b).abs()[~equal].max())
        raise PlanError(
            message(
                f"the density with given latents differs from the enumerated one by {worst:.3g} nats",
                site=name,
                why="it depends on a latent in a way that tensor operations do not show (Python control flow, NumPy, "
                "another element of the plate, or a batch dimension that is not declared)",
                hint="torch.where / indexing in place of control flow, and a pyro.plate for every batch dimension",
            )
        )
