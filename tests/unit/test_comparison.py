"""Criteria of fits side by side, against statsmodels' linear models."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import statsmodels.api as sm
import torch

import ppl_em
from ppl_em.errors import DataError


def _normal(x: torch.Tensor, free: bool = True) -> None:
    loc = pyro.param("loc", torch.tensor(0.0)) if free else torch.tensor(0.0)
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale), obs=x)


def test_criteria_are_those_of_a_linear_model() -> None:
    x = np.random.default_rng(0).normal(3.0, 2.0, 40)
    fits = {name: ppl_em.fit(_normal, x, model_kwargs={"free": name == "free"}) for name in ("zero", "free")}
    table = ppl_em.compare(fits)
    assert list(table.index) == ["free", "zero"]
    peer = sm.OLS(x, np.ones_like(x)).fit()
    n, scale_too = len(x), 1  # statsmodels does not count the scale
    assert table.loc["free", "log_likelihood"] == pytest.approx(peer.llf)
    assert table.loc["free", "aic"] == pytest.approx(peer.aic + 2 * scale_too)
    assert table.loc["free", "bic"] == pytest.approx(peer.bic + np.log(n) * scale_too)
    assert table["delta_bic"].tolist() == [0.0, pytest.approx(fits["zero"].bic - fits["free"].bic)]
    assert table["num_parameters"].tolist() == [2, 1]


def test_different_data_are_refused() -> None:
    a, b = (ppl_em.fit(_normal, torch.arange(float(n))) for n in (5, 6))
    with pytest.raises(DataError, match="different data"):
        ppl_em.compare({"a": a, "b": b})
    with pytest.raises(DataError, match="nothing to compare"):
        ppl_em.compare({})
