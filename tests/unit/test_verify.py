"""``verify=True``: brute force on a shrunken copy accepts right engines, refuses wrong ones, and says what it did."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import ppl_em
from models import gmm, hmm
from ppl_em import EM, ENGINES
from ppl_em.errors import EngineError
from ppl_em.exact.chain import Chain
from ppl_em.exact.mixture import Mixture
from ppl_em.ir import Factor
from ppl_em.testing import random_program
from tests.unit.programs import mixture, two_kinds

X = two_kinds()
STEP = {"restarts": 1, "verify": True}


def certificate(result: ppl_em.FitResult) -> str:
    return str(result.plan.certificate.witnesses["brute force"])


@pytest.mark.parametrize("seed", range(15))
def test_random_programs_are_verified(seed: int) -> None:
    program = random_program(seed)
    result = ppl_em.fit(program, program.data, method=EM(max_steps=0), **STEP)
    assert "assignments listed" in certificate(result)
    assert result.exact


def test_large_programs_are_shrunk() -> None:
    result = ppl_em.fit(gmm.model, gmm.load(), method=EM(max_steps=0), **STEP)
    assert certificate(result) == "on a shrunken copy (z: 4 assignments listed)"
    assert "brute force" in str(result.plan)
    result = ppl_em.fit(hmm.model, hmm.load(), method=EM(max_steps=0), **STEP)
    assert certificate(result) == "on a shrunken copy (z_0, z_1, z_2 …: 256 assignments listed)"


def test_the_fit_itself_is_the_same() -> None:
    plain = ppl_em.fit(mixture, X, restarts=1, method=EM(max_steps=4))
    checked = ppl_em.fit(mixture, X, method=EM(max_steps=4), **STEP)
    assert torch.equal(plain.history, checked.history)
    assert torch.equal(checked.posterior().marginal("z").probs, plain.posterior().marginal("z").probs)


class WrongMixture(Mixture):
    def expected(self, block, factors):
        right = super().expected(block, factors)
        return replace(right, log_z=right.log_z.map(lambda t: t + 1e-3))


class WrongChain(Chain):
    def posterior(self, block, factors):
        return super().posterior(block, {n: f.map(lambda t: 1.1 * t) for n, f in factors.items()})


class Blind(Mixture):
    """Forgets an observation."""

    def expected(self, block, factors):
        last = block.sites[-1].name
        return super().expected(block, {**factors, last: Factor(torch.zeros(()), ())})


@pytest.mark.parametrize(
    ("engine", "complaint"),
    [(WrongMixture(), "log Z is off by 0.002"), (Blind(), "log Z"), (WrongChain(), "marginal of 'z_")],
)
def test_a_wrong_engine_is_refused(engine: object, complaint: str) -> None:
    model, data = (hmm.model, hmm.load()) if isinstance(engine, Chain) else (mixture, X)
    with pytest.raises(EngineError, match=complaint):
        ppl_em.fit(model, data, method=EM(max_steps=0, engines=(engine, *ENGINES)), **STEP)
