"""Chains at the edge: impossible states and sequences, huge ranges, forced orders, no numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppl_em.exact.chain_queries import entropy, filtered, k_best, pairwise, pairwise_between, viterbi
from ppl_em.exact.chain_reference import generic_log_z
from ppl_em.exact.forward_backward import chain_log_z, expected_counts
from tests.tolerances import BRUTE_FORCE
from tests.unit.exact.chains import TRANS, brute_force, one_by_one, random_chain

INF = torch.inf


def assert_equals_enumeration(factors: tuple[Tensor, Tensor, Tensor]) -> None:
    """Log Z, counts, gradients and queries of every chain of the batch."""
    oracle = [brute_force(*chain) for chain in one_by_one(factors)]
    batch, (steps, states) = factors[2].shape[:-2], factors[2].shape[-2:]
    log_z = torch.stack([z for z, _, _ in oracle]).reshape(batch)
    gamma = torch.stack([g for _, g, _ in oracle]).reshape(*batch, steps, states)
    pairs = torch.stack([x for _, _, x in oracle]).reshape(*batch, steps - 1, states, states)
    counts = expected_counts(*factors)
    torch.testing.assert_close(counts.log_z, log_z, atol=BRUTE_FORCE, rtol=1e-14)
    torch.testing.assert_close(counts.gamma, gamma, atol=BRUTE_FORCE, rtol=0)
    torch.testing.assert_close(generic_log_z(*factors), log_z, atol=BRUTE_FORCE, rtol=1e-14)
    torch.testing.assert_close(pairwise(*factors), pairs, atol=BRUTE_FORCE, rtol=0)
    leaves = [factor.clone().requires_grad_() for factor in factors]
    grads = torch.autograd.grad(chain_log_z(*leaves).sum(), leaves)
    slow = torch.autograd.grad(generic_log_z(*leaves).sum(), leaves, materialize_grads=True)
    torch.testing.assert_close(grads[2], gamma, atol=BRUTE_FORCE, rtol=0)
    torch.testing.assert_close(grads[0], gamma[..., 0, :].sum_to_size(factors[0].shape), atol=BRUTE_FORCE, rtol=0)
    torch.testing.assert_close(grads[1], counts.xi, atol=BRUTE_FORCE, rtol=0)
    for fast, plain in zip(grads, slow, strict=True):
        torch.testing.assert_close(fast, plain, atol=BRUTE_FORCE, rtol=0)
    possible = log_z > -INF
    assert (viterbi(*factors)[1].isfinite() == possible).all()
    assert (entropy(*factors)[~possible] == 0).all() and entropy(*factors).isfinite().all()


@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("magnitude", [1e2, 1e3, 1e5])
def test_densities_of_any_range(trans: str, magnitude: float) -> None:
    for _ in range(2):
        init, log_trans, obs = random_chain((2, 3), 5, 3, trans)
        obs = -magnitude * torch.randint(0, 3, obs.shape) + torch.randn(obs.shape)
        assert_equals_enumeration((init, log_trans, obs))


@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("magnitude", [1.0, 300.0, 1e5])
@pytest.mark.parametrize("zeros", [0.3, 0.6])
def test_impossible_transitions(trans: str, magnitude: float, zeros: float) -> None:
    for _ in range(3):
        init, log_trans, obs = random_chain((2, 3), 5, 3, trans)
        log_trans = log_trans.masked_fill(torch.rand(log_trans.shape) < zeros, -INF)
        obs = -magnitude * torch.randint(0, 3, obs.shape) + torch.randn(obs.shape)
        assert_equals_enumeration((init, log_trans, obs))


def test_a_path_that_falls_behind_and_comes_back() -> None:
    """States that never mix: the path ahead at first loses, by more than any float can hold."""
    trans = torch.eye(2).log()
    behind = torch.tensor([[-800.0, 0.0], [0.0, -300.0], [0.0, -300.0], [0.0, -300.0], [0.0, -300.0]])
    swing = torch.tensor([[-800.0, 0.0], [0.0, -900.0], [0.0, -900.0], [-700.0, 0.0], [0.0, 0.0]])
    rare = torch.tensor([[1.0, 1e-200], [1e-200, 1.0]]).log()
    for obs in (behind, swing):
        for log_trans in (trans, rare):
            assert_equals_enumeration((torch.zeros(2), log_trans, obs.unsqueeze(0)))


@pytest.mark.parametrize("trans", TRANS)
def test_impossible_states_and_sequences(trans: str) -> None:
    init, log_trans, obs = random_chain((2, 3), 5, 3, trans)
    obs[0, 0, 2] = -INF
    obs[0, 1, 0] = -INF
    obs[1, 0, 4] = -INF
    obs[1, 1, 1:3, :2] = -INF
    init[1, 2] = -INF
    init[0, 2, 1:] = -INF
    assert_equals_enumeration((init, log_trans, obs))


def test_left_to_right_chain() -> None:
    trans = torch.tensor([[0.6, 0.4, 0.0], [0.0, 0.7, 0.3], [0.0, 0.0, 1.0]]).log()
    init = torch.tensor([1.0, 0.0, 0.0]).log()
    assert_equals_enumeration((init.expand(4, 3), trans, 3 * torch.randn(4, 6, 3)))
    long = expected_counts(init, trans, 30 * torch.randn(2, 400, 3))
    assert long.xi[1, 0] == 0 and long.xi[2, 1] == 0
    torch.testing.assert_close(long.xi.sum(), torch.tensor(2 * 399.0))
    torch.testing.assert_close(long.gamma.sum(-1), torch.ones(2, 400))


@pytest.mark.parametrize(("steps", "states"), [(1, 1), (2, 1), (1, 4), (2, 4)])
def test_smallest_chains(steps: int, states: int) -> None:
    for trans in ("shared", "all"):
        assert_equals_enumeration(random_chain((3,), steps, states, trans))


@pytest.mark.parametrize("batch", [(0,), (2, 0), (0, 3)])
def test_no_chains(batch: tuple[int, ...]) -> None:
    init, trans, obs = random_chain(batch, 4, 3, "shared")
    counts = expected_counts(init, trans, obs)
    assert counts.log_z.shape == batch and counts.gamma.shape == (*batch, 4, 3)
    assert torch.equal(counts.xi, torch.zeros(3, 3))
    assert viterbi(init, trans, obs)[0].shape == (*batch, 4)
    assert k_best(init, trans, obs, 2)[0].shape == (*batch, 2, 4)
    assert filtered(init, trans, obs).shape == (*batch, 4, 3)
    assert pairwise_between(init, trans, obs, 0, 2).shape == (*batch, 3, 3)
    assert entropy(init, trans, obs).shape == batch
    leaves = [factor.requires_grad_() for factor in (init, trans, obs)]
    grads = torch.autograd.grad(chain_log_z(*leaves).sum(), leaves)
    assert torch.equal(grads[1], torch.zeros(3, 3))


def test_second_derivatives_next_to_impossible_states() -> None:
    init, trans, obs = random_chain((2,), 4, 3, "shared")
    trans[0, 1] = -INF
    obs[0, 1, 2] = -INF
    obs[1, 2] = -INF
    trans.requires_grad_()
    (first,) = torch.autograd.grad(chain_log_z(init, trans, obs)[0], trans, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), trans)
    assert second.isfinite().all() and second.abs().sum() > 0
    (nothing,) = torch.autograd.grad(chain_log_z(init, trans, obs)[1], trans)
    assert torch.equal(nothing, torch.zeros(3, 3))


def test_not_a_number_stays_one() -> None:
    """A fault of the caller is not turned into a number; other chains are not touched by it."""
    for trans in ("shared", "all"):
        init, log_trans, obs = random_chain((3,), 5, 3, trans)
        clean = expected_counts(init, log_trans, obs)
        obs[1, 2, 0] = torch.nan
        counts = expected_counts(init, log_trans, obs)
        assert counts.log_z[1].isnan()
        torch.testing.assert_close(counts.log_z[[0, 2]], clean.log_z[[0, 2]])
        torch.testing.assert_close(counts.gamma[[0, 2]], clean.gamma[[0, 2]])
        assert generic_log_z(init, log_trans, obs)[1].isnan()


def test_second_derivative_of_a_single_step() -> None:
    leaves = [factor.requires_grad_() for factor in random_chain((), 1, 3, "shared")]
    grads = torch.autograd.grad(chain_log_z(*leaves), leaves, create_graph=True)
    second = torch.autograd.grad(grads[2].square().sum(), leaves, materialize_grads=True)
    torch.testing.assert_close(second[0], second[2][0])
    assert second[2].abs().sum() > 0 and torch.equal(second[1], torch.zeros(3, 3))
