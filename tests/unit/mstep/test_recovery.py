"""Every family finds the parameters that made the data."""

import pyro.distributions as dist
import pytest
import torch
from mstep_cases import CASES
from scipy.stats import chi2

from ppl_em.mstep import Argument, Block, WeightedSample, weighted_mle

SIZE = 20_000


@pytest.mark.parametrize("case", CASES, ids=str)
def test_recovery(case):
    """Two rows with data of their own, from a start elsewhere.

    The fit is above the truth by what estimating p parameters may gain, half a chi-squared variable with p
    degrees of freedom (Wilks 1938), and near it.
    """
    g = torch.Generator().manual_seed(11)
    truth = {name: draw(g, 2) for name, draw in case.free.items()}
    fixed = {name: torch.full((2,), float(value)) for name, value in case.fixed.items()}
    given = {**truth, **fixed}
    if case.family is dist.Multinomial:
        given["total_count"] = int(fixed["total_count"][0])
    x = case.family(**given).sample((SIZE,)).transpose(0, 1)
    starts = {name: case.start.get(name, draw)(g, 2) for name, draw in case.free.items()}
    args = {name: Argument(value, torch.arange(2)) for name, value in starts.items()}
    args |= {name: Argument(value) for name, value in fixed.items()}
    sample = WeightedSample(args, (Block(torch.ones(2, SIZE), x, torch.arange(2)),), 2, case.event_dim)
    weighted_mle[case.family](sample)
    gain = float(sample.log_likelihood(case.family) - sample.log_likelihood(case.family, {**truth, **fixed}))
    num_parameters = sum(value.numel() for value in truth.values())
    assert 0 <= gain < chi2.isf(1e-6, num_parameters) / 2
    for name, value in truth.items():
        estimate = sample.proposals[name]
        if name.endswith("logits") and value.dim() > 1:
            estimate, value = estimate.log_softmax(-1), value.log_softmax(-1)
        torch.testing.assert_close(estimate, value, rtol=0.1, atol=0.05)
