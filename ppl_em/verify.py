"""The exact engines of a plan held against brute force on a shrunken copy of the program.

The copy has at most two elements of every plate and as many latents of every block, first ones first, as can be listed
with all their joint values. Its factors are the program's own, at the values where the fit starts: sums of products of
the same numbers in another order.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_em.em.e_step import e_step
from ppl_em.errors import EngineError, message
from ppl_em.exact.brute_force import brute_force
from ppl_em.ir import Argument, Factor, Link, Plate, Program, Site
from ppl_em.plan.certificate import Certificate
from ppl_em.plan.choice import BlockPlan
from ppl_em.plan.plan import Plan, make_plan
from ppl_em.plan.rules import RuleLookup
from ppl_em.plan.structure import find_blocks
from ppl_em.posterior import Posterior

#: Joint assignments that are listed at most, per block, and elements that are kept of a plate.
ASSIGNMENTS, ELEMENTS = 256, 2
#: Largest deviation, relative to 1 + the size of log Z; in a probability.
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3}


def verify_plan(plan: Plan, values: Mapping[str, Tensor], engines: Sequence[Any], lookup: RuleLookup) -> Plan:
    """The plan, with what was verified among its witnesses.

    Args:
        plan: an exact plan.
        values: constrained values of all parameters.
        engines: the engines that the fit may use.
        lookup: what the M-step registry knows of a family.

    Raises:
        EngineError: an engine's answer differs from the listing of all assignments; the block is named.
    """
    said = []
    for entry in plan.blocks:
        names = ", ".join(entry.block.names[:3]) + (" …" if len(entry.block.names) > 3 else "")
        small = shrink(plan.program, entry)
        if small is None:
            said.append(f"{names}: not shrunk")
            continue
        listed = _compare(small, values, engines, lookup, names)
        said.append(f"{names}: {listed} assignments listed")
    text = "; ".join(said) or "nothing to sum"
    witnesses = {**plan.program.witnesses, "brute force": f"on a shrunken copy ({text})"}
    return replace(plan, program=replace(plan.program, witnesses=witnesses))


def rerun(certificate: Certificate, model: Any, *args: Any, **options: Any) -> Certificate:
    """Check a certificate against a program: every witness is run again, brute force on a shrunken copy included.

    Args:
        certificate: of an earlier plan, or read from its JSON form.
        model, args, options: as for :func:`ppl_em.fit`.

    Returns:
        The fresh certificate.

    Raises:
        EngineError: the program does not bear the certificate out, or an engine's answer is not brute force's.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, ppl_em
        >>> def coins(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Bernoulli(0.3))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> plan = ppl_em.explain(coins, torch.tensor([0.1, 0.8]))
        >>> rerun(plan.certificate, coins, torch.tensor([0.1, 0.8])).treatment
        {'z': 'summed'}
    """
    from ppl_em.fitting import ENGINES
    from ppl_em.planner import rule_lookup
    from ppl_em.problem import pose

    problem = pose(model, args, ENGINES, **options)
    plan = problem.plan
    found = certificate.differences(plan.certificate)
    if found:
        why = "; ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")
        hint = "the program that the certificate was made for, or a new plan"
        raise EngineError(message("the certificate does not hold", why=why, hint=hint))
    if plan.method == "em":
        plan = verify_plan(plan, problem.values, problem.em.engines or ENGINES, rule_lookup)
    return plan.certificate


def shrink(program: Program, entry: BlockPlan) -> Program | None:
    """The program with a part of one block only, small enough for brute force; None where that cannot be cut out."""
    if program.axes:
        return None  # its steps were run at once: single steps have no factors of their own
    for elements in (ELEMENTS, 1):
        plates = {n: replace(p, size=min(p.size, elements)) for n, p in program.plates.items()}
        kept, total = [], 1
        for latent in entry.block.latents:
            cells = math.prod(plates[p].size for p in latent.plates)
            total *= latent.cardinality**cells if cells * math.log(latent.cardinality) < 50 else ASSIGNMENTS + 1
            if total > ASSIGNMENTS:
                break
            kept.append(latent.name)
        if kept:
            return _restricted(program, tuple(kept), plates)
    return None


def _compare(
    program: Program, values: Mapping[str, Tensor], engines: Sequence[Any], lookup: RuleLookup, names: str
) -> int:
    """Log Z and all marginals of a small program, by its plan and by brute force; the number of assignments."""
    plan = make_plan(program, engines, lookup, max_bytes=math.inf)
    with torch.no_grad():
        factors = program.evaluate(values, tuple(program.sites))
    dtype = min((f.tensor.dtype for f in factors.values()), key=lambda d: torch.finfo(d).bits)
    bound = TOLERANCE.get(dtype, TOLERANCE[torch.float32])
    found, expected, listed = e_step(plan, values).log_likelihood, 0.0, 0
    posterior = Posterior(plan, dict(values))
    for block in find_blocks(program)[0]:
        log_z, marginals = brute_force(replace(block, scale=None), factors)
        expected += float(log_z)
        listed += math.prod(z.cardinality ** math.prod(block.sizes[p] for p in z.plates) for z in block.latents)
        for name, factor in marginals.items():
            _hold(posterior.probabilities(name), factor.tensor, bound, f"marginal of '{name}'", names)
    _hold(torch.tensor(found), torch.tensor(expected), bound * (1 + abs(expected)), "log Z", names)
    return listed


def _hold(found: Tensor, expected: Tensor, bound: float, what: str, names: str) -> None:
    difference = float((found.double() - expected.double()).abs().max())
    if not difference <= bound:
        why = "the sum of all joint assignments of a shrunken copy is another number"
        raise EngineError(message(f"{what} is off by {difference:.3g}", site=names, why=why))


def _restricted(program: Program, kept: tuple[str, ...], plates: Mapping[str, Plate]) -> Program:
    """The program with some latents, the sites that depend on nothing else that is summed, and smaller plates."""
    sizes = {n: p.size for n, p in plates.items()}
    chosen = {n: s for n, s in program.sites.items() if s.scope and set(s.scope) <= set(kept)}
    sites = {n: _cut_site(s, sizes) for n, s in chosen.items()}

    def evaluate(values: Mapping[str, Tensor], wanted: tuple[str, ...]) -> dict[str, Factor]:
        return {n: _cut(f, sizes) for n, f in program.evaluate(values, wanted).items()}

    latents = {z: v for z, v in program.latents.items() if z in kept or v.kind == "continuous"}
    return replace(program, sites=sites, latents=latents, plates=dict(plates), evaluate=evaluate)


def _cut(factor: Factor, sizes: Mapping[str, int]) -> Factor:
    """The first elements along every plate."""
    return Factor(_cut_tensor(factor.tensor, factor.dims, sizes), factor.dims).squeeze()


def _cut_tensor(tensor: Tensor, dims: Sequence[str], sizes: Mapping[str, int]) -> Tensor:
    for axis, dim in enumerate(dims):
        if dim in sizes and tensor.shape[axis] > sizes[dim]:
            tensor = tensor.narrow(axis, 0, sizes[dim])
    return tensor


def _cut_site(site: Site, sizes: Mapping[str, int]) -> Site:
    designed = any(a.design is not None for a in site.arguments.values())
    arguments = {n: _cut_argument(a, sizes) for n, a in site.arguments.items()}
    return replace(
        site,
        arguments=arguments,
        value=_cut(site.value, sizes),
        mask=None if site.mask is None else _cut(site.mask, sizes),
        scale=None,
        lowered=site.lowered and not designed,
    )


def _cut_argument(argument: Argument, sizes: Mapping[str, int]) -> Argument:
    dims = argument.value.dims

    def cut(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        narrow = _cut_tensor(tensor, dims, sizes)
        keep = [0 if narrow.shape[i] == 1 and d in sizes else slice(None) for i, d in enumerate(dims)]
        return narrow[tuple(keep)]

    left = tuple(
        d for i, d in enumerate(dims) if not (d in sizes and min(argument.value.tensor.shape[i], sizes[d]) == 1)
    )
    value = cut(argument.value.tensor)
    assert value is not None
    links = []
    for link in argument.links:
        index = cut(link.index)
        assert index is not None
        links.append(Link(link.parameter, index, link.transform, cut(link.slope), cut(link.offset)))
    return replace(argument, value=Factor(value, left), links=tuple(links), design=None)
