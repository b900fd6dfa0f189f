"""Long chains in float32 and float64: nothing underflows, nothing drifts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppl_em.exact.chain_factors import chain_factors
from ppl_em.exact.chain_log_space import log_forward
from ppl_em.exact.chain_queries import entropy, filtered, viterbi
from ppl_em.exact.forward_backward import chain_log_z, expected_counts
from tests.unit.exact.chains import random_chain

STEPS = 100_000
FLOAT32 = 1e-6


def long_chain(sticky: float, shift: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """One chain of float32 numbers (held as float64) with 8 states."""
    init, trans, obs = random_chain((), STEPS, 8, "shared")
    trans = ((1 - sticky) * trans.softmax(-1) + sticky * torch.eye(8)).log()
    return init.float().double(), trans.float().double(), (obs + shift).float().double()


@pytest.mark.parametrize("sticky", [0.0, 0.9, 0.9999])
@pytest.mark.parametrize("shift", [0.0, -1000.0])
def test_float32_agrees_with_float64(sticky: float, shift: float) -> None:
    factors = long_chain(sticky, shift)
    wide = expected_counts(*factors)
    narrow = expected_counts(*(factor.float() for factor in factors))
    assert narrow.gamma.dtype == narrow.xi.dtype == torch.float32
    torch.testing.assert_close(narrow.log_z, wide.log_z, rtol=FLOAT32, atol=0)
    torch.testing.assert_close(narrow.gamma.double(), wide.gamma, rtol=0, atol=1e-4)
    torch.testing.assert_close(narrow.xi.double(), wide.xi, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(narrow.xi.double().sum(), torch.tensor(STEPS - 1.0), rtol=1e-5, atol=0)
    gradient = chain_log_z(*(factor.float() for factor in factors))
    torch.testing.assert_close(gradient.double(), wide.log_z, rtol=FLOAT32, atol=0)


def test_blocks_agree_with_one_step_after_the_other() -> None:
    factors = long_chain(0.9)
    shorter = (factors[0], factors[1], factors[2][:20_000])
    log_z = log_forward(chain_factors(*shorter))[1]
    torch.testing.assert_close(expected_counts(*shorter).log_z, log_z, rtol=1e-13, atol=0)
    narrow = log_forward(chain_factors(*(factor.float() for factor in shorter)))[1]
    torch.testing.assert_close(narrow, log_z, rtol=FLOAT32, atol=0)


def test_queries_of_a_long_chain_in_float32() -> None:
    init, trans, obs = long_chain(0.9)
    factors = (init, trans, obs[:5_000])
    narrow = [factor.float() for factor in factors]
    torch.testing.assert_close(entropy(*narrow), entropy(*factors), rtol=1e-5, atol=0)
    torch.testing.assert_close(filtered(*narrow).double(), filtered(*factors), rtol=0, atol=1e-4)
    path, log_prob = viterbi(*narrow)
    torch.testing.assert_close(log_prob, viterbi(*factors)[1], rtol=FLOAT32, atol=0)
    assert (path == viterbi(*factors)[0]).double().mean() > 0.999
