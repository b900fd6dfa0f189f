"""Log Z and expected counts of chains against enumeration of all paths, and the laws of forward–backward."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from ppl_em.errors import DataError
from ppl_em.exact.chain_reference import generic_log_z
from ppl_em.exact.forward_backward import chain_log_z, expected_counts
from tests.tolerances import BRUTE_FORCE, GRADIENT
from tests.unit.exact.chains import TRANS, brute_force, one_by_one, random_chain


@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("batch", [(), (1,), (5,), (2, 3)])
@pytest.mark.parametrize(("steps", "states"), [(1, 3), (2, 1), (2, 2), (5, 3), (4, 4)])
def test_counts_equal_enumeration(trans: str, batch: tuple[int, ...], steps: int, states: int) -> None:
    factors = random_chain(batch, steps, states, trans)
    counts = expected_counts(*factors)
    oracle = [brute_force(*chain) for chain in one_by_one(factors)]
    log_z = torch.stack([z for z, _, _ in oracle]).reshape(batch)
    gamma = torch.stack([g for _, g, _ in oracle]).reshape(*batch, steps, states)
    pairs = torch.stack([x for _, _, x in oracle]).reshape(*batch, steps - 1, states, states)
    xi = torch.zeros_like(factors[1])
    if steps > 1:
        xi = pairs.sum(tuple(range(pairs.dim() - 2))) if trans == "shared" else xi
        xi = pairs.sum(-3, keepdim=True) if trans == "chains" else xi
        xi = pairs.sum_to_size(factors[1].shape) if trans not in ("shared", "chains") else xi
    torch.testing.assert_close(counts.log_z, log_z, atol=BRUTE_FORCE, rtol=0)
    torch.testing.assert_close(counts.gamma, gamma, atol=BRUTE_FORCE, rtol=0)
    torch.testing.assert_close(counts.xi, xi, atol=BRUTE_FORCE, rtol=0)
    torch.testing.assert_close(chain_log_z(*factors), log_z, atol=BRUTE_FORCE, rtol=0)
    torch.testing.assert_close(generic_log_z(*factors), log_z, atol=BRUTE_FORCE, rtol=0)


def test_batch_dimensions_broadcast() -> None:
    init, trans, obs = torch.randn(3), torch.randn(4, 1, 1, 3, 3), torch.randn(6, 5, 3)
    counts = expected_counts(init, trans, obs)
    assert counts.log_z.shape == (4, 6) and counts.gamma.shape == (4, 6, 5, 3) and counts.xi.shape == trans.shape
    for i, j in itertools.product(range(4), range(6)):
        single = expected_counts(init, trans[i, 0, 0], obs[j])
        torch.testing.assert_close(counts.log_z[i, j], single.log_z, atol=BRUTE_FORCE, rtol=0)
        torch.testing.assert_close(counts.gamma[i, j], single.gamma, atol=BRUTE_FORCE, rtol=0)


@pytest.mark.parametrize("trans", TRANS)
def test_transitions_into_dead_steps_do_not_count(trans: str) -> None:
    init, log_trans, obs = random_chain((2, 4), 7, 3, trans)
    log_trans = log_trans.log_softmax(-1)
    alive = torch.arange(7) < torch.tensor([[7, 3, 1, 5], [2, 7, 4, 6]]).unsqueeze(-1)
    obs = obs.masked_fill(~alive.unsqueeze(-1), 0.0)
    counts = expected_counts(init, log_trans, obs, alive)
    xi = torch.zeros_like(log_trans)
    full = log_trans.expand(2, 4, 6, 3, 3)
    for i, j in itertools.product(range(2), range(4)):
        length = int(alive[i, j].sum())
        cut = expected_counts(init[i, j], full[i, j, : length - 1], obs[i, j, :length])
        torch.testing.assert_close(counts.log_z[i, j], cut.log_z, atol=BRUTE_FORCE, rtol=0)
        torch.testing.assert_close(counts.gamma[i, j, :length], cut.gamma, atol=BRUTE_FORCE, rtol=0)
        padded = torch.zeros(2, 4, 6, 3, 3)
        padded[i, j, : length - 1] = cut.xi
        summed = padded.sum((0, 1, 2)) if trans == "shared" else padded
        summed = padded.sum(-3, keepdim=True) if trans == "chains" else summed
        xi += summed.sum_to_size(xi.shape)
    torch.testing.assert_close(counts.xi, xi, atol=BRUTE_FORCE, rtol=0)
    torch.testing.assert_close(counts.gamma.sum(-1), torch.ones(2, 4, 7), atol=BRUTE_FORCE, rtol=0)


@pytest.mark.parametrize("trans", TRANS)
def test_gradient_equals_the_plain_recursion(trans: str) -> None:
    factors = [factor.requires_grad_() for factor in random_chain((2, 3), 6, 4, trans)]
    weight = torch.randn(2, 3)
    fast = torch.autograd.grad((chain_log_z(*factors) * weight).sum(), factors)
    slow = torch.autograd.grad((generic_log_z(*factors) * weight).sum(), factors)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, atol=GRADIENT, rtol=0)


def test_gradient_of_broadcast_inputs() -> None:
    factors = [torch.randn(3), torch.randn(4, 1, 1, 3, 3), torch.randn(6, 5, 3)]
    factors = [factor.requires_grad_() for factor in factors]
    fast = torch.autograd.grad(chain_log_z(*factors).sum(), factors)
    slow = torch.autograd.grad(generic_log_z(*factors).sum(), factors)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, atol=GRADIENT, rtol=0)


@pytest.mark.parametrize("trans", ["shared", "all"])
def test_derivatives_of_both_orders_equal_finite_differences(trans: str) -> None:
    factors = [factor.requires_grad_() for factor in random_chain((2,), 3, 2, trans)]
    assert torch.autograd.gradcheck(chain_log_z, factors)
    assert torch.autograd.gradgradcheck(chain_log_z, factors)


def test_some_inputs_without_gradient() -> None:
    init, trans, obs = random_chain((2,), 4, 3, "shared")
    trans.requires_grad_()
    (first,) = torch.autograd.grad(chain_log_z(init, trans, obs).sum(), trans, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), trans)
    reference = torch.autograd.functional.hessian(lambda a: generic_log_z(init, a, obs).sum(), trans)
    expected = 2 * torch.einsum("ij,ijkl->kl", first, reference)
    torch.testing.assert_close(second, expected, atol=GRADIENT, rtol=0)


def test_functional_transforms_on_the_differentiable_path() -> None:
    init, trans, obs = random_chain((), 4, 3, "shared")

    def log_z(log_trans: Tensor) -> Tensor:
        return chain_log_z(init, log_trans, obs, differentiable=True)

    torch.testing.assert_close(torch.func.grad(log_z)(trans), expected_counts(init, trans, obs).xi)
    hessian = torch.func.jacrev(torch.func.grad(log_z))(trans)
    torch.testing.assert_close(hessian, torch.autograd.functional.hessian(log_z, trans))


@pytest.mark.parametrize(
    ("init", "trans", "obs", "named"),
    [
        ((3,), (3, 3), (5, 4), "4 states"),
        ((4,), (4, 3), (5, 4), "4 states"),
        ((4,), (2, 4, 4), (5, 4), "2 transitions"),
        ((4,), (4, 4), (0, 4), "no steps"),
        ((4,), (4, 4), (4,), "needs log_init"),
    ],
)
def test_wrong_shapes_are_named(
    init: tuple[int, ...], trans: tuple[int, ...], obs: tuple[int, ...], named: str
) -> None:
    with pytest.raises(DataError, match=named):
        expected_counts(torch.zeros(init), torch.zeros(trans), torch.zeros(obs))
