"""Log-space messages by blocks against one step after the other, where nothing else can be trusted."""

from __future__ import annotations

import pytest
import torch

from ppl_em.exact import chain_log_scan
from ppl_em.exact.chain_factors import chain_factors
from ppl_em.exact.chain_log_scan import log_messages
from ppl_em.exact.chain_log_space import log_backward, log_forward, probabilities
from tests.unit.exact.chains import TRANS, random_chain


@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("steps", [81, 89, 100])
@pytest.mark.parametrize("magnitude", [1.0, 1e3, 1e5])
def test_blocks_equal_the_whole(trans: str, steps: int, magnitude: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_log_scan, "_FEWEST_STEPS", 50)
    for batch in [(), (2, 3)]:
        init, log_trans, obs = random_chain(batch, steps, 3, trans)
        log_trans = log_trans.masked_fill(torch.rand(log_trans.shape) < 0.2, -torch.inf)
        obs = -magnitude * torch.randint(0, 3, obs.shape) + torch.randn(obs.shape)
        chain = chain_factors(init, log_trans, obs)
        forward, backward, log_z = log_messages(chain)
        whole, expected = log_forward(chain)
        torch.testing.assert_close(log_z, expected, atol=1e-9, rtol=1e-13)
        torch.testing.assert_close(forward.exp(), whole.exp(), atol=1e-9, rtol=0)
        marginals = probabilities(whole + log_backward(chain), (-1,))
        torch.testing.assert_close(probabilities(forward + backward, (-1,)), marginals, atol=1e-9, rtol=0)


def test_float32() -> None:
    factors = [factor.float() for factor in random_chain((2,), 5_000, 4, "shared")]
    forward, _, log_z = log_messages(chain_factors(*factors))
    whole, expected = log_forward(chain_factors(*(factor.double() for factor in factors)))
    torch.testing.assert_close(log_z, expected, atol=0, rtol=1e-7)
    torch.testing.assert_close(forward.exp().double(), whole.exp(), atol=1e-5, rtol=0)
