"""Laws of a fit on random programs: ascent, honest objectives, symmetries, no footprint."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import ppl_em
from ppl_em.em.e_step import objective
from ppl_em.posterior import Posterior
from tests.laws.cases import SEEDS, plan_of, posed, probabilities, program_of, truth_of
from tests.tolerances import ASCENT, BRUTE_FORCE, EXACT


def steps(count: int, accelerate: bool = False) -> ppl_em.EM:
    return ppl_em.EM(max_steps=count, tol=0, accelerate=accelerate)


@settings(max_examples=20)
@given(SEEDS, st.booleans())
def test_4_em_ascends(seed: int, accelerate: bool) -> None:
    program, _, values = posed(seed)
    names = list(program.tables)
    frozen = random.Random(seed).sample(names, len(names) // 3)
    result = ppl_em.fit(program, program.data, init=values, freeze=frozen, method=steps(12, accelerate), restarts=1)
    falls = -result.history.diff()
    assert bool((falls <= ASCENT * (1 + result.history[:-1].abs())).all()), str(program)
    assert result.status is not ppl_em.Status.NOT_MONOTONE
    for name in frozen:
        assert torch.equal(result.params[name], values[name])
        assert result.plan.rule_of(name) == "frozen"
    for name, table in program.tables.items():
        assert bool(table.constraint.check(result.params[name]).all()), f"{name} of\n{program}"


@settings(max_examples=15)
@given(SEEDS)
def test_5_the_objective_is_that_of_the_returned_parameters(seed: int) -> None:
    program = program_of(seed)
    result = ppl_em.fit(program, program.data, method=ppl_em.EM(max_steps=15), restarts=2)
    assume(result.status is not ppl_em.Status.DEGENERATE)
    expected = float(truth_of(program, result.params).log_z)
    assert result.objective == pytest.approx(expected, abs=BRUTE_FORCE * (1 + abs(expected)))
    assert result.log_likelihood == result.objective == float(result.history[-1])
    assert len(result.history) == result.num_steps + 1
    assert result.objective == max(r.objective for r in result.restarts if r.status is not ppl_em.Status.DEGENERATE)


@settings(max_examples=20)
@given(SEEDS)
def test_7_the_order_of_a_plate_does_not_matter(seed: int) -> None:
    program, plan, _ = posed(seed)
    size = program.sizes["outer"]
    assume(size > 1)
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    other = program.with_plate_permuted(order)
    there = plan_of(other)
    a, b = float(objective(plan, program.params())), float(objective(there, other.params()))
    assert a == pytest.approx(b, abs=EXACT * (1 + abs(a))), str(program)
    mine, theirs = Posterior(plan, program.params()), Posterior(there, other.params())
    for name, latent in plan.program.latents.items():
        p, q = probabilities(mine.marginal(name)), probabilities(theirs.marginal(name))
        p = p[order] if "outer" in latent.plates else p
        torch.testing.assert_close(p, q, atol=BRUTE_FORCE, rtol=0, msg=f"{name} of\n{program}")


@settings(max_examples=20)
@given(SEEDS)
def test_7_relabelling_states_permutes_the_answer(seed: int) -> None:
    program, plan, _ = posed(seed)
    mine = Posterior(plan, program.params())
    for name, size in program.cardinality.items():
        order = torch.arange(size).roll(1)
        other = program.with_states_permuted(name, order)
        if other is None:
            continue
        a, b = float(objective(plan, program.params())), float(objective(plan, other.params()))
        assert a == pytest.approx(b, abs=BRUTE_FORCE * (1 + abs(a))), str(program)
        theirs = Posterior(plan, other.params())
        p, q = probabilities(mine.marginal(name)), probabilities(theirs.marginal(name))
        torch.testing.assert_close(p[..., order], q, atol=BRUTE_FORCE, rtol=0, msg=f"{name} of\n{program}")


@settings(max_examples=15)
@given(SEEDS, st.booleans())
def test_8_duplicated_data_double_log_z_and_leave_the_step_unchanged(seed: int, weighted: bool) -> None:
    program = program_of(seed, local=True)
    once = ppl_em.fit(program, program.data, init="params", method=steps(2))
    if weighted:
        assume(once.plan.program.data_plate == "outer")
        twice = ppl_em.fit(
            program, program.data, init="params", method=steps(2), weights=[2.0] * program.sizes["outer"]
        )
    else:
        double = program.repeated(2)
        twice = ppl_em.fit(double, double.data, init="params", method=steps(2))
    torch.testing.assert_close(twice.history, 2 * once.history, atol=BRUTE_FORCE, rtol=1e-10)
    for name, rule in ((n, once.plan.rule_of(n)) for n in once.params):
        if rule == "closed form":
            torch.testing.assert_close(once.params[name], twice.params[name], atol=BRUTE_FORCE, rtol=1e-8)


@settings(max_examples=15)
@given(SEEDS)
def test_9_the_same_shapes_give_the_same_plan(seed: int) -> None:
    program, plan, _ = posed(seed)
    other = program.redrawn(seed + 1)
    assert str(plan_of(other)) == str(plan), str(program)


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(number=SEEDS)
def test_11_no_public_call_leaves_a_footprint(number: int, no_footprint: Callable) -> None:
    program = program_of(number)
    with no_footprint():
        ppl_em.explain(program, program.data)
        result = ppl_em.fit(program, program.data, method=ppl_em.EM(max_steps=3), restarts=2)
        list(ppl_em.iterate(program, program.data, method=ppl_em.EM(max_steps=2)))
        posterior = result.posterior()
        posterior.marginals, posterior.mode(), posterior.sample(3), posterior.entropy()
        result.log_prob(), result.log_prob(program.data), result.predict(num_samples=2)
        result.terms(), result.summary(), str(result), result.aic, result.bic, result.icl
        program_values = {name: value.clone() for name, value in result.params.items()}
    assert all(torch.equal(result.params[n], v) for n, v in program_values.items())
