"""Simulation-based calibration: ranks of right posteriors are uniform, of wrong ones they are not."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

import ppl_em
from models import gmm, hmm
from ppl_em.errors import PplEmError
from ppl_em.posterior import Posterior

X = torch.linspace(-4, 4, 400)


def classes(x: torch.Tensor) -> None:
    """Three classes of which two overlap."""
    loc = pyro.param("loc", torch.tensor([-2.0, 0.0, 0.5]))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.5, 0.2])))
        pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_an_exact_posterior_is_calibrated(seed: int) -> None:
    ranks = ppl_em.calibrate(ppl_em.fit(classes, X, init="params", method=ppl_em.EM(max_steps=0)), seed=seed)
    assert ranks.values["k"].shape == (400,)
    assert bool(((ranks.values["k"] >= 0) & (ranks.values["k"] <= 1)).all())
    assert ranks.distance("k") < 1.2 * ranks.band


def test_a_posterior_that_is_too_sure_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    class Sure(Posterior):
        def sample(self, num_samples: int = 1, seed: int | None = None) -> dict[str, torch.Tensor]:
            return {n: v.expand(num_samples, *v.shape) for n, v in self.mode().items()}

    result = ppl_em.fit(classes, X, init="params", method=ppl_em.EM(max_steps=0))
    right = result.posterior
    monkeypatch.setattr(
        type(result), "posterior", lambda self, *args: Sure(right(*args).plan, right(*args)._parameters)
    )
    ranks = ppl_em.calibrate(result)
    assert ranks.distance("k") > 2 * ranks.band


def test_dimensions_have_names_and_the_fit_is_left_alone(no_footprint) -> None:
    result = ppl_em.fit(gmm.model, gmm.load(), restarts=1)
    before = result.params["loc"].clone()
    with no_footprint():
        ranks = ppl_em.calibrate(result, num_draws=19)
    assert set(ranks.values) == {"z"} and ranks.worst == "z"
    assert torch.equal(ranks.values["z"], ppl_em.calibrate(result, num_draws=19).values["z"])
    assert torch.equal(before, result.params["loc"])


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(PplEmError, match="latents of single data"):
        ppl_em.calibrate(ppl_em.fit(hmm.model, hmm.load(), restarts=1))

    def hidden(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(k.to(x), 1.0), obs=x + 1)

    with pytest.raises(PplEmError, match="not an argument of the model.*'x'"):
        ppl_em.calibrate(ppl_em.fit(hidden, X))
