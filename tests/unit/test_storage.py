"""Results on disk: safe formats, atomic, complete, and honest about what is missing."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

import ppl_em
from ppl_em import EM
from ppl_em.errors import FileError, PplEmError
from tests.unit.programs import chain, mixture, two_kinds

X = two_kinds()


@pytest.fixture(scope="module")
def result() -> ppl_em.FitResult:
    options = {"num_components": 3}
    return ppl_em.fit(mixture, X, model_kwargs=options, restarts=2, freeze="scale", coords={"data": [*range(60)]})


def test_round_trip(result: ppl_em.FitResult, tmp_path: Path) -> None:
    path = result.save(tmp_path / "fit")
    assert sorted(p.name for p in path.iterdir()) == ["result.json", "tensors.safetensors"]
    loaded = ppl_em.load(path, mixture)
    for name in (
        "objective", "objective_name", "log_likelihood", "exact", "status", "converged", "num_steps", "seed",
        "num_parameters", "num_observations", "aic", "bic", "detail",
    ):  # fmt: skip
        assert getattr(loaded, name) == getattr(result, name), name
    assert loaded.params.keys() == result.params.keys()
    for name, value in result.params.items():
        assert torch.equal(loaded.params[name], value)
        assert loaded.params[name].dtype == value.dtype
    assert torch.equal(loaded.history, result.history)
    assert str(loaded.plan) == str(result.plan)
    assert loaded.plan.to_dict() == json.loads(json.dumps(result.plan.to_dict()))
    assert loaded.plan.rule_of("loc") == result.plan.rule_of("loc")
    assert [(r.kind, r.objective, r.status) for r in loaded.restarts] == [
        (r.kind, r.objective, r.status) for r in result.restarts
    ]


def test_a_loaded_result_answers_on_given_data_without_retraining(result: ppl_em.FitResult, tmp_path: Path) -> None:
    loaded = ppl_em.load(result.save(tmp_path), mixture)
    torch.testing.assert_close(loaded.log_prob(X[:7]), result.log_prob(X[:7]))
    torch.testing.assert_close(loaded.posterior(X[:7]).marginal("z").probs, result.posterior(X[:7]).marginal("z").probs)
    assert torch.equal(
        loaded.predict(X[:7], num_samples=3, seed=1)["x"], result.predict(X[:7], num_samples=3, seed=1)["x"]
    )
    assert loaded.summary()["estimate"].equals(result.summary()["estimate"])


def test_data_are_not_stored_unless_asked_for(result: ppl_em.FitResult, tmp_path: Path) -> None:
    without = ppl_em.load(result.save(tmp_path / "without"), mixture)
    with pytest.raises(PplEmError, match="not at hand"):
        without.posterior()
    small, large = tmp_path / "without" / "tensors.safetensors", tmp_path / "with" / "tensors.safetensors"
    with_data = ppl_em.load(result.save(tmp_path / "with", data=True), mixture)
    assert large.stat().st_size > small.stat().st_size + X.numel() * 8 - 1
    torch.testing.assert_close(with_data.log_prob(), result.log_prob())
    torch.testing.assert_close(with_data.posterior().marginal("z").probs, result.posterior().marginal("z").probs)


def test_arguments_of_every_kind_are_stored(tmp_path: Path) -> None:
    def model(series: list[Tensor], flip: bool, *, mask: Tensor) -> None:
        chain(series[0] if not flip else -series[1], mask)

    args = ([X[:5], X[5:10]], True)
    mask = torch.tensor([True, True, False, True, True])
    fitted = ppl_em.fit(model, *args, model_kwargs={"mask": mask}, init="params", method=EM(max_steps=2))
    loaded = ppl_em.load(fitted.save(tmp_path, data=True), model)
    assert float(loaded.log_prob()) == pytest.approx(fitted.objective)
    assert float(loaded.log_prob(*args, mask=mask)) == pytest.approx(fitted.objective)


def test_an_argument_that_cannot_be_stored_is_named(tmp_path: Path) -> None:
    class Wrapper:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    fitted = ppl_em.fit(lambda w: mixture(w.x), Wrapper(X), init="params", method=EM(max_steps=1))
    with pytest.raises(FileError, match="argument 0.*Wrapper"):
        fitted.save(tmp_path, data=True)
    assert list(tmp_path.iterdir()) == []
    fitted.save(tmp_path)


def test_nothing_is_pickled(result: ppl_em.FitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("pickle was used")

    for name in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(pickle, name, refuse)
    monkeypatch.setattr(torch, "save", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    ppl_em.load(result.save(tmp_path), mixture)


def test_a_failed_write_leaves_what_was_there(
    result: ppl_em.FitResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = result.save(tmp_path / "fit")
    before = {p.name: p.read_bytes() for p in path.iterdir()}

    def full(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(FileError, match="No space left"):
            result.save(path)
    assert {p.name: p.read_bytes() for p in path.iterdir()} == before


def test_files_of_two_results_are_not_mixed(result: ppl_em.FitResult, tmp_path: Path) -> None:
    one = result.save(tmp_path / "one")
    other = ppl_em.fit(mixture, X, restarts=1).save(tmp_path / "two")
    (one / "tensors.safetensors").write_bytes((other / "tensors.safetensors").read_bytes())
    with pytest.raises(FileError, match="do not belong together"):
        ppl_em.load(one, mixture)


def test_saving_again_replaces(result: ppl_em.FitResult, tmp_path: Path) -> None:
    result.save(tmp_path)
    other = ppl_em.fit(mixture, X, restarts=1, method=EM(max_steps=1))
    other.save(tmp_path)
    assert ppl_em.load(tmp_path, mixture).objective == other.objective


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"format": 99}', "not json"])
def test_what_is_not_a_result(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(FileError):
        ppl_em.load(tmp_path, mixture)


def test_a_truncated_file(result: ppl_em.FitResult, tmp_path: Path) -> None:
    path = result.save(tmp_path)
    whole = (path / "tensors.safetensors").read_bytes()
    (path / "tensors.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(FileError, match="no readable result"):
        ppl_em.load(path, mixture)


def test_a_directory_that_cannot_be_made(result: ppl_em.FitResult, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match="cannot write"):
        result.save(tmp_path / "file" / "fit")


def test_a_module_gets_its_weights_back(tmp_path: Path) -> None:
    class Line(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)

        def forward(self, x: Tensor, y: Tensor) -> None:
            import pyro
            import pyro.distributions as dist

            pyro.module("line", self)
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(self.layer(x[:, None])[:, 0], 1.0), obs=y)

    torch.manual_seed(0)
    x = torch.linspace(-1, 1, 9)
    y = 2 * x - 1
    fitted = ppl_em.fit(Line(), x, y, method=EM(max_steps=3))
    path = fitted.save(tmp_path)
    fresh = Line()
    loaded = ppl_em.load(path, fresh)
    for name, value in fitted.params.items():
        assert torch.equal(loaded.params[name], value)
    assert float(loaded.log_prob(x, y).sum()) == pytest.approx(fitted.objective, abs=1e-9)
