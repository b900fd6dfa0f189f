"""ArviZ's own functions on what a fit exports, in whichever version of ArviZ."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import ppl_em
from ppl_em import arviz_bridge
from tests.unit.test_arviz_bridge import arviz_1, copy_bridge

matplotlib.use("Agg")
#: ArviZ 0.23 with newer pandas and matplotlib: its own concern.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The inplace keyword"),
    pytest.mark.filterwarnings("ignore:Passing a dict or None as alias_mapping"),
]


def mixture(x: torch.Tensor, num_components: int = 2) -> None:
    """A mixture of normals with a prior on the locations; x of shape (N,)."""
    weights = pyro.param("weights", torch.ones(num_components) / num_components, constraint=constraints.simplex)
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("components", num_components):
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale), obs=x)


@pytest.fixture(scope="module")
def fits() -> dict[str, ppl_em.FitResult]:
    generator = torch.Generator().manual_seed(3)
    centre = torch.tensor([-3.0, 3.0], dtype=torch.float64)[torch.randint(2, (120,), generator=generator)]
    x = centre + torch.randn(120, generator=generator, dtype=torch.float64)
    two = ppl_em.fit(mixture, x, restarts=3)
    one = ppl_em.fit(lambda x: mixture(x, 1), x, restarts=1)
    return {"two": two, "one": one}


def test_summary_forest_loo_compare(fits: dict[str, ppl_em.FitResult]) -> None:
    az = arviz_bridge.arviz()
    native = {name: fit.to_arviz() for name, fit in fits.items()}
    summary = az.summary(native["two"], kind="stats")
    errors = fits["two"].standard_errors()
    assert summary.loc["scale", "mean"] == pytest.approx(float(fits["two"].params["scale"]), abs=0.05)
    assert summary.loc["scale", "sd"] == pytest.approx(float(errors["scale"]), rel=0.2)
    assert {"loc[0]", "loc[1]", "weights[0]", "weights[1]", "scale"} == set(summary.index)

    found = az.loo(native["two"], var_name="x")
    assert float(found.elpd_loo) == pytest.approx(fits["two"].loo.elpd, abs=1e-9)
    table = az.compare(native, var_name="x")
    assert table.index[0] == "two"
    assert table.loc["two", "elpd_loo"] - table.loc["one", "elpd_loo"] > 10
    axes = az.plot_forest(native["two"], var_names=["loc"], combined=True)
    assert len(axes.ravel()) == 1


def test_predictive_plots_and_pit(fits: dict[str, ppl_em.FitResult]) -> None:
    az = arviz_bridge.arviz()
    native = fits["two"].to_arviz()
    az.plot_ppc(native, num_pp_samples=20)
    az.plot_ppc(native, group="prior", num_pp_samples=20)
    pit = az.loo_pit(native, y="x", y_hat="x")
    steps = np.arange(1, len(pit) + 1) / len(pit)
    assert np.abs(np.sort(pit) - steps).max() < 1.36 / np.sqrt(len(pit)) + 0.02  # Kolmogorov's 95 % band
    az.plot_loo_pit(native, y="x", ecdf=True)
    matplotlib.pyplot.close("all")


def test_draws_from_the_prior(fits: dict[str, ppl_em.FitResult]) -> None:
    native = fits["two"].to_arviz()
    prior = native["prior"]
    assert set(prior.data_vars) == {"loc"} and prior["loc"].dims == ("chain", "draw", "components")
    count = prior["loc"].size
    assert abs(float(prior["loc"].mean())) < 4 * 10 / np.sqrt(count)
    assert float(prior["loc"].std()) == pytest.approx(10, rel=4 / np.sqrt(2 * count))
    drawn = native["prior_predictive"]["x"]
    assert drawn.dims == ("chain", "draw", "data") and drawn.sizes["draw"] == prior.sizes["draw"]
    assert float(drawn.std()) == pytest.approx((100 + float(fits["two"].params["scale"]) ** 2) ** 0.5, rel=0.15)


def test_programs_without_priors_have_none() -> None:
    def normal(x: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    native = ppl_em.fit(normal, torch.randn(20)).to_arviz()
    assert not {"prior", "prior_predictive"} & set(arviz_bridge.group_names(native))


def line(x: torch.Tensor) -> None:
    """z ~ N(0, 1), x ~ N(z, 1): the posterior is N(x / 2, 1 / 2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: torch.Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))


def test_groups_of_an_approximate_posterior() -> None:
    x = 2**0.5 * torch.randn(150, generator=torch.Generator().manual_seed(1))
    native = ppl_em.fit(line, x, guide=guide, method=ppl_em.SVI(max_steps=0)).to_arviz()
    names = set(arviz_bridge.group_names(native))
    assert {"svi_trace", "variational", "sbc", "observed_data", "posterior_predictive", "reconstruction"} <= names
    assert not {"em_trace", "posterior", "log_likelihood", "prior"} & names  # z belongs to single data
    z = native["variational"]["z"]
    assert z.dims == ("moment", "data") and list(z["moment"].values) == ["mean", "sd"]
    assert np.allclose(z.sel(moment="mean"), x / 2, atol=5 * 0.5**0.5 / 20)
    assert float(z.sel(moment="sd").mean()) == pytest.approx(0.5**0.5, rel=0.02)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x)  # the guide is the posterior: the bound is tight, but for 16 draws
    gap = native["variational"]["bound"].values - exact.numpy()
    assert native["variational"]["bound"].dims == ("data",)
    assert abs(gap.mean()) < 4 * gap.std() / np.sqrt(len(gap)) and gap.std() < 0.5
    assert native["variational"]["k_hat"].dims == ("data",)
    ranks = native["sbc"]["z"]
    assert ranks.dims == ("simulation",) and ranks.size == 150
    steps = np.arange(1, 151) / 150
    assert np.abs(np.sort(ranks.values) - steps).max() < 1.63 / np.sqrt(150)  # Kolmogorov's 99 % band


def test_draws_of_approximated_global_latents(tmp_path: Path) -> None:
    def normal(x: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x = 2 + torch.randn(50, generator=torch.Generator().manual_seed(2))
    result = ppl_em.fit(normal, x, method=ppl_em.SVI(max_steps=2000, lr=5e-2))
    native = result.to_arviz()
    loc = native["posterior"]["loc"]
    precision = 50 + 0.01
    assert float(loc.mean()) == pytest.approx(float(x.sum()) / precision, abs=0.05)
    assert float(loc.std()) == pytest.approx(precision**-0.5, rel=0.15)
    assert native["posterior"].attrs["method"] == "draws of the approximate posterior"
    assert native["posterior"].attrs["reliable"] == "true"
    again = arviz_bridge.load(arviz_bridge.save(native, tmp_path / "fit.nc"))
    assert set(arviz_bridge.group_names(again)) == set(arviz_bridge.group_names(native))
    assert again["variational"]["loc"].identical(native["variational"]["loc"])


@pytest.mark.slow
def test_arviz_1_reads_compares_and_draws_a_fit(fits: dict[str, ppl_em.FitResult], tmp_path: Path) -> None:
    """The netCDF files of fits under ArviZ 1.x, in an environment without torch."""
    python = arviz_1(tmp_path)
    for name, fit in fits.items():
        arviz_bridge.save(fit.to_arviz(), tmp_path / f"{name}.nc")
    code = (
        "import matplotlib; matplotlib.use('Agg')\n"
        "import arviz as az, sys; from ppl_em import arviz_bridge as b\n"
        "assert int(az.__version__.split('.')[0]) == 1 and 'torch' not in sys.modules\n"
        "two, one = b.load('two.nc'), b.load('one.nc')\n"
        "assert {'prior', 'prior_predictive', 'posterior', 'em_trace'} <= set(b.group_names(two))\n"
        "print(float(b.loo(two, 'x').elpd))\n"
        "assert {'loc[0]', 'weights[1]', 'scale'} <= set(az.summary(two, kind='stats').index)\n"
        "assert az.compare({'two': two, 'one': one}, var_name='x').index[0] == 'two'\n"
        "az.plot_forest(two, var_names=['loc']); az.plot_ppc_dist(two, num_samples=20)\n"
        "az.plot_loo_pit(two, var_names=['x'])\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(copy_bridge(tmp_path))}
    done = subprocess.run(
        [python, "-W", "ignore", "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    # The two generations smooth the tails of the weights a little differently.
    assert float(done.stdout.split()[-1]) == pytest.approx(fits["two"].loo.elpd, abs=0.01)
