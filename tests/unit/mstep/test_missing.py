"""Multivariate normals with missing elements: expected statistics by hand, ascent for any weights, stationary at the end."""

from __future__ import annotations

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_em.distributions.observed_normal import Patterns, observed_log_prob
from ppl_em.distributions.partly_observed import PartlyObservedNormal
from ppl_em.mstep import Argument, Block, WeightedSample, stationarity, weighted_mle
from ppl_em.mstep.missing import completed

NAMES = ("covariance_matrix", "scale_tril", "precision_matrix")


def holed(count: int = 40, size: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, size, generator=generator) @ torch.randn(size, size, generator=generator)
    x[torch.rand(count, size, generator=generator) < 0.3] = torch.nan
    return x


def sample_of(name: str, x: Tensor, weights: Tensor, tied: bool = False) -> WeightedSample:
    rows, size = weights.shape[0], x.shape[-1]
    generator = torch.Generator().manual_seed(9)
    loc = Argument(torch.randn(rows, size, generator=generator), torch.arange(rows))
    cells = torch.zeros(rows, dtype=torch.long) if tied else torch.arange(rows)
    matrix = Argument(torch.eye(size).repeat(rows, 1, 1), cells)
    return WeightedSample({"loc": loc, name: matrix}, (Block(weights, x, torch.arange(rows)),), rows, 1)


def again(sample: WeightedSample, name: str) -> WeightedSample:
    arguments = {n: Argument(sample.rows(n), a.cells, a.pattern) for n, a in sample.args.items()}
    return WeightedSample(arguments, sample.blocks, sample.num_rows, 1)


def test_expected_statistics_by_hand() -> None:
    x = holed(12)
    generator = torch.Generator().manual_seed(1)
    weights = torch.rand(2, 12, generator=generator)
    loc, factor = torch.randn(2, 3, generator=generator), torch.randn(2, 3, 3, generator=generator)
    covariance = factor @ factor.mT + torch.eye(3)
    found = completed(Block(weights, x, torch.arange(2)), loc, covariance)
    own = completed(Block(weights, x.expand(2, 12, 3), torch.arange(2)), loc, covariance)
    for r in range(2):
        first, second = torch.zeros(3), torch.zeros(3, 3)
        for i, row in enumerate(x):
            seen = ~row.isnan()
            gain = covariance[r][:, seen] @ torch.linalg.inv(covariance[r][seen][:, seen])
            mean = torch.where(seen, row, loc[r] + gain @ (row[seen] - loc[r][seen]))
            spread = covariance[r] - gain @ covariance[r][seen]
            first += weights[r, i] * mean
            second += weights[r, i] * (torch.outer(mean, mean) + spread)
        centre, count = found.centre[r], weights[r].sum()
        about = second - torch.outer(first, centre) - torch.outer(centre, first) + count * torch.outer(centre, centre)
        assert torch.allclose(found.first[r], first - count * centre, atol=1e-10)
        assert torch.allclose(found.products[r], about, atol=1e-10)
        assert torch.allclose(own.products[r], about, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("tied", [False, True])
def test_law_6_a_step_ascends_and_its_fixed_point_is_stationary(name: str, tied: bool) -> None:
    x = holed(25)
    weights = torch.rand(2, len(x), generator=torch.Generator().manual_seed(2))
    sample = sample_of(name, x, weights, tied)
    rule = weighted_mle[PartlyObservedNormal]
    last = float(sample.log_likelihood(PartlyObservedNormal))
    for _ in range(250):
        rule(sample)
        value = float(sample.log_likelihood(PartlyObservedNormal))
        assert value >= last - 1e-9 * (1 + abs(last))
        last = value
        sample = again(sample, name)
    rule(sample)
    assert stationarity(sample, PartlyObservedNormal) < 1e-6


@pytest.mark.parametrize("name", NAMES)
def test_complete_data_have_the_closed_form(name: str) -> None:
    x = holed().nan_to_num(0.3)
    weights = torch.rand(2, len(x), generator=torch.Generator().manual_seed(2))
    a, b = sample_of(name, x, weights), sample_of(name, x, weights)
    weighted_mle[PartlyObservedNormal](a)
    weighted_mle[dist.MultivariateNormal](b)
    for argument in a.proposals:
        assert torch.allclose(a.proposals[argument], b.proposals[argument], atol=1e-10)


def test_what_has_no_weight_may_hold_anything() -> None:
    x = holed()
    weights = torch.rand(2, len(x), generator=torch.Generator().manual_seed(2))
    weights[:, 5] = 0.0
    other = x.clone()
    other[5] = torch.tensor([torch.inf, torch.nan, 1e300])
    a, b = (sample_of("covariance_matrix", v, weights) for v in (x, other))
    for sample in (a, b):
        weighted_mle[PartlyObservedNormal](sample)
    for argument in a.proposals:
        assert torch.allclose(a.proposals[argument], b.proposals[argument], atol=1e-10)


@pytest.mark.parametrize("size", [3, 70])
def test_patterns_of_narrow_and_wide_vectors(size: int) -> None:
    x = holed(30, size)
    x = torch.cat([x, x])
    patterns = Patterns.of(x)
    assert sorted(torch.cat(patterns.members).tolist()) == list(range(60))
    for keep, members in zip(patterns.keep, patterns.members, strict=True):
        assert torch.equal(~x[members].isnan(), keep.expand(len(members), -1)) and len(members) % 2 == 0
    score = observed_log_prob(torch.zeros(size), torch.eye(size), x)
    alone = dist.Normal(0.0, 1.0).log_prob(x.nan_to_num()).where(~x.isnan(), 0.0)
    assert torch.allclose(score, alone.sum(-1))
