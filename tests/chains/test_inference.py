"""Chains of every kind against plain enumeration, and against general elimination, their slow twin."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

import ppl_em
from ppl_em.em.e_step import expected_log_joint, objective, site_factors
from ppl_em.exact.elimination import Elimination
from ppl_em.plan.plan import Plan
from ppl_em.plan.structure import find_blocks
from ppl_em.posterior import Posterior
from tests.chains.cases import CASES
from tests.styles.checks import random_values
from tests.styles.oracle import Truth, enumerate_program
from tests.tolerances import ASCENT, BRUTE_FORCE, GRADIENT, STATISTICAL

DRAWS = 4000
FREQUENT = 5  # below this expected count a deviation is not normal


class Prepared(NamedTuple):
    """A case at parameter values that are not its own.

    Attributes:
        plan: The plan.
        values: The values.
        posterior: What is tested.
        truths: All assignments: of the whole program, or of each series where these are independent.
        leaves: The values that the log joint densities of ``truths`` can be differentiated by.
    """

    plan: Plan
    values: dict[str, Tensor]
    posterior: Posterior
    truths: list[Truth]
    leaves: dict[str, Tensor]

    @property
    def rows(self) -> list[tuple[Truth, Any]]:
        """Each enumeration with the index of its series in what is asked for (everything where it is one)."""
        return [(t, i if len(self.truths) > 1 else ...) for i, t in enumerate(self.truths)]


@cache
def prepared(name: str) -> Prepared:
    case = CASES[name]
    plan = ppl_em.explain(case.model, *case.args, method="em")
    values = random_values(plan, 11)
    leaves = plan.program.leaves(values)
    given = {n: leaf for n, leaf in leaves.items() if plan.program.parameters[n].origin == "param"}
    parts = [tuple(a[i : i + 1] for a in case.args) for i in range(len(case.args[0]))] if case.rows else [case.args]
    truths = [enumerate_program(case.model, part, given) for part in parts]
    return Prepared(plan, values, Posterior(plan, values), truths, given)


@pytest.mark.parametrize("name", CASES)
def test_evidence_and_gradient(name: str) -> None:
    case, (plan, values, _, truths, leaves) = CASES[name], prepared(name)
    assert plan.exact
    for family in case.families:
        assert plan.engine_of(family) == "chain"
    mine_leaves = plan.program.leaves(values)
    mine = objective(plan, mine_leaves)
    wanted = case.scale * torch.stack([t.log_z for t in truths]).sum()
    assert float(mine.detach()) == pytest.approx(float(wanted.detach()), abs=BRUTE_FORCE)
    found = torch.autograd.grad(mine, [mine_leaves[n] for n in leaves])
    grads = torch.autograd.grad(wanted, list(leaves.values()), retain_graph=True)
    for a, b in zip(found, grads, strict=True):
        assert float((a - b).abs().max()) <= GRADIENT * (1 + float(b.abs().max()))


@pytest.mark.parametrize("name", CASES)
def test_marginals(name: str) -> None:
    case = prepared(name)
    for z, latent in case.plan.program.latents.items():
        assert latent.support is not None
        for truth, row in case.rows:
            wanted = truth.marginal(z, latent.support, 0)
            found = case.posterior.probabilities(z)[row]
            torch.testing.assert_close(found, wanted.reshape(found.shape), atol=BRUTE_FORCE, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_steps_ascend(name: str) -> None:
    case = CASES[name]
    settings = ppl_em.EM(max_steps=3, tol=0, accelerate=False)
    result = ppl_em.fit(case.model, *case.args, init="params", restarts=1, method=settings)
    assert bool((result.history.diff() >= -ASCENT * (1 + result.history[:-1].abs())).all())
    at_end = objective(result.plan, result.plan.program.leaves(dict(result.params)))
    assert result.objective == pytest.approx(float(at_end.detach()), abs=BRUTE_FORCE)


@pytest.mark.parametrize("name", CASES)
def test_expected_counts_give_the_gradient(name: str) -> None:
    """Fisher's identity, so the expected weights of every site are right."""
    plan, values, *_ = prepared(name)
    weights: dict[str, Any] = {}
    for entry in plan.blocks:
        weights.update(entry.engine.expected(entry.block, site_factors(plan, values)).weights)
    leaves = plan.program.leaves(values)
    sites = [s for entry in plan.blocks for s in entry.block.sites]
    q = expected_log_joint(plan, sites, weights, leaves)
    wanted = torch.autograd.grad(objective(plan, leaves), list(leaves.values()))
    found = torch.autograd.grad(q, list(leaves.values()), allow_unused=True)
    for leaf, a, b in zip(leaves, found, wanted, strict=True):
        a = torch.zeros_like(b) if a is None else a
        # A dead latent's density integrates to one: along the simplex it has no gradient.
        a, b = (g - g.mean(-1, keepdim=True) if g.dim() and "loc" not in leaf else g for g in (a, b))
        assert float((a - b).abs().max()) <= GRADIENT * (1 + float(b.abs().max())), leaf


@pytest.mark.parametrize("name", [n for n in CASES if n != "Python slices"])
def test_elimination_agrees(name: str) -> None:
    plan, values, posterior, *_ = prepared(name)
    (block,), _ = find_blocks(plan.program)
    factors = plan.program.factors(values)
    twin = Elimination().posterior(block, {n: f.map(torch.detach) for n, f in factors.items()})
    mine = posterior._at(0)
    torch.testing.assert_close(mine.log_z.tensor, twin.log_z.tensor, atol=BRUTE_FORCE, rtol=0)
    if not block.alive:  # of unequal series only what leads up to each one's own end counts
        torch.testing.assert_close(mine.entropy().tensor, twin.entropy().tensor, atol=BRUTE_FORCE, rtol=0)
    first, *_, last = block.names
    for a, b in ((first, last), (last, first)):
        found, wanted = mine.pairwise(a, b), twin.pairwise(a, b)
        torch.testing.assert_close(found.align(wanted.dims), wanted.tensor, atol=BRUTE_FORCE, rtol=0)


def probabilities(truth: Truth) -> Tensor:
    return (truth.scores - truth.log_z).exp().detach()


def without_padding(name: str) -> list[tuple[Truth, Any]]:
    """As ``rows``, each series cut at its length."""
    case, found = CASES[name], prepared(name)
    if not case.rows or len(case.args) == 1:
        return found.rows
    x, lengths = case.args
    cut = []
    for i, n in enumerate(lengths.tolist()):
        whole = n == x.shape[1]
        part = (x[i : i + 1, :n], lengths[i : i + 1])
        cut.append((found.truths[i] if whole else enumerate_program(case.model, part, found.leaves), i))
    return cut


@pytest.mark.parametrize("name", CASES)
def test_mode_and_entropy(name: str) -> None:
    case, rows = prepared(name), without_padding(name)
    mode = case.posterior.mode()
    for truth, row in rows:
        best = truth.values[int(truth.scores.argmax())]
        wanted = {z: v.reshape(-1).tolist() for z, v in best.items()}
        assert {z: v[row].reshape(-1).tolist() for z, v in mode.items() if z in wanted} == wanted
    log_prob = sum(float((t.scores.max() - t.log_z).detach()) for t, _ in rows)
    assert case.posterior.log_prob_of_mode() == pytest.approx(log_prob, abs=BRUTE_FORCE)
    entropy = sum(float(torch.special.entr(probabilities(t)).sum()) for t, _ in rows)
    assert float(case.posterior.entropy()) == pytest.approx(entropy, abs=BRUTE_FORCE)


@pytest.mark.parametrize("name", CASES)
def test_pairs(name: str) -> None:
    case = prepared(name)
    names, latents = list(case.plan.program.latents), case.plan.program.latents
    for a, b in [(names[0], names[-1]), (names[-1], names[len(names) // 2]), (names[1], names[2])]:
        found = case.posterior.pairwise(a, b)
        rows, columns = (latents[z].cardinality for z in (a, b))
        for truth, row in case.rows:
            hot = torch.stack(
                [
                    one_hot(v[a].long(), rows).double().unsqueeze(-1)
                    * one_hot(v[b].long(), columns).double().unsqueeze(-2)
                    for v in truth.values
                ]
            )
            wanted = torch.tensordot(probabilities(truth), hot, 1)
            torch.testing.assert_close(found[row], wanted.reshape(found[row].shape), atol=BRUTE_FORCE, rtol=0)


@pytest.mark.parametrize("name", CASES)
def test_draws_match_pairs(name: str) -> None:
    plan, _, posterior, *_ = prepared(name)
    drawn = posterior.sample(DRAWS, seed=5)
    names = list(plan.program.latents)
    for a, b in [(names[0], names[-1]), (names[1], names[2])]:
        pairs = posterior.pairwise(a, b)
        rows, columns = pairs.shape[-2:]
        shape = pairs.shape[:-2]
        flat = (1,) * len(shape)
        first, last = (drawn[z].long().reshape(DRAWS, *(shape if drawn[z].dim() > 1 else flat)) for z in (a, b))
        share, wanted = one_hot(first * columns + last, rows * columns).double().mean(0), pairs.flatten(-2)
        error = (wanted * (1 - wanted) / DRAWS).sqrt()
        frequent = wanted * DRAWS >= FREQUENT
        assert bool(((share - wanted).abs() <= STATISTICAL * error + (~frequent) * FREQUENT / DRAWS + 1e-12).all())


def test_draws_are_fresh_unless_seeded() -> None:
    _, _, posterior, *_ = prepared("class of a series")
    one, two = posterior.sample(50, seed=1), posterior.sample(50, seed=1)
    assert all(torch.equal(one[z], two[z]) for z in one)
    assert any(not torch.equal(one[z], v) for z, v in posterior.sample(50).items())
