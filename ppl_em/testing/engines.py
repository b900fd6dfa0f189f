"""The conformance check of an exact engine: everything it answers, against a listing of all joint assignments."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import product
from typing import Any

import torch
from torch import Tensor

from ppl_em.em.e_step import expected_log_joint, site_factors
from ppl_em.exact.brute_force import assignments, log_joint
from ppl_em.fitting import ENGINES, explain
from ppl_em.ir import Factor
from ppl_em.ir.block import Block
from ppl_em.methods import EM
from ppl_em.plan.choice import BlockPlan
from ppl_em.plan.plan import Plan
from ppl_em.plan.structure import find_blocks
from ppl_em.testing.generator import random_program

#: Largest deviation from brute force, nats or probability, relative to 1 + its size.
TOLERANCE = 1e-8
#: Draws whose frequencies are compared with the marginals, and the deviation allowed in standard errors.
DRAWS, DEVIATIONS = 4000, 4.5


def check_engine(engine: Any, *, seeds: Iterable[int] = range(20), max_assignments: int = 64) -> None:
    """Hold an engine against brute force on random programs.

    Of every block that the engine accepts, it checks log Z, the expected weights (by Fisher's identity: they make the
    gradient of the expected log joint that of log Z), marginals, pairs, mode, entropy, and the frequencies of draws.

    Args:
        engine: an object with the methods of :class:`ppl_em.exact.engine.Engine`.
        seeds: of the random programs.
        max_assignments: size of the programs.

    Raises:
        AssertionError: an answer is wrong (the program is described), or the engine accepted no block at all.
    """
    accepted = 0
    for seed in seeds:
        program = random_program(seed, max_assignments=max_assignments)
        plan = explain(program, program.data, method=EM(engines=(engine, *ENGINES)))
        raw = {b.names: b for b in find_blocks(plan.program)[0]}
        for entry in plan.blocks:
            if entry.engine is engine:
                accepted += 1
                _check_block(plan, entry, raw[entry.block.names], f"seed {seed}\n{program}")
    assert accepted, f"the engine '{engine.name}' accepted no block of these programs"


def _check_block(plan: Plan, entry: BlockPlan, raw: Block, where: str) -> None:
    """Compare an engine with all joint assignments of a block as it stands in the program (``raw``, not stacked)."""
    leaves = {n: p.init.clone().requires_grad_(True) for n, p in plan.program.parameters.items()}
    factors = plan.program.factors(leaves, tuple(s.name for s in raw.sites))
    chosen = list(assignments(raw))
    joint = torch.stack([log_joint(raw, factors, c) for c in chosen])
    log_z = torch.logsumexp(joint, 0)
    probability = (joint - log_z).exp().detach()

    stacked = site_factors(plan, leaves, list(entry.block.sites))
    mine = {n: Factor(f.tensor.detach(), f.dims) for n, f in stacked.items()}
    expected = entry.engine.expected(entry.block, mine)
    _close(expected.log_z.tensor.sum(), log_z, "log Z", where)
    _close(entry.engine.log_z(entry.block, mine).tensor.sum(), log_z, "log Z as a differentiable number", where)
    q = expected_log_joint(plan, list(entry.block.sites), expected.weights, leaves)
    if q.requires_grad:
        names = list(leaves)
        found = torch.autograd.grad(q, list(leaves.values()), allow_unused=True)
        if not raw.alive:  # elements without observed descendants have no weight although log Z scores them
            wanted = torch.autograd.grad(log_z, list(leaves.values()), allow_unused=True)
            for name, a, b in zip(names, found, wanted, strict=True):
                zero = torch.zeros_like(leaves[name])
                _close(zero if a is None else a, zero if b is None else b, f"weights (gradient of {name})", where)
    posterior = entry.engine.posterior(entry.block, mine)
    _check_posterior(raw, posterior, chosen, probability, where)
    best = posterior.mode()
    at_mode = {z: {i: int(v) for i, v in _elements(raw, z, best[z])} for z in raw.names}
    _close(log_joint(raw, factors, at_mode).detach(), joint.max().detach(), "log joint of the mode", where)
    entropy = -(probability * probability.clamp_min(1e-300).log()).sum()
    _close(posterior.entropy().tensor.sum(), entropy, "entropy", where)


def _check_posterior(
    block: Block, posterior: Any, chosen: list[dict[str, dict[tuple[int, ...], int]]], probability: Tensor, where: str
) -> None:
    drawn = posterior.sample(DRAWS, torch.Generator().manual_seed(7))
    for latent in block.latents:
        shape = [block.sizes[p] for p in latent.plates]
        table = torch.zeros([*shape, latent.cardinality], dtype=torch.float64)
        for assignment, p in zip(chosen, probability, strict=True):
            for element, value in assignment[latent.name].items():
                table[(*element, value)] += p
        found = posterior.marginal(latent.name).align((*latent.plates, latent.name))
        _close(found, table, f"marginal of {latent.name}", where)
        sizes = {"@draw": DRAWS, **{p: block.sizes[p] for p in latent.plates}}
        values = drawn[latent.name].expand(sizes).align(("@draw", *latent.plates))
        frequency = torch.nn.functional.one_hot(values, latent.cardinality).double().mean(0)
        error = (table * (1 - table) / DRAWS).sqrt()
        excess = (frequency - table).abs() - DEVIATIONS * error - 2 / DRAWS
        assert bool((excess <= 0).all()), f"draws of {latent.name} do not follow its marginal\n{where}"
    for a, b in zip(block.latents, block.latents[1:], strict=False):
        pair = posterior.pairwise(a.name, b.name)
        plates = tuple(d for d in pair.dims if d not in (a.name, b.name))
        joint = pair.align((*plates, a.name, b.name))
        alone = posterior.marginal(b.name).to((*plates, b.name)) if set(b.plates) <= set(plates) else None
        if alone is not None:
            _close(joint.sum(-2), alone.tensor.expand(joint.sum(-2).shape), f"pair {a.name}, {b.name}", where)


def _elements(block: Block, name: str, position: Factor) -> list[tuple[tuple[int, ...], Tensor]]:
    plates = block.latent(name).plates
    wide = position.expand({p: block.sizes[p] for p in plates}).align(plates)
    return [(tuple(i), wide[tuple(i)]) for i in product(*map(range, wide.shape))]


def _close(found: Tensor, expected: Tensor, what: str, where: str) -> None:
    found, expected = found.detach().double(), expected.detach().double()
    difference = float((found - expected).abs().max()) if found.numel() else 0.0
    bound = TOLERANCE * (1 + float(expected.abs().max()))
    assert difference <= bound, f"{what} is off by {difference:.3g} (allowed {bound:.1g})\n{where}"
