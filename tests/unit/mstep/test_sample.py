"""The weighted sample against sums written out datum by datum."""

import pytest
import torch

from ppl_em.mstep import Argument, Block, NoClosedForm, WeightedSample


def gaussian_sample(per_row: bool, shift: float = 0.0, event: tuple[int, ...] = (), seed: int = 0):
    g = torch.Generator().manual_seed(seed)
    rows = torch.tensor([2, 0, 3])
    shape = (3, 40) if per_row else (40,)
    x = shift + torch.randn(*shape, *event, generator=g)
    blocks = (Block(torch.rand(3, 40, generator=g), x, rows),)
    blocks += (Block(torch.rand(1, 7, generator=g), shift + torch.randn(7, *event, generator=g), rows[:1]),)
    loc = Argument(shift + torch.randn(4, *event, generator=g), torch.arange(4))
    return WeightedSample({"loc": loc}, blocks, 4, len(event))


def brute_force(sample, statistic):
    """Σ w statistic(row, x), one pair at a time."""
    total = [0.0] * sample.num_rows
    for block in sample.blocks:
        for b, row in enumerate(block.rows.tolist()):
            data = block.values[b] if block.per_row(sample.event_dim) else block.values
            for w, x in zip(block.weights[b], data, strict=True):
                total[row] = total[row] + w * statistic(row, x)
    template = next(t for t in total if isinstance(t, torch.Tensor))
    return torch.stack([t if isinstance(t, torch.Tensor) else torch.zeros_like(template) for t in total])


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("event", [(), (3,)])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_moments_match_brute_force(per_row, event, shift):
    sample = gaussian_sample(per_row, shift, event)
    loc = sample.rows("loc")
    expected = brute_force(sample, lambda r, x: x - loc[r])
    torch.testing.assert_close(sample.residual(loc), expected, rtol=1e-9, atol=1e-8)
    expected = brute_force(sample, lambda r, x: (x - loc[r]) ** 2)
    torch.testing.assert_close(sample.deviation(loc), expected, rtol=1e-9, atol=1e-9)
    if event:
        expected = brute_force(sample, lambda r, x: torch.outer(x - loc[r], x - loc[r]))
        torch.testing.assert_close(sample.outer(loc), expected, rtol=1e-9, atol=1e-8)
    torch.testing.assert_close(sample.count(), brute_force(sample, lambda r, x: torch.tensor(1.0)))
    torch.testing.assert_close(sample.sum("exp", lambda x: (x - shift).exp()), brute_force(
        sample, lambda r, x: (x - shift).exp()
    ))  # fmt: skip


@pytest.mark.parametrize("per_row", [False, True])
def test_a_narrow_component_far_from_the_centre_keeps_its_variance(per_row):
    g = torch.Generator().manual_seed(1)
    offsets = torch.tensor([-1e6, 1e6])
    x = torch.cat([offset + 1e-2 * torch.randn(50, generator=g) for offset in offsets])
    weights = torch.zeros(2, 100)
    weights[0, :50], weights[1, 50:] = 1.0, 1.0
    x = x.expand(2, 100) if per_row else x
    sample = WeightedSample({"loc": Argument(offsets, torch.arange(2))}, (Block(weights, x, torch.arange(2)),), 2)
    deviation = sample.deviation(offsets)
    halves = x[0] if per_row else x
    expected = torch.stack([((h - o) ** 2).sum() for h, o in zip(halves.split(50), offsets, strict=True)])
    torch.testing.assert_close(deviation, expected, rtol=1e-9, atol=0.0)


def test_data_without_weight_may_hold_anything():
    x = torch.tensor([1.0, float("nan"), -float("inf"), 4.0])
    weights = torch.tensor([[1.0, 0.0, 0.0, 2.0], [0.5, 0.0, 0.0, 0.0]])
    rate = Argument(torch.ones(2), torch.arange(2))
    sample = WeightedSample({"rate": rate}, (Block(weights, x, torch.arange(2)),), 2)
    torch.testing.assert_close(sample.sum("log", torch.log), torch.tensor([2 * torch.tensor(4.0).log(), 0.0]))
    args = {"rate": torch.tensor([0.5, 2.0], requires_grad=True)}
    total = sample.log_likelihood(torch.distributions.Exponential, args)
    (gradient,) = torch.autograd.grad(total, args["rate"])
    torch.testing.assert_close(gradient, torch.tensor([3 / 0.5 - 9.0, 0.5 / 2 - 0.5]))


def test_dimensions_that_share_weights_equal_rows_of_their_own():
    g = torch.Generator().manual_seed(2)
    weights, x = torch.rand(3, 20, generator=g), torch.randn(20, 4, generator=g)
    rows = torch.arange(12).view(3, 4)
    loc = Argument(torch.randn(12, generator=g), torch.arange(12))
    wide = WeightedSample({"loc": loc}, (Block(weights, x, rows),), 12)
    blocks = tuple(Block(weights, x[:, d], rows[:, d]) for d in range(4))
    narrow = WeightedSample({"loc": loc}, blocks, 12)
    at = wide.rows("loc")
    for name in ("residual", "deviation"):
        torch.testing.assert_close(getattr(wide, name)(at), getattr(narrow, name)(at))
    torch.testing.assert_close(wide.count(), narrow.count())
    args = {"loc": at, "scale": torch.full((12,), 2.0)}
    torch.testing.assert_close(
        wide.log_likelihood(torch.distributions.Normal, args),
        narrow.log_likelihood(torch.distributions.Normal, args),
    )
    assert len(wide.flat()[0]) == 3 * 20 * 4


def test_histogram_counts_categories_in_every_block():
    values = torch.tensor([[0, 2, -1], [1, 1, 0]])
    weights = torch.tensor([[1.0, 2.0, 0.0], [0.5, 0.25, 4.0]])
    probs = Argument(torch.full((2, 3), 1 / 3), torch.arange(2))
    sample = WeightedSample({"probs": probs}, (Block(weights, values, torch.tensor([1, 0])),), 2)
    torch.testing.assert_close(sample.histogram(3), torch.tensor([[4.0, 0.75, 0.0], [1.0, 0.0, 2.0]]))


def test_equal_counts_are_merged_without_changing_the_likelihood():
    g = torch.Generator().manual_seed(3)
    x = torch.randint(0, 5, (200,), generator=g)
    rate = Argument(torch.tensor([1.0, 3.0]), torch.arange(2))
    sample = WeightedSample({"rate": rate}, (Block(torch.rand(2, 200, generator=g), x, torch.arange(2)),), 2)
    weights, values, row = sample.table()
    assert len(weights) == 10
    total = (weights * torch.distributions.Poisson(sample.rows("rate")[row]).log_prob(values)).sum()
    torch.testing.assert_close(total, sample.log_likelihood(torch.distributions.Poisson))


def test_fixed_elements_stay_and_disagreeing_ties_are_refused():
    pattern = torch.tensor([[0, 0, -1]])
    argument = Argument(torch.tensor([[1.0, 1.0, 9.0]]), torch.tensor([0]), pattern)
    block = Block(torch.ones(1, 2), torch.zeros(2, 3), torch.tensor([0]))
    sample = WeightedSample({"loc": argument}, (block,), 1, event_dim=1)
    sample.propose("loc", torch.tensor([[2.0, 2.0, 5.0]]))
    assert sample.proposals["loc"].tolist() == [[2.0, 2.0, 9.0]]
    with pytest.raises(NoClosedForm, match="tied"):
        sample.propose("loc", torch.tensor([[2.0, 3.0, 5.0]]))


def test_wrong_shapes_are_named():
    argument = Argument(torch.ones(2), torch.arange(2))
    with pytest.raises(ValueError, match="2 rows"):
        WeightedSample({"rate": Argument(torch.ones(3), torch.arange(3))}, (), 2)
    block = Block(torch.ones(2, 5), torch.ones(4), torch.arange(2))
    with pytest.raises(ValueError, match=r"values of shape \(4,\)"):
        WeightedSample({"rate": argument}, (block,), 2)
