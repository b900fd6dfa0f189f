"""Choosing the size of a program."""

from __future__ import annotations

from functools import partial

import pytest

import ppl_em
from models import gmm
from ppl_em.errors import NotAvailableYet, PlanError


def make(num_components: int):
    return partial(gmm.model, num_components=num_components, covariance="tied")


@pytest.fixture(scope="module")
def selection():
    return ppl_em.select(make, [2, 3, 4], gmm.load(), restarts=3)


def test_bic_chooses_three_tied_components_for_old_faithful(selection) -> None:
    # As R's mclust does: EEE with three components.
    assert selection.choice == 3
    assert selection.best is selection.results[3]
    assert list(selection.table.index) == [2, 3, 4]
    assert selection.table.loc[3, "bic"] == selection.table["bic"].min() == selection.best.bic
    assert selection.table["num_parameters"].tolist() == [8, 11, 14]
    assert str(selection).endswith("smallest bic: 3")


def test_icl_prefers_well_separated_components() -> None:
    chosen = ppl_em.select(make, [2, 3], gmm.load(), criterion="icl", restarts=3)
    assert chosen.choice == 2
    assert chosen.table.loc[2, "icl"] == chosen.best.icl


@pytest.mark.parametrize(("choices", "criterion"), [([], "bic"), ([2, 2], "bic"), ([2], "waic")])
def test_bad_requests(choices: list[int], criterion: str) -> None:
    with pytest.raises(PlanError):
        ppl_em.select(make, choices, gmm.load(), criterion=criterion)


@pytest.mark.parametrize("name", ["calibrate"])
def test_what_is_not_there_yet_says_so(name: str) -> None:
    with pytest.raises(NotAvailableYet, match=name):
        getattr(ppl_em, name)(make(2), gmm.load())
