"""A third party adds a rule for its own distribution: what it takes, in full."""

import math

import pyro.distributions as dist
import torch
from torch.distributions import constraints

from ppl_em.mstep import Argument, Block, WeightedSample, stationarity, weighted_mle


class Rayleigh(dist.TorchDistribution):
    """log p(x) = log x − 2 log scale − x² / (2 scale²), x > 0."""

    arg_constraints = {"scale": constraints.positive}
    support = constraints.positive

    def __init__(self, scale, validate_args=None):
        self.scale = scale
        super().__init__(scale.shape, validate_args=validate_args)

    def log_prob(self, value):
        return value.log() - 2 * self.scale.log() - (value / self.scale).square() / 2


@weighted_mle.register(Rayleigh)
def rayleigh(sample):
    half_squares = sample.sum("x²/2", lambda x: x.square() / 2)
    sample.propose("scale", (sample.pool("scale", half_squares) / sample.mass("scale")).sqrt())


def test_the_rule_is_found_exact_and_right():
    x = torch.tensor([1.0, 2.0, 3.0])
    weights = torch.tensor([[1.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
    scale = Argument(torch.ones(2), cells=torch.tensor([0, 1]))
    sample = WeightedSample({"scale": scale}, (Block(weights, x, torch.tensor([0, 1])),), num_rows=2)
    weighted_mle[Rayleigh](sample)
    torch.testing.assert_close(sample.proposals["scale"], torch.tensor([math.sqrt(2.5), math.sqrt(2.0)]))
    assert weighted_mle[Rayleigh].exact is True
    assert stationarity(sample, Rayleigh) < 1e-12
