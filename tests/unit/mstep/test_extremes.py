"""Numbers at the edge: shifted data, probabilities of zero and one, equal data, no data at all."""

import pyro.distributions as dist
import pytest
import torch

from ppl_em.mstep import Argument, Block, WeightedSample, stationarity, weighted_mle


def sample_of(x, weights=None, event_dim=0, dtype=torch.float64, **args):
    rows = len(next(iter(args.values())))
    weights = torch.ones(rows, len(x), dtype=dtype) if weights is None else weights
    arguments = {n: Argument(torch.as_tensor(v, dtype=dtype), torch.arange(rows)) for n, v in args.items()}
    return WeightedSample(arguments, (Block(weights, x, torch.arange(rows)),), rows, event_dim)


@pytest.mark.parametrize("family", [dist.Normal, dist.Laplace, dist.Logistic, dist.StudentT, dist.Gumbel])
def test_location_families_follow_a_shift(family):
    g = torch.Generator().manual_seed(0)
    x, weights = torch.randn(60, generator=g), torch.rand(2, 60, generator=g)
    more = {"df": [3.0, 3.0]} if family is dist.StudentT else {}
    fits = []
    for shift in (0.0, 1e6):
        sample = sample_of(x + shift, weights, loc=[shift, shift + 1], scale=[1.0, 2.0], **more)
        weighted_mle[family](sample)
        fits.append({name: value - shift * (name == "loc") for name, value in sample.proposals.items()})
    for name, value in fits[0].items():
        torch.testing.assert_close(fits[1][name], value, rtol=1e-6, atol=1e-6)


def test_a_multivariate_normal_follows_a_shift():
    g = torch.Generator().manual_seed(1)
    x, weights = torch.randn(60, 3, generator=g), torch.rand(1, 60, generator=g)
    shift = torch.tensor([1e6, -1e6, 0.0])
    eye = torch.eye(3)[None]
    plain = sample_of(x, weights, 1, loc=torch.zeros(1, 3), covariance_matrix=eye)
    moved = sample_of(x + shift, weights, 1, loc=torch.zeros(1, 3), covariance_matrix=eye)
    for sample in (plain, moved):
        weighted_mle[dist.MultivariateNormal](sample)
    torch.testing.assert_close(moved.proposals["loc"] - shift, plain.proposals["loc"], rtol=0, atol=1e-9)
    torch.testing.assert_close(
        moved.proposals["covariance_matrix"], plain.proposals["covariance_matrix"], rtol=1e-8, atol=1e-9
    )


@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("name", ["probs", "logits"])
def test_a_probability_may_reach_zero_or_one(value, name):
    sample = sample_of(torch.full((5,), value), **{name: [0.3]})
    weighted_mle[dist.Bernoulli](sample)
    fitted = sample.proposals[name]
    assert bool(fitted.isfinite().all())
    assert float(fitted if name == "probs" else fitted.sigmoid()) == pytest.approx(value, abs=1e-300)
    assert stationarity(sample, dist.Bernoulli) < 1e-12


@pytest.mark.parametrize("name", ["probs", "logits"])
def test_a_category_may_vanish(name):
    sample = sample_of(torch.tensor([0, 2, 2]), **{name: [[0.3, 0.3, 0.4]]})
    weighted_mle[dist.Categorical](sample)
    fitted = sample.proposals[name]
    assert bool(fitted.isfinite().all())
    probs = fitted if name == "probs" else fitted.softmax(-1)
    torch.testing.assert_close(probs, torch.tensor([[1 / 3, 0.0, 2 / 3]]))
    assert stationarity(sample, dist.Categorical) < 1e-12


def test_a_wrong_zero_is_refused():
    sample = sample_of(torch.tensor([0.0, 1.0]), probs=[0.5])
    sample.propose("probs", torch.tensor([0.0]))
    assert stationarity(sample, dist.Bernoulli) > 0.1
    sample = sample_of(torch.tensor([0, 1, 2]), probs=[[0.3, 0.3, 0.4]])
    sample.propose("probs", torch.tensor([[0.0, 0.5, 0.5]]))
    assert stationarity(sample, dist.Categorical) > 0.1


def test_no_events_at_all():
    sample = sample_of(torch.zeros(4), rate=[2.0])
    weighted_mle[dist.Poisson](sample)
    assert float(sample.proposals["rate"]) == 0.0
    assert stationarity(sample, dist.Poisson) < 1e-12


@pytest.mark.parametrize(
    ("family", "args"),
    [
        (dist.Normal, {"loc": [0.0], "scale": [1.0]}),
        (dist.Laplace, {"loc": [0.0], "scale": [1.0]}),
        (dist.Gamma, {"concentration": [1.0], "rate": [1.0]}),
        (dist.Weibull, {"scale": [1.0], "concentration": [1.0]}),
        (dist.LogNormal, {"loc": [0.0], "scale": [1.0]}),
        (dist.VonMises, {"loc": [0.0], "concentration": [1.0]}),
        (dist.StudentT, {"df": [3.0], "loc": [0.0], "scale": [1.0]}),
        (dist.Beta, {"concentration1": [1.0], "concentration0": [1.0]}),
    ],
)
def test_equal_data_keep_the_numbers_finite(family, args):
    sample = sample_of(torch.full((6,), 0.75), **args)
    weighted_mle[family](sample)
    for value in sample.proposals.values():
        assert bool(value.isfinite().all())


def test_fewer_data_than_dimensions_keep_a_valid_precision():
    x = torch.randn(3, 5, generator=torch.Generator().manual_seed(2))
    for name in ("precision_matrix", "scale_tril", "covariance_matrix"):
        sample = sample_of(x, event_dim=1, loc=torch.zeros(1, 5), **{name: torch.eye(5)[None]})
        weighted_mle[dist.MultivariateNormal](sample)
        assert bool(torch.isfinite(sample.log_likelihood(dist.MultivariateNormal)))


def test_counts_without_excess_spread_stop_at_the_ceiling():
    x = torch.tensor([2.0, 3.0, 2.0, 3.0, 2.0])
    sample = sample_of(x, total_count=[2.0], probs=[0.5])
    weighted_mle[dist.NegativeBinomial](sample)
    assert float(sample.proposals["total_count"]) == pytest.approx(1e5)
    assert stationarity(sample, dist.NegativeBinomial) < 1e-8
    poisson = torch.distributions.Poisson(x.mean()).log_prob(x).sum()
    assert float(sample.log_likelihood(dist.NegativeBinomial)) == pytest.approx(float(poisson), abs=1e-3)


def test_light_cells_are_fitted_as_well_as_heavy_ones():
    g = torch.Generator().manual_seed(3)
    x = torch.randn(50, generator=g)
    weights = torch.rand(2, 50, generator=g) * torch.tensor([[1.0], [1e-12]])
    for family in (dist.Normal, dist.Laplace, dist.Logistic):
        sample = sample_of(x, weights, loc=[0.0, 0.0], scale=[1.0, 1.0])
        weighted_mle[family](sample)
        assert stationarity(sample, family) < 1e-8


def test_float32_sums_do_not_lose_a_million_small_terms():
    x = torch.ones(1_000_000, dtype=torch.float32) * 0.1
    sample = sample_of(x, dtype=torch.float32, loc=[0.0], scale=[1.0])
    weighted_mle[dist.Normal](sample)
    assert float(sample.proposals["loc"]) == pytest.approx(float(x[0].double()), rel=1e-12)
