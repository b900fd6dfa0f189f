"""A fit as ArviZ's groups: names, dimensions, and numbers that agree with the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import ppl_em
from models import gmm, hmm
from ppl_em import arviz_bridge, arviz_groups
from ppl_em.arviz_stacking import stacked
from tests.tolerances import EXACT

DATA = Path(__file__).parents[2] / "models" / "data"


@pytest.fixture
def faithful() -> pd.DataFrame:
    return pd.read_csv(DATA / "faithful.csv").astype(float)


def test_groups_of_a_mixture(faithful: pd.DataFrame) -> None:
    result = ppl_em.fit(gmm.model, faithful, restarts=2)
    native = result.to_arviz()
    assert set(arviz_bridge.group_names(native)) == {
        "point_estimate",
        "em_trace",
        "em_restarts",
        "observed_data",
        "point_log_likelihood",
        "posterior_latent",
        "posterior",
        "sample_stats",
        "log_likelihood",
        "posterior_predictive",
        "reconstruction",
    }
    observed = native["observed_data"]["x"]
    assert observed.dims == ("data", "x_dim_0")
    assert list(observed.coords["x_dim_0"].values) == ["eruptions", "waiting"]
    assert np.array_equal(observed.values, faithful.to_numpy())

    at_estimate = native["point_log_likelihood"]["x"]
    assert at_estimate.dims == ("data",)
    assert float(at_estimate.sum()) == pytest.approx(result.log_likelihood, abs=1e-9)
    log_likelihood = native["log_likelihood"]["x"]
    assert log_likelihood.dims == ("chain", "draw", "data")
    assert np.allclose(log_likelihood.sum("data"), native["sample_stats"]["lp"], atol=1e-9)
    loc = native["posterior"]["loc"]
    assert loc.dims == ("chain", "draw", "loc_dim_0", "loc_dim_1")
    assert np.allclose(loc.std(("chain", "draw")), result.standard_errors()["loc"], rtol=0.15)
    assert native["posterior"].attrs["reliable"] == "true"

    z = native["posterior_latent"]["z"]
    assert z.dims == ("data", "z_state")
    assert np.allclose(z.sum("z_state"), 1.0, atol=EXACT)
    # The M-step of the weights: at the optimum they are the mean posterior probabilities.
    assert np.allclose(z.mean("data"), native["point_estimate"]["weights"], atol=1e-3)

    drawn = native["posterior_predictive"]["x"]
    assert drawn.dims == ("chain", "draw", "data", "x_dim_0")
    assert drawn.sizes["draw"] == loc.sizes["draw"]
    assert native["reconstruction"]["x"].sizes["draw"] == arviz_groups.PREDICTIVE_DRAWS
    error = drawn.std() / np.sqrt(drawn.size)
    assert np.allclose(drawn.mean(("chain", "draw", "data")), faithful.mean(), atol=20 * float(error))

    assert np.array_equal(native["em_trace"]["objective"].values, result.history.numpy())
    assert native["em_restarts"]["objective"].size == 2
    assert native["point_estimate"]["cov"].dims == ("cov_dim_0", "cov_dim_1", "cov_dim_2")
    assert native.attrs["objective"] == result.objective
    assert native.attrs["exact"] == "true"


def test_a_series_is_one_variable_over_time() -> None:
    x = hmm.load()
    result = ppl_em.fit(hmm.model, x, restarts=1)
    native = result.to_arviz()
    assert native["observed_data"]["x"].dims == ("x_time",)
    assert np.array_equal(native["observed_data"]["x"].values, x.numpy())
    z = native["posterior_latent"]["z"]
    assert z.dims == ("z_time", "z_state")
    assert np.allclose(z.values, result.posterior().path("z").probs.numpy(), atol=1e-10)
    assert float(native["point_log_likelihood"]["x"]) == pytest.approx(result.log_likelihood, abs=1e-9)
    assert "log_likelihood" not in arviz_bridge.group_names(native)  # one series is one unit: nothing to leave out


def test_the_users_labels_win(faithful: pd.DataFrame) -> None:
    coords = {"x_dim_0": ["length", "wait"], "data": [f"row {i}" for i in range(272)]}
    native = ppl_em.fit(gmm.model, faithful, restarts=1, coords=coords).to_arviz()
    assert list(native["observed_data"]["x_dim_0"].values) == ["length", "wait"]
    assert native["point_log_likelihood"]["data"].values[271] == "row 271"


def test_a_loaded_result_has_the_groups_that_need_no_data(tmp_path: Path, faithful: pd.DataFrame) -> None:
    result = ppl_em.fit(gmm.model, faithful, restarts=1)
    loaded = ppl_em.load(result.save(tmp_path / "fit"), gmm.model)
    native = loaded.to_arviz()
    assert set(arviz_bridge.group_names(native)) == {"point_estimate", "em_trace", "em_restarts"}
    assert native["point_estimate"].identical(result.to_arviz()["point_estimate"])


def test_only_a_family_of_like_arrays_is_stacked() -> None:
    def shapes_of(**shapes: tuple[int, ...]) -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
        variables = {
            name: (tuple(f"{name}_dim_{i}" for i in range(len(shape))), np.zeros(shape))
            for name, shape in shapes.items()
        }
        return {name: (dims, array.shape) for name, (dims, array) in stacked(variables).items()}

    assert shapes_of(x_0=(2,), x_1=(2,), x_2=(2,)) == {"x": (("x_time", "x_dim_0"), (3, 2))}
    assert set(shapes_of(x_0=(2,), x_1=(3,), x_2=(2,))) == {"x_0", "x_1", "x_2"}
    assert set(shapes_of(x_0=(2,), x_2=(2,), x_3=(2,))) == {"x_0", "x_2", "x_3"}
    assert set(shapes_of(x_0=(), x_1=())) == {"x_0", "x_1"}
    assert set(shapes_of(x=(), x_0=(), x_1=(), x_2=())) == {"x", "x_0", "x_1", "x_2"}


def test_the_order_in_time_is_by_number_not_by_name() -> None:
    variables = {f"y{t}": (("plate",), np.full(2, float(t))) for t in torch.randperm(12).tolist()}
    (name, (dims, array)), *rest = stacked(variables).items()
    assert not rest
    assert (name, dims) == ("y", ("plate", "y_time"))
    assert array[0].tolist() == list(range(12))
