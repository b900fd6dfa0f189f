"""The conformance kit accepts what is right and refuses what is wrong, and its programs are ordinary Pyro."""

from __future__ import annotations

from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch
from torch.distributions import constraints

from ppl_em.exact.chain import Chain
from ppl_em.exact.elimination import Elimination
from ppl_em.exact.mixture import Mixture
from ppl_em.ir import Factor
from ppl_em.mstep import weighted_mle
from ppl_em.testing import check_engine, check_rule, random_program


@pytest.mark.parametrize("engine", [Mixture(), Chain(), Elimination()], ids=lambda e: e.name)
def test_the_engines_conform(engine) -> None:
    check_engine(engine, seeds=range(16), max_assignments=32)


class Biased(Elimination):
    """log Z off by a little: what a wrong constant looks like."""

    name = "biased"

    def expected(self, block, factors):
        right = super().expected(block, factors)
        return replace(right, log_z=right.log_z + Factor(torch.tensor(1e-4), ()))


class Blurred(Elimination):
    """Right log Z, wrong weights."""

    name = "blurred"

    def expected(self, block, factors):
        right = super().expected(block, factors)
        weights = {n: replace(w, factor=w.factor.map(lambda t: 0.99 * t)) for n, w in right.weights.items()}
        return replace(right, weights=weights)


class Timid(Elimination):
    """Accepts nothing."""

    name = "timid"

    def reject(self, block):
        return "not today"


@pytest.mark.parametrize(
    ("engine", "complaint"), [(Biased(), "log Z"), (Blurred(), "weights"), (Timid(), "accepted no block")]
)
def test_a_wrong_engine_is_refused(engine, complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_engine(engine, seeds=range(6), max_assignments=16)


def test_a_rule_conforms() -> None:
    check_rule(
        dist.Normal,
        lambda g, n: {"loc": torch.randn(n, generator=g), "scale": 0.5 + torch.rand(n, generator=g)},
        seeds=range(3),
    )
    check_rule(dist.Binomial, lambda g, n: {"probs": 0.2 + 0.6 * torch.rand(n, generator=g)}, total_count=5)


class Halved(dist.Exponential):
    """An exponential with a rule that is off by a factor."""

    arg_constraints = {"rate": constraints.positive}


def test_a_wrong_rule_is_refused() -> None:
    @weighted_mle.register(Halved)
    def halved(sample):
        total = sample.sum("x", lambda x: x)
        sample.propose("rate", 0.5 * sample.mass("rate") / sample.pool("rate", total))

    with pytest.raises(AssertionError, match=r"descends|not stationary"):
        check_rule(Halved, lambda g, n: {"rate": 1 + torch.rand(n, generator=g)})


def test_a_random_program_is_the_same_for_the_same_seed() -> None:
    one, two = random_program(11), random_program(11)
    assert str(one) == str(two)
    assert one.data.keys() == two.data.keys()
    assert all(torch.equal(one.data[n], two.data[n]) for n in one.data)
    assert len({str(random_program(seed)) for seed in range(20)}) == 20


def test_a_random_program_runs_in_plain_pyro() -> None:
    from pyro import poutine

    program = random_program(5)
    trace = poutine.trace(program).get_trace(program.data)
    assert torch.isfinite(trace.log_prob_sum())
    assert {n for n in trace.observation_nodes} == set(program.data)
