"""Quadratic objectives are solved in one step; anything else is refused."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_em.mstep import NoClosedForm, least_squares


def regression(g, size=60, inputs=3, outputs=()):
    x = torch.randn(size, inputs, generator=g)
    y = torch.randn(size, *outputs, generator=g)
    return x, y, torch.rand(size, generator=g)


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6))
def test_weighted_regression_equals_numpy(seed):
    x, y, w = regression(torch.Generator().manual_seed(seed))
    ours = least_squares(lambda b: -(w * (y - x @ b).square()).sum() / 2, torch.ones(3))
    root = w.sqrt().numpy()
    theirs = np.linalg.lstsq(x.numpy() * root[:, None], y.numpy() * root, rcond=None)[0]
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-10, atol=1e-12)


def test_several_outputs_and_experts_are_solved_block_by_block():
    g = torch.Generator().manual_seed(0)
    x, y, _ = regression(g, outputs=(4,))
    w = torch.rand(60, 5, generator=g)  # five experts

    def objective(b):  # (experts, outputs, inputs)
        residual = y[:, None] - torch.einsum("koi,ni->nko", b, x)
        return -(w[..., None] * residual.square()).sum()

    ours = least_squares(objective, torch.zeros(5, 4, 3))
    for k in range(5):
        root = w[:, k].sqrt()[:, None].numpy()
        theirs = np.linalg.lstsq(x.numpy() * root, y.numpy() * root, rcond=None)[0]
        np.testing.assert_allclose(ours[k].T.numpy(), theirs, rtol=1e-9, atol=1e-11)


def test_a_polynomial_far_from_the_origin():
    g = torch.Generator().manual_seed(1)
    t = 1000 + 10 * torch.rand(80, generator=g)
    x = torch.stack([torch.ones(80), t], -1)
    y = 3 + 0.5 * t + torch.randn(80, generator=g)
    ours = least_squares(lambda b: -(y - x @ b).square().sum(), torch.zeros(2))
    theirs = np.linalg.lstsq(x.numpy(), y.numpy(), rcond=None)[0]
    np.testing.assert_allclose(x.numpy() @ ours.numpy(), x.numpy() @ theirs, rtol=1e-9)


def test_flat_directions_keep_their_value():
    x = torch.tensor([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    y = torch.tensor([1.0, 2.0, 4.0])
    start = torch.tensor([5.0, -1.0])
    ours = least_squares(lambda b: -(y - x @ b).square().sum(), start)
    assert float(ours[0] - ours[1]) == pytest.approx(6.0)
    assert float(ours.sum()) == pytest.approx(float(x[:, 0] @ y / (x[:, 0] @ x[:, 0])))


def test_an_expert_without_weight_keeps_its_coefficients():
    x, y, w = regression(torch.Generator().manual_seed(2))
    weights = torch.stack([w, torch.zeros(60)])
    start = torch.ones(2, 3)
    ours = least_squares(lambda b: -(weights * (y - b @ x.T).square()).sum(), start)
    assert torch.equal(ours[1], start[1])
    assert not torch.allclose(ours[0], start[0])


@pytest.mark.parametrize(
    ("objective", "reason"),
    [
        (lambda b: -(b**4).sum(), "not quadratic"),
        (lambda b: (b - b.exp()).sum(), "not quadratic"),
        (lambda b: b[0].square() - b[1].square(), "not concave"),
        (lambda b: b[0] - b[1].square(), "without bound"),
        (lambda b: -(b - 1).abs().sum(), "not quadratic"),
    ],
)
def test_other_objectives_are_refused(objective, reason):
    with pytest.raises(NoClosedForm, match=reason):
        least_squares(objective, torch.tensor([0.5, 0.3]))


def test_the_dtype_is_kept():
    assert least_squares(lambda b: -(b - 2).square().sum(), torch.zeros(2, dtype=torch.float32)).dtype == torch.float32
