"""Ties, zeros and fixed elements inside vectors and matrices are kept, at the maximum given them."""

import pyro.distributions as dist
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_em.mstep import Argument, Block, NoClosedForm, WeightedSample, stationarity, weighted_mle

D, ROWS = 4, 3
FULL = torch.arange(D * D).view(D, D)
FULL = torch.minimum(FULL, FULL.mT)


def diagonal(numbers):
    return torch.diag_embed(numbers + 1) - 1


STRUCTURES = {
    "symmetric": torch.stack([FULL, FULL + D * D, FULL + 2 * D * D]),
    "block": torch.where(
        torch.block_diag(torch.ones(2, 2), torch.ones(2, 2)) > 0,
        torch.stack([FULL, FULL + 50, FULL + 99]),
        -1,
    ),
    "diagonal": diagonal(torch.arange(ROWS * D).view(ROWS, D)),
    "isotropic": diagonal(torch.arange(ROWS)[:, None].expand(ROWS, D)),
    "one diagonal for all": diagonal(torch.arange(D).expand(ROWS, D)),
    "one variance for all": diagonal(torch.zeros(ROWS, D, dtype=torch.long)),
    "first variance fixed": diagonal(torch.tensor([-1, 0, 0, 1]).expand(ROWS, D)),
}
LOCATIONS = {
    "free": None,
    "an element for all": torch.tensor([[0, 1, 2, 9], [3, 4, 5, 9], [6, 7, 8, 9]]),
    "fixed elements": torch.tensor([[-1, 0, 1, 2], [3, 3, -1, -1], [4, 5, 6, 7]]),
}


def gaussian(structure, location, name, seed):
    g = torch.Generator().manual_seed(seed)
    pattern = STRUCTURES[structure]
    factor = torch.randn(D, D, generator=g)
    start = factor @ factor.mT + D * torch.eye(D)
    start = torch.where(pattern >= 0, start, 0.0)
    if pattern.unique().numel() < ROWS * D + 1 and structure not in ("symmetric", "block"):
        start = torch.eye(D).expand(ROWS, D, D)
    if name == "precision_matrix":
        start = torch.linalg.inv(start)
    elif name == "scale_tril":
        start = torch.linalg.cholesky(start)
        pattern = torch.where(torch.ones(D, D).tril() > 0, pattern, -1)
    loc = torch.randn(ROWS, D, generator=g)
    where = LOCATIONS[location]
    if where is not None:
        free = where >= 0
        loc[free] = torch.randn(10, generator=g)[where[free]]
    args = {
        "loc": Argument(loc, torch.arange(ROWS), where),
        name: Argument(start, torch.arange(ROWS), pattern),
    }
    x = torch.randn(50, D, generator=g) @ factor + 2.0
    block = Block(torch.rand(ROWS, 50, generator=g), x, torch.arange(ROWS))
    return WeightedSample(args, (block,), ROWS, event_dim=1)


@pytest.mark.parametrize("name", ["covariance_matrix", "precision_matrix", "scale_tril"])
@pytest.mark.parametrize("structure", STRUCTURES)
@settings(max_examples=4)
@given(seed=st.integers(0, 10**6), location=st.sampled_from(sorted(LOCATIONS)))
def test_gaussian_structures(structure, name, seed, location):
    sample = gaussian(structure, location, name, seed)
    before = float(sample.log_likelihood(dist.MultivariateNormal))
    weighted_mle[dist.MultivariateNormal](sample)
    assert float(sample.log_likelihood(dist.MultivariateNormal)) >= before
    assert stationarity(sample, dist.MultivariateNormal) < 1e-8
    fixed = sample.args[name].pattern < 0
    assert torch.equal(sample.proposals[name][fixed], sample.args[name].value[fixed])


def test_a_sparse_covariance_has_no_closed_form():
    sample = gaussian("symmetric", "free", "covariance_matrix", 0)
    pattern = STRUCTURES["symmetric"].clone()
    pattern[:, 0, 3] = pattern[:, 3, 0] = -1  # 0 – 1 – 3 stay linked
    value = sample.args["covariance_matrix"].value.clone()
    value[:, 0, 3] = value[:, 3, 0] = 0.0
    args = {**sample.args, "covariance_matrix": Argument(value, torch.arange(ROWS), pattern)}
    with pytest.raises(NoClosedForm, match="full, a block nor a diagonal"):
        weighted_mle[dist.MultivariateNormal](WeightedSample(args, sample.blocks, ROWS, event_dim=1))


def categorical(name, value, pattern, seed=0, size=200):
    g = torch.Generator().manual_seed(seed)
    rows, num = len(value), value.shape[-1]
    allowed = (pattern >= 0) | (value > 0 if name == "probs" else value.isfinite())
    x = torch.multinomial(allowed[0].double(), size, True, generator=g)
    assert int(x.max()) < num
    weights = torch.rand(rows, size, generator=g) * allowed[:, x]
    argument = Argument(value, torch.arange(rows), pattern)
    return WeightedSample({name: argument}, (Block(weights, x, torch.arange(rows)),), rows)


def test_forbidden_transitions_stay_at_zero():
    value = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.2, 0.0, 0.4, 0.4]])
    pattern = torch.where(value > 0, torch.arange(8).view(2, 4), -1)
    sample = categorical("probs", value, pattern)
    weighted_mle[dist.Categorical](sample)
    probs = sample.proposals["probs"]
    assert bool((probs[pattern < 0] == 0).all())
    torch.testing.assert_close(probs.sum(-1), torch.ones(2))
    torch.testing.assert_close(probs, sample.histogram(4) / sample.count()[:, None])
    assert stationarity(sample, dist.Categorical) < 1e-12


def test_forbidden_transitions_as_logits():
    value = torch.tensor([[0.1, 0.5, -torch.inf], [0.2, 0.0, 0.4]])
    pattern = torch.where(value.isfinite(), torch.arange(6).view(2, 3), -1)
    sample = categorical("logits", value, pattern)
    weighted_mle[dist.Categorical](sample)
    assert float(sample.proposals["logits"][0, 2]) == -torch.inf
    torch.testing.assert_close(sample.proposals["logits"].softmax(-1), sample.histogram(3) / sample.count()[:, None])


def test_tied_probabilities_share_their_count():
    value = torch.tensor([[0.3, 0.3, 0.4]])
    sample = categorical("probs", value, torch.tensor([[0, 0, 1]]))
    weighted_mle[dist.Categorical](sample)
    counts = sample.histogram(3)[0]
    a = float((counts[0] + counts[1]) / 2 / counts.sum())
    torch.testing.assert_close(sample.proposals["probs"], torch.tensor([[a, a, 1 - 2 * a]]))
    assert stationarity(sample, dist.Categorical) < 1e-12


def test_logits_with_a_reference_category():
    value = torch.tensor([[0.7, 0.1, 0.2]])
    sample = categorical("logits", value, torch.tensor([[-1, 0, 1]]))
    weighted_mle[dist.Categorical](sample)
    logits = sample.proposals["logits"]
    assert float(logits[0, 0]) == 0.7
    torch.testing.assert_close(logits.softmax(-1), sample.histogram(3) / sample.count()[:, None])
    assert stationarity(sample, dist.Categorical) < 1e-12


def test_a_probability_shared_by_two_distributions_has_no_closed_form():
    value = torch.tensor([[0.5, 0.5], [0.5, 0.5]])
    with pytest.raises(NoClosedForm, match="several distributions"):
        weighted_mle[dist.Categorical](categorical("probs", value, torch.tensor([[0, 1], [0, 2]])))


def test_a_pareto_beyond_its_data_is_impossible():
    block = Block(torch.ones(1, 2), torch.tensor([1.0, 2.0]), torch.tensor([0]))
    args = {"scale": Argument(torch.tensor([1.5])), "alpha": Argument(torch.tensor([1.0]), torch.tensor([0]))}
    assert float(WeightedSample(args, (block,), 1).log_likelihood(dist.Pareto)) == -torch.inf


def test_a_dirichlet_with_tied_and_fixed_elements():
    g = torch.Generator().manual_seed(0)
    x = torch.rand(80, 4, generator=g)
    x = x / x.sum(-1, keepdim=True)
    pattern = torch.tensor([[0, 0, -1, 1], [2, 0, -1, -1]])
    concentration = Argument(torch.ones(2, 4), torch.arange(2), pattern)
    block = Block(torch.rand(2, 80, generator=g), x, torch.arange(2))
    sample = WeightedSample({"concentration": concentration}, (block,), 2, event_dim=1)
    weighted_mle[dist.Dirichlet](sample)
    value = sample.proposals["concentration"]
    assert bool((value[pattern < 0] == 1).all())
    assert value[0, 0] == value[0, 1] == value[1, 1]
    assert stationarity(sample, dist.Dirichlet) < 1e-8
