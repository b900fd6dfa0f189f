"""Families made of others: mixtures, masked mixtures and transformed distributions through their parts' rules."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import AffineTransform, ExpTransform, constraints

from ppl_em.distributions.compound import MaskedPair, MixtureOf, TransformedOf
from ppl_em.mstep import Argument, Block, WeightedSample, stationarity, weighted_mle
from ppl_em.trace.compounds import compound_parts

K = 2


def sample_of(fn: object, x: Tensor, weights: Tensor, event_dim: int = 0) -> tuple[type, WeightedSample]:
    """The weighted sample of one row, every argument free but masks and transforms."""
    found = compound_parts(fn)
    assert found is not None
    family, tensors, _ = found
    arguments = {}
    for n, t in tensors.items():
        held = n == "mask" or n.startswith("transform")
        arguments[n] = Argument(t[None].double(), None if held else torch.zeros(1, dtype=torch.long))
    return family, WeightedSample(arguments, (Block(weights[None], x, torch.tensor([0])),), 1, event_dim)


def by_hand(x: Tensor, weights: Tensor, w: Tensor, loc: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
    """Weighted EM for a mixture of diagonal normals, written out: x (N, D), loc and scale (K, D)."""
    for _ in range(3000):
        r = weights[:, None] * (w.log() + dist.Normal(loc, scale).log_prob(x[:, None]).sum(-1)).softmax(-1)
        n = r.sum(0)
        loc = r.mT @ x / n[:, None]
        scale = ((r[..., None] * (x[:, None] - loc).square()).sum(0) / n[:, None]).sqrt()
        w = n / n.sum()
    return w, loc, scale


def test_a_mixture_of_diagonal_normals_is_weighted_em_run_to_its_end() -> None:
    x = torch.cat([torch.randn(60, 3), 3 + 0.5 * torch.randn(40, 3)])
    weights = torch.rand(100) * (torch.rand(100) > 0.2)
    w, loc, scale = torch.tensor([0.5, 0.5]), torch.tensor([[0.0] * 3, [2.0] * 3]), torch.ones(K, 3)
    component = dist.Normal(loc, scale).to_event(1)
    family, sample = sample_of(dist.MixtureSameFamily(dist.Categorical(w), component), x, weights, 1)
    assert issubclass(family, MixtureOf) and weighted_mle[family].exact == "newton"
    weighted_mle[family](sample)
    wanted = by_hand(x, weights, w, loc, scale)
    for name, value in zip(("mixture_probs", "component_loc", "component_scale"), wanted, strict=True):
        torch.testing.assert_close(sample.proposals[name][0], value, atol=1e-8, rtol=0)
    assert stationarity(sample, family) < 1e-8


def test_a_mixture_of_multivariate_normals_ascends_to_a_stationary_point() -> None:
    """Matrices have no elementwise coordinates: inner EM runs on until it gains nothing."""
    root = torch.tensor([[1.0, 0.4], [0.0, 0.7]])
    x = torch.cat([torch.randn(80, 2) @ root, 5 + torch.randn(60, 2) @ root.mT])
    component = dist.MultivariateNormal(torch.tensor([[0.0, 0.0], [4.0, 4.0]]), torch.eye(2).expand(K, 2, 2))
    fn = dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.4, 0.6])), component)
    family, sample = sample_of(fn, x, torch.rand(140), 1)
    before = float(sample.log_likelihood(family))
    weighted_mle[family](sample)
    assert float(sample.log_likelihood(family)) > before
    assert stationarity(sample, family) < 1e-6


def test_masked_mixtures_fit_each_side_by_itself() -> None:
    x = 0.1 + torch.rand(90)
    weights, mask = torch.rand(90), torch.rand(90) > 0.4
    fn = dist.MaskedMixture(mask, dist.Exponential(torch.tensor(1.0)), dist.Gamma(torch.tensor(2.0), torch.tensor(2.0)))
    found = compound_parts(fn)
    assert found is not None and issubclass(found[0], MaskedPair)
    rows = torch.zeros(90, dtype=torch.long)
    arguments = {n: Argument(t.double().expand(90), None if n == "mask" else rows) for n, t in found[1].items()}
    sample = WeightedSample(arguments, (Block(weights[:, None], x[:, None], torch.arange(90)),), 90)
    weighted_mle[found[0]](sample)
    w0 = weights * ~mask
    assert float(sample.proposals["component0_rate"]) == pytest.approx(float(w0.sum() / (w0 @ x)), rel=1e-12)
    one = Block((weights * mask)[None], x, torch.tensor([0]))
    alone = {n: Argument(torch.tensor([2.0]), torch.tensor([0])) for n in ("concentration", "rate")}
    other = WeightedSample(alone, (one,), 1)
    weighted_mle[dist.Gamma](other)
    for n in alone:
        torch.testing.assert_close(sample.proposals[f"component1_{n}"], other.proposals[n], rtol=1e-9, atol=0)
    assert stationarity(sample, found[0]) < 1e-8


@pytest.mark.parametrize("event", [0, 1])
def test_transformed_normals_are_normals_of_the_preimage(event: int) -> None:
    z = torch.randn(70, 2) * 0.5 + 1
    transforms = [AffineTransform(0.5, 2.0), ExpTransform(), AffineTransform(torch.tensor(3.0), torch.tensor(2.0))]
    x = z
    for t in transforms:
        x = t(x)
    base = dist.Normal(torch.zeros(2), torch.ones(2)).to_event(1)
    x, base = (x, base) if event else (x[:, 0], dist.Normal(torch.tensor(0.0), torch.tensor(1.0)))
    weights = torch.rand(70)
    fn = dist.TransformedDistribution(base, transforms)
    family, sample = sample_of(fn, x, weights, event)
    assert issubclass(family, TransformedOf) and weighted_mle[family].exact is True
    weighted_mle[family](sample)
    mean = (weights @ z) / weights.sum()
    wanted = mean if event else mean[0]
    torch.testing.assert_close(sample.proposals["base_loc"][0], wanted, atol=1e-12, rtol=0)
    assert stationarity(sample, family) < 1e-8
    expected = (weights * fn.log_prob(x)).sum()
    current = {n: a.value for n, a in sample.args.items()}
    torch.testing.assert_close(sample.log_likelihood(family, current), expected)


def test_parts_without_a_rule_have_none_together() -> None:
    class Odd(dist.Normal):
        arg_constraints = {"loc": constraints.real, "scale": constraints.positive}

    mixture = dist.Categorical(torch.tensor([0.5, 0.5]))
    known = compound_parts(dist.MixtureSameFamily(mixture, Odd(torch.zeros(2), torch.ones(2))))
    unknown = compound_parts(dist.MixtureSameFamily(mixture, dist.Kumaraswamy(torch.ones(2), torch.ones(2))))
    assert known is not None and known[0] in weighted_mle  # a subclass inherits the rule
    assert unknown is None or unknown[0] not in weighted_mle


PROGRAMS = {
    "mixture": lambda w: dist.MixtureSameFamily(dist.Categorical(w), dist.Normal(torch.arange(2.0), 1.0)),
    "mixture of vectors": lambda w: dist.MixtureSameFamily(
        dist.Categorical(w), dist.Normal(torch.zeros(2, 3), torch.ones(3)).to_event(1)
    ),
    "masked": lambda w: dist.MaskedMixture(w > 0.5, dist.Normal(0.0, 1.0), dist.Normal(2.0, 3.0)),
    "transformed": lambda w: dist.TransformedDistribution(dist.Normal(w[0], 1.0), [ExpTransform()]),
    "transformed vector": lambda w: dist.TransformedDistribution(
        dist.Normal(w, 1.0).to_event(1), [AffineTransform(1.0, 2.0)]
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_family_scores_and_draws_as_the_distribution(name: str) -> None:
    fn = PROGRAMS[name](torch.tensor([0.3, 0.7]))
    found = compound_parts(fn)
    assert found is not None
    family, tensors, _ = found
    rebuilt = family(**tensors)
    x = fn.sample((50,))
    torch.testing.assert_close(rebuilt.log_prob(x), fn.log_prob(x))
    draws, own = rebuilt.sample((20_000,)), fn.sample((20_000,))
    assert draws.shape == own.shape
    torch.testing.assert_close(draws.median(0).values, own.median(0).values, atol=0.1, rtol=0.1)
