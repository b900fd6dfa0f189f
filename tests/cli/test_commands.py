"""The command line from end to end, in this process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import ppl_em
from ppl_em import arviz_bridge, output
from ppl_em.cli import main
from ppl_em.model_file import read_model
from tests.tolerances import PUBLISHED

ROOT = Path(__file__).parents[2]
FAITHFUL = ROOT / "ppl_em" / "data" / "faithful.csv"
MCLUST = -1130.264068

MODEL = """
import pyro, torch
import pyro.distributions as dist
from pyro.distributions import constraints

def model(x, K=2):
    n, d = x.shape
    weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
    loc = pyro.param("loc", x[:K].clone())
    cov = pyro.param("cov", torch.eye(d).repeat(K, 1, 1), constraint=constraints.positive_definite)
    with pyro.plate("data", n):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(loc[z], covariance_matrix=cov[z]), obs=x)
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "mixture.py"
    path.write_text(MODEL)
    return path


def refused(capsys: pytest.CaptureFixture[str], *argv: object) -> str:
    """Runs a command that must end with status 2 and one line on stderr; returns the line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in argv])
    captured = capsys.readouterr()
    assert ended.value.code == 2
    assert captured.err.startswith("ppl-em: ")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    return captured.err


def run(*argv: object) -> None:
    """Runs a command that must succeed."""
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in argv])
    assert ended.value.code == 0


def test_fit_writes_everything(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "out"
    run("fit", model, "--data", FAITHFUL, "--out", out)
    printed = capsys.readouterr().out
    assert f"{MCLUST:.2f}" in printed
    assert "mixture" in printed

    assert set(os.listdir(out)) == set(output.RESULT_NAMES)
    assert "mixture" in (out / "plan.txt").read_text()
    assert json.loads((out / "plan.json").read_text())
    assert len(pd.read_csv(out / "summary.csv")) >= 2
    assert (out / output.PICTURE).read_bytes().startswith(b"\x89PNG")
    native = arviz_bridge.load(out / "posterior.nc")
    assert "observed_data" in arviz_bridge.group_names(native)

    loaded = ppl_em.load(out / output.RESULT, read_model(str(model)).model)
    assert float(loaded.objective) == pytest.approx(MCLUST, abs=PUBLISHED)
    assert torch.get_default_dtype() == torch.float64
    x = torch.as_tensor(pd.read_csv(FAITHFUL).to_numpy())
    assert float(loaded.log_prob(x).sum()) == pytest.approx(float(loaded.objective), abs=1e-6)


def test_options_reach_the_fit(model: Path, tmp_path: Path) -> None:
    options = ["--columns", "waiting", "--arg", "K=1", "--restarts", "1", "--seed", "3", "--method", "em"]
    run("fit", model, "--data", FAITHFUL, "--out", tmp_path / "out", *options)
    loaded = ppl_em.load(tmp_path / "out" / output.RESULT, read_model(str(model)).model)
    waiting = pd.read_csv(FAITHFUL)["waiting"].to_numpy()
    assert loaded.params["loc"].tolist() == [[pytest.approx(waiting.mean())]]
    assert loaded.params["cov"].item() == pytest.approx(np.var(waiting))
    assert loaded.seed == 3


def test_explain_prints_the_plan(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("explain", model, "--data", FAITHFUL)
    text = capsys.readouterr().out
    assert "mixture" in text and "closed form" in text
    run("explain", f"{model}:model", "--data", FAITHFUL, "--json")
    assert json.loads(capsys.readouterr().out)


def test_compare_ranks_fits(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for k in (1, 2):
        run("fit", model, "--data", FAITHFUL, "--out", tmp_path / f"k{k}", "--arg", f"K={k}", "--restarts", 2)
    capsys.readouterr()
    run("compare", tmp_path / "k1", tmp_path / "k2")
    text = capsys.readouterr().out
    assert "k1" in text and "k2" in text
    assert "-1130.26" in text


def test_mistakes_are_one_line_and_status_2(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    fit = ["fit", model, "--out", out, "--data"]
    assert "no such file" in refused(capsys, *fit, tmp_path / "absent.csv")
    assert "no column named length" in refused(capsys, *fit, FAITHFUL, "--columns", "length")
    assert "NAME=VALUE" in refused(capsys, *fit, FAITHFUL, "--arg", "K:2")
    (tmp_path / "gaps.csv").write_text("a,b\n1,2\n,3\n4,5\n")
    assert "'x'" in refused(capsys, *fit, tmp_path / "gaps.csv")
    (tmp_path / "empty.csv").write_text("a,b\n")
    assert "no rows" in refused(capsys, *fit, tmp_path / "empty.csv")
    assert "no callable named 'other'" in refused(capsys, "explain", f"{model}:other", "--data", FAITHFUL)
    assert refused(capsys, "explain", model)  # the model needs an argument
    assert "not the output of a fit" in refused(capsys, "compare", tmp_path)
    assert os.listdir(out) == []


def test_the_output_is_checked_before_the_fit(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model.write_text("raise SystemExit('the model was run')")
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(capsys, "fit", model, "--data", FAITHFUL, "--out", tmp_path / "file")
    (tmp_path / "plan.txt").write_text("precious")
    assert "--force" in refused(capsys, "fit", model, "--data", FAITHFUL, "--out", tmp_path)
    assert (tmp_path / "plan.txt").read_text() == "precious"


def test_force_replaces(model: Path, tmp_path: Path) -> None:
    argv = ["fit", model, "--data", FAITHFUL, "--out", tmp_path / "out", "--arg", "K=1", "--restarts", 1]
    run(*argv)
    (tmp_path / "out" / "plan.txt").write_text("old")
    run(*argv, "--force")
    assert (tmp_path / "out" / "plan.txt").read_text() != "old"


def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from ppl_em import demo

    monkeypatch.chdir(tmp_path)
    run("demo")
    printed = capsys.readouterr().out
    assert f"{MCLUST:.2f}" in printed
    assert "verdict: exact log-likelihood" in printed
    written = tmp_path / "ppl-em-demo"
    assert set(os.listdir(written)) == set(demo.NAMES)
    assert (written / demo.PICTURE).stat().st_size > 10_000
    native = arviz_bridge.load(written / demo.NETCDF)
    assert native["observed_data"]["x"].shape == (272, 2)
    run("demo")
    assert os.listdir(tmp_path) == ["ppl-em-demo"]


def test_the_module_is_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ppl_em", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for command in ("fit", "explain", "report", "compare", "demo"):
        assert command in done.stdout


def test_the_report_of_a_fit_is_written_once(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted = tmp_path / "fitted"
    run(*["fit", str(model), "--data", str(FAITHFUL), "--out", str(fitted)])
    run(*["report", str(fitted)])
    page = (fitted / "report.html").read_text(encoding="utf-8")
    values = json.loads((fitted / "report.json").read_text(encoding="utf-8"))
    assert values["fit"]["log_likelihood"] == pytest.approx(MCLUST, abs=PUBLISHED)
    assert f"{values['fit']['log_likelihood']:.8g}".replace("-", "−") in page
    assert "report exists already" in refused(capsys, "report", fitted)
    run(*["report", str(fitted), "--force"])
    run(*["report", str(fitted), "--out", str(tmp_path / "elsewhere.html")])
    assert (tmp_path / "elsewhere.html").read_text(encoding="utf-8") == page
