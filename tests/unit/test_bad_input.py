"""Bad input gets one clear error that names what is wrong and where, and nothing is changed by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints

import ppl_em
from ppl_em.errors import DataError, ModelError, PlanError, PplEmError


def mixture(x: torch.Tensor, num_components: int = 2) -> None:
    weights = pyro.param("weights", torch.ones(num_components) / num_components, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.linspace(-1, 1, num_components))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def counts(x: torch.Tensor) -> None:
    rate = pyro.param("rate", torch.ones(()), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Poisson(rate), obs=x)


X = torch.tensor([-2.0, -1.0, 1.0, 2.0])


def refuse(kind: type[Exception], match: str, model: Any, *args: Any, **options: Any) -> str:
    """`fit` and `explain` raise this error; both leave no footprint."""
    with pytest.raises(kind, match=match) as caught:
        ppl_em.fit(model, *args, **options)
    assert isinstance(caught.value, PplEmError)
    text = str(caught.value)
    assert "\n" not in text and text.endswith(".")
    return text


@pytest.mark.parametrize("thing", [3, None, "model.py", X])
def test_a_model_that_is_not_callable(thing: object) -> None:
    text = refuse(ModelError, "not callable", thing, X)
    assert type(thing).__name__ in text


@pytest.mark.parametrize("args", [(), (X, 2, 3)])
def test_wrong_number_of_arguments(args: tuple[Any, ...]) -> None:
    refuse(ModelError, "cannot be called with these arguments.*positional argument", mixture, *args)


def test_an_unknown_keyword_argument_of_the_model() -> None:
    refuse(ModelError, "unexpected keyword argument 'components'", mixture, X, model_kwargs={"components": 2})


def test_a_type_error_inside_the_model_is_the_models_own() -> None:
    def broken(x: torch.Tensor) -> None:
        len(3)  # type: ignore[arg-type]

    with pytest.raises(TypeError, match="has no len"):
        ppl_em.fit(broken, X)


@pytest.mark.parametrize(("value", "what"), [(float("inf"), "infinite"), (float("-inf"), "infinite")])
def test_data_that_are_not_finite(value: float, what: str) -> None:
    x = X.clone()
    x[[0, 2]] = value
    text = refuse(DataError, what, mixture, x)
    assert "site 'x'" in text and "2 of 4" in text


def test_values_outside_the_support() -> None:
    text = refuse(DataError, "outside the support of Poisson", counts, torch.tensor([1.0, -2.0, 0.5]))
    assert "site 'x'" in text and "2 of 3" in text and "-2" in text


def test_categories_that_do_not_exist() -> None:
    def categories(x: torch.Tensor) -> None:
        p = pyro.param("p", torch.ones(3) / 3, constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(p), obs=x)

    text = refuse(DataError, "outside the support of Categorical", categories, torch.tensor([0, 1, 3]))
    assert "1 of 3" in text


@pytest.mark.parametrize("empty", [torch.zeros(0), np.zeros(0), pd.Series([], dtype=float)])
def test_no_data(empty: Any) -> None:
    assert "'data'" in refuse(DataError, "plate is empty", counts, empty)
    assert "'data'" in refuse(DataError, "plate is empty", mixture, empty)


def test_an_empty_tensor_outside_any_plate() -> None:
    def model(x: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        pyro.sample("x", dist.Normal(loc, 1.0).expand([0]).to_event(1), obs=x)

    assert "'x'" in refuse(DataError, "nothing is observed", model, torch.zeros(0))


def test_a_latent_of_infinite_discrete_support() -> None:
    def overdispersed(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Poisson(3.0))
            pyro.sample("x", dist.Normal(n, 1.0), obs=x)

    for method in ("auto", "em"):
        text = refuse(PlanError, "infinite|support", overdispersed, X, method=method)
        assert "site 'n'" in text


def test_a_model_that_observes_nothing() -> None:
    def prior() -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    refuse(ModelError, "observes nothing.*z", prior)


def test_two_sites_of_one_name() -> None:
    def twice(x: torch.Tensor) -> None:
        p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
        for value in x:
            pyro.sample("x", dist.Bernoulli(p), obs=value)

    refuse(ModelError, "same name.*'x'", twice, torch.tensor([0.0, 1.0]))


def test_exact_em_that_cannot_be_had_names_the_latent() -> None:
    def regression(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(torch.tanh(u), 1.0), obs=x)

    text = refuse(PlanError, "cannot be had", regression, X, method="em")
    assert "site 'u'" in text and "svi" in text


def test_a_scale_that_differs_within_a_connected_component() -> None:
    def scaled(x: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5))
        with pyro.plate("data", len(x)), poutine.scale(scale=3.0):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    text = refuse(PlanError, "different scales", scaled, X)
    assert "'z'" in text and "'x'" in text


@pytest.mark.parametrize("weights", [[1.0, 2.0], [1.0, -1.0, 1.0, 1.0], [1.0, float("nan"), 1.0, 1.0], [0.0] * 4])
def test_weights_that_are_none(weights: list[float]) -> None:
    assert "data" in refuse(DataError, "weight", mixture, X, weights=weights)


def test_weights_without_a_plate() -> None:
    def single() -> None:
        p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
        pyro.sample("x", dist.Bernoulli(p), obs=torch.tensor(1.0))

    refuse(ModelError, "data plate", single, weights=[1.0])


@pytest.mark.parametrize(
    ("init", "match"),
    [
        ({"nothing": 1.0}, "'nothing'"),
        ({"weights": [0.4, 0.4]}, "outside the constraint.*'weights'"),
        ({"loc": [float("nan"), 1.0]}, "not finite.*'loc'"),
        ({"loc": torch.zeros(3)}, r"another shape.*'loc' \(value \(3,\)\).*\(2,\)"),
        ("best", "unknown init.*best"),
        (7, "unknown init.*int"),
    ],
)
def test_a_start_that_is_none(init: Any, match: str) -> None:
    refuse((ModelError, PlanError), match, mixture, X, init=init)  # type: ignore[arg-type]


def test_a_frozen_name_that_does_not_exist() -> None:
    refuse(ModelError, "freeze.*'scale'.*loc", mixture, X, freeze=["scale"])


@pytest.mark.parametrize("method", ["mcmc", 3, ppl_em.EM])
def test_an_unknown_method(method: Any) -> None:
    refuse(PlanError, "unknown method", mixture, X, method=method)


@pytest.mark.parametrize(
    "settings", [{"max_steps": -1}, {"tol": -1e-6}, {"e_step": "soft"}, {"tol": float("nan")}, {"m_step_steps": 0}]
)
def test_settings_of_em_are_checked_when_they_are_made(settings: dict[str, Any]) -> None:
    with pytest.raises(PlanError, match=next(iter(settings))):
        ppl_em.EM(**settings)


@pytest.mark.parametrize("restarts", [0, -1])
def test_restarts(restarts: int) -> None:
    refuse(PlanError, "restarts", mixture, X, restarts=restarts)


def test_an_unknown_option() -> None:
    with pytest.raises(TypeError, match="tolerance"):
        ppl_em.fit(mixture, X, tolerance=1e-3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="tolerance"):
        ppl_em.explain(mixture, X, tolerance=1e-3)


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (pd.DataFrame({"a": [1.0], "b": ["text"]}), "not numeric.*b"),
        (pd.Series(["text"], name="s"), "not numeric.*s"),
        (np.array([object()]), "Python objects"),
        (np.array(["1.0"]), "not numeric"),
    ],
)
def test_tables_that_are_not_numbers(data: Any, match: str) -> None:
    refuse(DataError, match, counts, data)


def test_an_integer_parameter() -> None:
    def model(x: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    refuse(ModelError, "floating-point.*'loc'", model, X)


def test_a_budget_that_is_too_small_is_named_before_anything_is_allocated() -> None:
    def wide(x: torch.Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(40)).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    text = refuse(PlanError, "values|budget|elements", wide, X[0], method="em")
    assert "'z'" in text


def test_an_error_leaves_no_footprint(no_footprint: Callable) -> None:
    with no_footprint():
        refuse(DataError, "infinite", mixture, torch.tensor([0.0, float("inf")]))
        refuse(ModelError, "arguments", mixture)
        refuse(PlanError, "different", _half_scaled, X)


def _half_scaled(x: torch.Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        with poutine.scale(scale=0.5):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
