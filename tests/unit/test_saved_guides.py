"""Fits by variational inference on disk: a loaded one answers as the one that was saved, without training anew."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive
from torch import Tensor, nn

import ppl_em
from ppl_em import SVI
from ppl_em.errors import PplEmError

X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1
Y = torch.randn(7, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


class Decoder:
    """A variational autoencoder with a switch that is summed and a global shift."""

    def __init__(self) -> None:
        self.net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 4))

    def __call__(self, x: Tensor) -> None:
        """Scores x (n, 4)."""
        net = pyro.module("decoder", self.net)
        shift = pyro.sample("shift", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            c = pyro.sample("c", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(net(z) + shift + c[..., None], 0.5).to_event(1), obs=x)


class Guide:
    """A guide of the user's, with a network and a parameter of its own."""

    def __init__(self) -> None:
        self.net = nn.Linear(4, 4)

    def __call__(self, x: Tensor) -> None:
        """Draws the latents of x (n, 4)."""
        net = pyro.module("recogniser", self.net)
        pyro.sample("shift", dist.Normal(pyro.param("centre", torch.tensor(0.0)), 0.1))
        with pyro.plate("data", len(x)):
            inputs = net(x)
            pyro.sample("z", dist.Normal(inputs[..., :2], inputs[..., 2:].exp()).to_event(1))


def forget(*modules: nn.Module) -> None:
    """Other weights, as in a fresh process."""
    with torch.no_grad():
        for module in modules:
            for weight in module.parameters():
                weight.normal_()


def answers(result: ppl_em.FitResult) -> tuple[Tensor, Tensor, Tensor]:
    drawn = result.predict(Y, num_samples=2, seed=3)["x"]
    return result.log_prob(Y), result.posterior(Y).marginal("z").mean, drawn


def compare(mine: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> None:
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("covariance", ["diagonal", "full"])
@pytest.mark.parametrize("globals", ["point", "mean-field"])
def test_an_automatic_guide_is_rebuilt(covariance: str, globals: str, tmp_path: Path) -> None:
    model = Decoder()
    settings = SVI(max_steps=30, lr=0.01, hidden=(16,), covariance=covariance, globals=globals)  # type: ignore[arg-type]
    result = ppl_em.fit(model, X, method=settings)
    expected = answers(result)
    result.save(tmp_path)
    forget(model.net)
    fresh = Decoder()
    loaded = ppl_em.load(tmp_path, fresh)
    compare(answers(loaded), expected)
    assert loaded.bits_per_value == result.bits_per_value
    assert loaded.num_trained == result.num_trained == 40
    drawn = Predictive(loaded.model, guide=loaded.guide, num_samples=3)(Y)
    assert drawn["z"].shape == (3, 7, 2) and drawn["c"].shape == (3, 7)


def test_a_users_guide_is_given(tmp_path: Path) -> None:
    model, guide = Decoder(), Guide()
    result = ppl_em.fit(model, X, guide=guide, method=SVI(max_steps=30, lr=0.01))
    expected, likelihood = answers(result), result.estimate_log_likelihood(50, Y)
    result.save(tmp_path)
    forget(model.net, guide.net)
    compare(answers(ppl_em.load(tmp_path, Decoder(), guide=Guide())), expected)
    with pytest.raises(PplEmError, match=r"guide of yours.*load\(path, model, guide=guide\)"):
        ppl_em.load(tmp_path, Decoder()).posterior(Y)
    estimate = ppl_em.load(tmp_path, Decoder(), guide=Guide()).estimate_log_likelihood(50, Y)
    assert estimate == pytest.approx(likelihood, abs=1e-12)


class Recogniser(nn.Module):
    """An encoder of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> dist.Distribution:
        """The posterior of a code given x (n, 4)."""
        return dist.Normal(self.net(x), 0.3).to_event(1)


def test_an_encoder_is_given_as_the_guide(tmp_path: Path) -> None:
    model = Decoder()
    settings = SVI(max_steps=30, lr=0.01, encoder=Recogniser(), globals="point")
    result = ppl_em.fit(model, X, method=settings)
    expected = answers(result)
    result.save(tmp_path)
    compare(answers(ppl_em.load(tmp_path, Decoder(), guide=Recogniser())), expected)
    with pytest.raises(PplEmError, match="encoder of yours"):
        ppl_em.load(tmp_path, Decoder()).posterior(Y)


def test_saved_twice(tmp_path: Path) -> None:
    result = ppl_em.fit(Decoder(), X, method=SVI(max_steps=10, hidden=(8,)))
    expected = answers(result)
    once = ppl_em.load(result.save(tmp_path / "one"), Decoder())
    twice = ppl_em.load(once.save(tmp_path / "two"), Decoder())
    compare(answers(twice), expected)


def test_other_data_that_are_unlike_are_refused(tmp_path: Path) -> None:
    result = ppl_em.fit(Decoder(), X, method=SVI(max_steps=2, hidden=(8,)))
    loaded = ppl_em.load(result.save(tmp_path), Decoder())

    def wide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1, True), 0.5).expand(x.shape).to_event(1), obs=x)

    with pytest.raises(PplEmError, match="cannot be rebuilt"):
        replace(loaded, _model=wide, params={}).log_prob(torch.randn(3, 6))


def test_a_file_without_a_guide_says_so(tmp_path: Path) -> None:
    result = ppl_em.fit(Decoder(), X, method=SVI(max_steps=2, hidden=(8,)))
    path = result.save(tmp_path) / "result.json"
    header = json.loads(path.read_text())
    del header["guide"]
    path.write_text(json.dumps(header))
    loaded = ppl_em.load(tmp_path, Decoder())
    for ask in (lambda: loaded.posterior(Y), lambda: loaded.guide):
        with pytest.raises(PplEmError, match="not at hand"):
            ask()
