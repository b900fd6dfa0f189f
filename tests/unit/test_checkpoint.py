"""A fit that dies goes on from its checkpoint; a file of another fit is left alone."""

from __future__ import annotations

from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import ppl_em
from ppl_em import checkpointing
from ppl_em.errors import FileError
from tests.unit.programs import mixture, two_kinds

X = two_kinds()


class Crash(Exception):
    """The machine goes down."""


def crash_at(step: int):
    def callback(state) -> None:
        if state.step >= step:
            raise Crash

    return callback


@pytest.fixture(autouse=True)
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every state is written."""
    monkeypatch.setattr(checkpointing, "INTERVAL", 0.0)


def test_em_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "fit.ckpt"
    slow = {"accelerate": False, "tol": 1e-9}
    with pytest.raises(Crash):
        ppl_em.fit(mixture, X, init="params", checkpoint=path, method=ppl_em.EM(**slow, callback=crash_at(4)))
    assert [p.name for p in tmp_path.iterdir()] == ["fit.ckpt"]
    whole = ppl_em.fit(mixture, X, init="params", method=ppl_em.EM(**slow))
    rest = ppl_em.fit(mixture, X, init="params", checkpoint=path, method=ppl_em.EM(**slow))
    assert float(rest.history[0]) == pytest.approx(float(whole.history[4]), abs=1e-9)
    assert rest.num_steps < whole.num_steps
    assert rest.objective == pytest.approx(whole.objective, abs=1e-7)
    # Finished: the same call is at its end at once.
    again = ppl_em.fit(mixture, X, init="params", checkpoint=path, method=ppl_em.EM(**slow))
    assert again.num_steps <= 3 and again.objective == pytest.approx(rest.objective, abs=1e-7)


def test_svi_goes_on_with_its_guide(tmp_path: Path) -> None:
    def line(x: torch.Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(2.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    path = tmp_path / "fit.ckpt"
    options = {"max_steps": 600, "lr": 1e-2, "hidden": (16,)}
    x = 3 * torch.randn(100)
    with pytest.raises(Crash):
        ppl_em.fit(line, x, checkpoint=path, method=ppl_em.SVI(**options, callback=crash_at(500)))
    first = ppl_em.fit(line, x, method=ppl_em.SVI(**options)).history
    rest = ppl_em.fit(line, x, checkpoint=path, method=ppl_em.SVI(**options))
    assert float(rest.history[0]) > float(first[0]) + 0.8 * float(first[-1] - first[0])


def test_a_file_of_another_fit_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "fit.ckpt"
    ppl_em.fit(mixture, X, init="params", checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(FileError, match="belongs to another fit"):
        ppl_em.fit(mixture, X[:-3], checkpoint=path)
    assert path.read_bytes() == before
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    with pytest.raises(FileError, match="checkpoint"):
        ppl_em.fit(mixture, X, checkpoint=other)
    assert other.read_text() == "mine"
    with pytest.raises(FileError, match="does not exist"):
        ppl_em.fit(mixture, X, checkpoint=tmp_path / "nowhere" / "fit.ckpt")


def test_the_best_of_all_starts_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "fit.ckpt"
    result = ppl_em.fit(mixture, X, restarts=4, checkpoint=path)
    held = checkpointing.Checkpoint.open(path).values
    evaluated = ppl_em.fit(mixture, X, init=dict(held), method=ppl_em.EM(max_steps=0))
    assert evaluated.objective == pytest.approx(result.objective, abs=1e-9)
