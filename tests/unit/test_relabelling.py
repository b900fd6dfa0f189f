"""Labels are arbitrary: a permutation moves everything that they index and nothing else."""

from __future__ import annotations

import pytest
import torch

import ppl_em
from models import hmm
from ppl_em import EM
from ppl_em.errors import PplEmError
from tests.tolerances import BRUTE_FORCE
from tests.unit.programs import mixture, two_kinds

X = two_kinds()


@pytest.fixture(scope="module")
def result() -> ppl_em.FitResult:
    torch.set_default_dtype(torch.float64)
    return ppl_em.fit(mixture, X, init={"loc": [3.0, 0.0]}, method=EM(max_steps=5))


def test_by_a_parameter(result: ppl_em.FitResult) -> None:
    assert result.params["loc"][0] > result.params["loc"][1]
    sorted_fit = result.relabel("loc")
    for name in ("loc", "scale", "weights"):
        assert torch.equal(sorted_fit.params[name], result.params[name].flip(0))
    assert sorted_fit.objective == result.objective
    assert float(sorted_fit.log_prob().sum()) == pytest.approx(result.objective, abs=BRUTE_FORCE)
    torch.testing.assert_close(
        sorted_fit.posterior().marginal("z").probs, result.posterior().marginal("z").probs.flip(-1)
    )
    assert sorted_fit.summary().loc["loc[0]", "estimate"] == float(result.params["loc"][1])


def test_by_a_permutation_there_and_back(result: ppl_em.FitResult) -> None:
    there = result.relabel([1, 0])
    back = there.relabel(torch.tensor([1, 0]))
    for name, value in result.params.items():
        assert torch.equal(back.params[name], value)


def test_a_chain_moves_rows_and_columns_of_its_transitions() -> None:
    fitted = ppl_em.fit(hmm.model, hmm.load(), model_kwargs={"num_states": 3}, init="params", method=EM(max_steps=5))
    order = [2, 0, 1]
    moved = fitted.relabel(order)
    assert torch.equal(moved.params["trans"], fitted.params["trans"][order][:, order])
    assert torch.equal(moved.params["init"], fitted.params["init"][order])
    assert torch.equal(moved.params["rate"], fitted.params["rate"][order])
    assert float(moved.log_prob()) == pytest.approx(fitted.objective, abs=BRUTE_FORCE)


@pytest.mark.parametrize("by", [[0, 0], [0, 1, 2], "nothing"])
def test_what_is_no_permutation(by: object, result: ppl_em.FitResult) -> None:
    with pytest.raises(PplEmError):
        result.relabel(by)
