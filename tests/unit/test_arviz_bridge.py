"""The ArviZ bridge: names, attributes, files, and the two generations of ArviZ."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ppl_em import arviz_bridge as bridge
from ppl_em.errors import DataError, FileError

ROOT = Path(__file__).parents[2]


def _groups(rng: np.random.Generator) -> dict:
    """Draws for a normal location, the log-likelihood of 30 data under each, and groups of our own."""
    x = rng.normal(1.0, 1.0, 30)
    loc = rng.normal(x.mean(), 1 / np.sqrt(30), (1, 400))
    log_likelihood = -0.5 * np.log(2 * np.pi) - 0.5 * (x - loc[..., None]) ** 2
    return {
        "posterior": bridge.dataset({"loc": (("chain", "draw"), loc)}),
        "log_likelihood": bridge.dataset({"x": (("chain", "draw", "data"), log_likelihood)}),
        "observed_data": bridge.dataset({"x": (("data",), x)}, {"data": [f"row {i}" for i in range(30)]}),
        "point_estimate": bridge.dataset({"loc": ((), x.mean())}),
        "em_trace": bridge.dataset({"objective": (("step",), np.arange(4.0))}),
        "prior": bridge.dataset({}),
    }


def test_netcdf_round_trip_keeps_custom_groups_and_attributes(tmp_path: Path) -> None:
    attrs = {
        "converged": True,
        "seed": 0,
        "status": "reached the tolerance",
        "plan": {"z": "mixture"},
        "guide": None,
        "restarts": np.int64(3),
    }
    native = bridge.to_native(_groups(np.random.default_rng(0)), attrs)
    path = bridge.save(native, tmp_path / "fit.nc")
    loaded = bridge.load(path)
    assert set(bridge.group_names(loaded)) == {
        "posterior",
        "log_likelihood",
        "observed_data",
        "point_estimate",
        "em_trace",
    }
    for group in bridge.group_names(loaded):
        assert loaded[group].identical(native[group]), group
    assert loaded.attrs["seed"] == 0
    assert loaded.attrs["restarts"] == 3
    assert loaded.attrs["status"] == "reached the tolerance"
    assert json.loads(loaded.attrs["converged"]) is True
    assert json.loads(loaded.attrs["guide"]) is None
    assert json.loads(loaded.attrs["plan"]) == {"z": "mixture"}
    assert os.listdir(tmp_path) == ["fit.nc"]


def test_a_loaded_file_is_not_held_open(tmp_path: Path) -> None:
    path = bridge.save(bridge.to_native(_groups(np.random.default_rng(0))), tmp_path / "fit.nc")
    loaded = bridge.load(path)
    path.unlink()
    assert float(loaded["em_trace"]["objective"].sum()) == 6.0


def test_loo_is_the_analytic_value_for_a_normal_location() -> None:
    # Flat prior, known variance 1: leaving datum i out, its predictive is N(mean of the others, 1 + 1/(n-1)).
    groups = _groups(np.random.default_rng(0))
    x = groups["observed_data"]["x"].values
    n = len(x)
    others = (x.sum() - x) / (n - 1)
    variance = 1 + 1 / (n - 1)
    exact = -0.5 * np.log(2 * np.pi * variance) - 0.5 * (x - others) ** 2 / variance
    found = bridge.loo(bridge.to_native(groups), "x")
    assert found.elpd == pytest.approx(exact.sum(), abs=0.2)
    assert np.allclose(found.elpd_i, exact, atol=0.1)
    assert found.elpd_i.shape == found.pareto_k.shape == (n,)
    assert found.p == pytest.approx(1.0, abs=0.4)


def test_summary_is_the_draws_mean() -> None:
    groups = _groups(np.random.default_rng(0))
    table = bridge.arviz().summary(bridge.to_native(groups), kind="stats")
    assert table.loc["loc", "mean"] == pytest.approx(float(groups["posterior"]["loc"].mean()), abs=1e-3)


def test_a_plate_named_as_a_site_does_not_swallow_it() -> None:
    values = np.arange(3.0)
    group = bridge.dataset({"x": (("x",), values), "y/z": (("a/b", "draw"), np.zeros((2, 5)))}, {"x": list("abc")})
    assert set(group.data_vars) == {"x", "y_z"}
    assert group["x"].dims == ("x_plate",)
    assert group["y_z"].dims == ("a_b", "draw")
    assert list(group["x_plate"].values) == ["a", "b", "c"]


def test_a_plate_is_renamed_alike_in_a_group_without_the_site() -> None:
    assert bridge.dataset({"w": (("x",), np.zeros(2))}, taken=["x"])["w"].dims == ("x_plate",)
    assert bridge.dimension_name("draw", ()) == "draw_plate"
    assert bridge.dimension_name("x", ("x", "x_plate")) == "x_plate_plate"


def test_names_that_differ_only_by_a_slash_stay_apart(tmp_path: Path) -> None:
    names = ["a/b", "a_b", "net$$$weight", "net.weight", "µ"]
    group = bridge.dataset({name: ((), float(i)) for i, name in enumerate(names)})
    loaded = bridge.load(bridge.save(bridge.to_native({"point_estimate": group}), tmp_path / "names.nc"))
    assert sorted(float(value) for value in loaded["point_estimate"].data_vars.values()) == [0, 1, 2, 3, 4]
    assert float(loaded["point_estimate"]["a_b"]) == 1.0
    assert float(loaded["point_estimate"]["net$$$weight"]) == 2.0


@pytest.mark.parametrize(
    "labels",
    [
        pd.Index(["a", "b"]),
        pd.Categorical(["u", "v"]),
        np.array(["p", "q"], dtype=object),
        ["x", "y"],
        [3, 4],
    ],
    ids=["index", "categorical", "object", "list", "integers"],
)
def test_coordinates_of_every_kind_can_be_saved(labels: object, tmp_path: Path) -> None:
    group = bridge.dataset({"flag": (("data",), np.array([True, False]))}, {"data": labels})
    loaded = bridge.load(bridge.save(bridge.to_native({"constant_data": group}), tmp_path / "coords.nc"))
    assert list(loaded["constant_data"]["data"].values) == list(np.asarray(labels))
    assert loaded["constant_data"]["flag"].dtype == bool


def test_wrong_dimensions_and_labels_are_named() -> None:
    with pytest.raises(DataError, match=r"site 'x'.*\(3,\)"):
        bridge.dataset({"x": ((), np.zeros(3))})
    with pytest.raises(DataError, match=r"site 'data'.*size 3"):
        bridge.dataset({"x": (("data",), np.zeros(3))}, {"data": ["a", "b"]})


def test_file_errors_are_one_clear_line(tmp_path: Path) -> None:
    native = bridge.to_native(_groups(np.random.default_rng(0)))
    with pytest.raises(FileError, match="no such directory|No such file|Unable"):
        bridge.save(native, tmp_path / "missing" / "fit.nc")
    (tmp_path / "text.nc").write_text("no netCDF")
    for name in ("text.nc", "absent.nc"):
        with pytest.raises(FileError, match=name):
            bridge.load(tmp_path / name)


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    class Broken:
        def to_netcdf(self, path: str, engine: str) -> None:
            Path(path).write_text("half")
            raise OSError("disk full")

    path = tmp_path / "fit.nc"
    path.write_text("whole")
    with pytest.raises(FileError, match="disk full"):
        bridge.save(Broken(), path)
    assert path.read_text() == "whole"
    assert os.listdir(tmp_path) == ["fit.nc"]


def test_import_needs_no_torch_no_cache_directory_and_does_not_load_arviz(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code = (
        "import sys; import ppl_em.errors\n"
        "import importlib.util as u\n"
        f"spec = u.spec_from_file_location('bridge', {str(ROOT / 'ppl_em' / 'arviz_bridge.py')!r})\n"
        "m = u.module_from_spec(spec); sys.modules['bridge'] = m; spec.loader.exec_module(m)\n"
        "assert not {'arviz', 'torch', 'matplotlib'} & set(sys.modules)\n"
        "import os; before = os.environ['XDG_CACHE_HOME']; m.arviz()\n"
        "assert os.environ['XDG_CACHE_HOME'] == before\n"
    )
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "file"), "MPLCONFIGDIR": str(tmp_path)}
    # A stub package root: importing ppl_em itself would import torch.
    stub = tmp_path / "path" / "ppl_em"
    stub.mkdir(parents=True)
    for name in ("errors.py", "arviz_datasets.py"):
        shutil.copy(ROOT / "ppl_em" / name, stub)
    environment["PYTHONPATH"] = str(stub.parent)
    subprocess.run(
        [sys.executable, "-W", "error::FutureWarning", "-c", code], check=True, env=environment, cwd=tmp_path
    )


def _pythons() -> list[Path]:
    """Other Python interpreters at hand, of the generation that gets ArviZ 1.x."""
    found = [shutil.which(f"python3.{minor}") for minor in (12, 13)]
    pyenv = sorted(Path("~/.pyenv/versions").expanduser().glob("3.1[23].*/bin/python"))
    return [*pyenv, *(Path(path) for path in found if path)]


def arviz_1(folder: Path) -> Path:
    """A Python interpreter with ArviZ 1.x and without torch; skips where there is none to build it from."""
    pythons = [path for path in _pythons() if subprocess.run([path, "-c", ""], check=False).returncode == 0]
    if not pythons:
        pytest.skip("no Python 3.12 or 3.13 here")
    python = folder / "venv" / "bin" / "python"
    subprocess.run([pythons[0], "-m", "venv", folder / "venv"], check=True)
    packages = ["arviz>=1,<2", "h5netcdf", "h5py", "pandas", "matplotlib", "pytest"]
    subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def copy_bridge(folder: Path) -> Path:
    """A package root with the bridge alone; its path."""
    stub = folder / "path" / "ppl_em"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text("")
    for name in ("errors.py", "arviz_datasets.py", "arviz_bridge.py"):
        shutil.copy(ROOT / "ppl_em" / name, stub)
    return stub.parent


@pytest.mark.slow
def test_the_same_with_arviz_1(tmp_path: Path) -> None:
    """This file's tests, in an environment with ArviZ 1.x and without torch; and files cross over."""
    python = arviz_1(tmp_path)
    root = copy_bridge(tmp_path)
    shutil.copy(__file__, tmp_path / "test_bridge.py")
    old = bridge.save(bridge.to_native(_groups(np.random.default_rng(0)), {"seed": 3}), tmp_path / "old.nc")
    code = (
        "import arviz, sys, numpy as np; assert int(arviz.__version__.split('.')[0]) == 1\n"
        "assert 'torch' not in sys.modules\n"
        "from ppl_em import arviz_bridge as b; import test_bridge as t\n"
        f"loaded = b.load({str(old)!r}); assert loaded.attrs['seed'] == 3\n"
        "fresh = b.to_native(t._groups(np.random.default_rng(0)), {'seed': 4})\n"
        "assert loaded['em_trace'].to_dataset().identical(fresh['em_trace'].to_dataset())\n"
        f"b.save(fresh, {str(tmp_path / 'new.nc')!r})\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{root}:{tmp_path}"}
    run = [python]
    subprocess.run([*run, "-c", code], check=True, env=environment, cwd=tmp_path)
    loaded = bridge.load(tmp_path / "new.nc")
    assert loaded.attrs["seed"] == 4
    assert loaded["posterior"].identical(_groups(np.random.default_rng(0))["posterior"])
    names = "not arviz_1 and not needs_no_torch"
    subprocess.run(
        [*run, "-m", "pytest", "-q", "-W", "ignore", "-p", "no:cacheprovider", "-k", names, "test_bridge.py"],
        check=True,
        env=environment,
        cwd=tmp_path,
    )
