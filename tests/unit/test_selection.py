"""Choosing the size of a program."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_em
from models import gmm
from ppl_em.errors import PlanError


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


@pytest.mark.parametrize("criterion", ["bic", "icl"])
def test_two_full_components_are_chosen_for_old_faithful(criterion: str) -> None:
    def full(num_components: int):
        return partial(gmm.model, num_components=num_components, covariance="full")

    chosen = ppl_em.select(full, [1, 2, 3], gmm.load(), criterion=criterion, restarts=4)
    assert chosen.choice == 2
    assert chosen.table[criterion].idxmin() == 2
    assert chosen.table.loc[2, f"delta_{criterion}"] == 0


def test_held_out_log_likelihood_is_that_of_each_fold_under_the_others() -> None:
    x = gmm.load()[:60]
    chosen = ppl_em.select(make, [1, 2], x, criterion="cv", folds=3, restarts=2, seed=4)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(4))
    expected = 0.0
    for k in range(3):
        test = torch.zeros(60, dtype=torch.bool)
        test[order[k::3]] = True
        part = ppl_em.fit(make(1), x[~test])
        normal = torch.distributions.MultivariateNormal(part.params["loc"][0], part.params["cov"])
        expected += float(normal.log_prob(x[test]).sum())
    assert chosen.table.loc[1, "cv"] == pytest.approx(expected, abs=1e-6)
    assert chosen.choice == 2  # eruptions are of two kinds
    assert str(chosen).endswith("largest cv: 2")


def test_a_choice_that_collapses_on_a_fold_is_not_chosen() -> None:
    def scales(num_components: int):
        return partial(gmm.model, num_components=num_components, covariance="diagonal")

    x = torch.cat([gmm.load()[:40], torch.tensor([[3.0, 500.0]])])
    chosen = ppl_em.select(scales, [1, 12], x, criterion="cv", folds=2, restarts=1)
    assert chosen.table.loc[12, "cv"] == -math.inf
    assert chosen.choice == 1


def single(x) -> None:
    rate = pyro.param("rate", torch.tensor(1.0), constraint=dist.constraints.positive)
    for t in range(len(x)):
        pyro.sample(f"x_{t}", dist.Poisson(rate), obs=x[t])


def closed_over(table) -> None:
    loc = pyro.param("loc", torch.zeros(2))
    with pyro.plate("data", table["x"].shape[0]):
        pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=table["x"])


@pytest.mark.parametrize(
    ("model", "data", "why"),
    [(single, torch.ones(6), "data plate"), (closed_over, {"x": torch.zeros(6, 2)}, "belongs to a datum")],
)
def test_data_that_cannot_be_divided_are_refused(model, data, why: str) -> None:
    with pytest.raises(PlanError, match=why):
        ppl_em.select(lambda _: model, [1], data, criterion="cv")


@pytest.mark.parametrize("folds", [1, 61])
def test_impossible_numbers_of_folds(folds: int) -> None:
    with pytest.raises(PlanError, match="folds"):
        ppl_em.select(make, [1], gmm.load()[:60], criterion="cv", folds=folds)


@pytest.mark.parametrize(("choices", "criterion"), [([], "bic"), ([2, 2], "bic"), ([2], "waic")])
def test_bad_requests(choices: list[int], criterion: str) -> None:
    with pytest.raises(PlanError):
        ppl_em.select(make, choices, gmm.load(), criterion=criterion)


def test_fits_by_a_bound_have_no_criterion() -> None:
    def coin(x: torch.Tensor, prior: float) -> None:
        p = pyro.sample("p", dist.Beta(prior, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Bernoulli(p), obs=x)

    with pytest.raises(PlanError, match="bounds only.*result.objective"):
        ppl_em.select(
            lambda a: partial(coin, prior=a), [1.0, 2.0], torch.ones(5), method=ppl_em.EM(globals="variational")
        )
