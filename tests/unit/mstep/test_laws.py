"""Every rule: stationary and ascending for random weights and ties; refused when off by one per cent."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mstep_cases import CASES, Case, random_sample

from ppl_em.mstep import residuals, stationarity, weighted_mle


def fitted(case: Case, seed: int, **kwargs):
    sample = random_sample(case, seed, **kwargs)
    before = float(sample.log_likelihood(case.family))
    weighted_mle[case.family](sample)
    return sample, before, float(sample.log_likelihood(case.family))


@pytest.mark.parametrize("case", CASES, ids=str)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31 - 1),
    rows=st.integers(2, 5),
    ties=st.sampled_from(["none", "random"]),
    per_row=st.booleans(),
)
def test_a_proposal_is_stationary_and_ascends(case, seed, rows, ties, per_row):
    sample, before, after = fitted(case, seed, rows=rows, ties=ties, per_row=per_row)
    assert after >= before - 1e-9 * abs(before)
    assert stationarity(sample, case.family) < 1e-8


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_proposal_off_by_one_per_cent_is_refused(case):
    for name in case.free:
        sample, _, best = fitted(case, seed=3, ties="none")
        right = sample.proposals[name]
        wrong = case.off * right
        if case.family.arg_constraints[name] is torch.distributions.constraints.simplex:
            wrong = right + 0.01 * right.roll(1, -1) - 0.01 * right
        sample.proposals[name] = wrong
        assert float(residuals(sample, case.family)[name].max()) > 1e-4
        assert float(sample.log_likelihood(case.family)) < best


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_without_weight_keep_their_values(case):
    sample = random_sample(case, seed=5, ties="none")
    blocks = [type(b)(torch.where(b.rows[:, None] == 2, 0.0, b.weights), b.values, b.rows) for b in sample.blocks]
    sample = type(sample)(sample.args, tuple(blocks), sample.num_rows, sample.event_dim)
    weighted_mle[case.family](sample)
    for name, value in sample.proposals.items():
        assert torch.equal(value[2], sample.args[name].value[2])
        assert bool(value.isfinite().all())
    assert stationarity(sample, case.family) < 1e-8


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_frozen_argument_stays_and_the_others_are_fitted_given_it(case):
    for frozen in case.free:
        sample = random_sample(case, seed=7)
        args = dict(sample.args)
        args[frozen] = type(args[frozen])(args[frozen].value)
        sample = type(sample)(args, sample.blocks, sample.num_rows, sample.event_dim)
        weighted_mle[case.family](sample)
        assert frozen not in sample.proposals
        assert torch.equal(sample.rows(frozen), args[frozen].value)
        assert stationarity(sample, case.family) < 1e-8


@pytest.mark.parametrize("case", CASES, ids=str)
def test_float32_data_are_summed_in_float64(case):
    sample = random_sample(case, seed=9, ties="none")
    blocks = [
        type(b)(b.weights.float(), b.values.float() if b.values.is_floating_point() else b.values, b.rows)
        for b in sample.blocks
    ]
    single = type(sample)(sample.args, tuple(blocks), sample.num_rows, sample.event_dim)
    weighted_mle[case.family](single)
    weighted_mle[case.family](sample)
    for name, value in single.proposals.items():
        assert value.dtype == torch.float64
        torch.testing.assert_close(value, sample.proposals[name], rtol=1e-4, atol=1e-4)
