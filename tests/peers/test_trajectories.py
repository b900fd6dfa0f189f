"""The same start, the same steps: `fit` against recorded EM trajectories of scikit-learn, hmmlearn and pomegranate.

The recordings (tests/golden) hold the average log-likelihood per observation at the parameters that enter each of 20
iterations, and the parameters after 1 and after 20.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints

import ppl_em
from tests.tolerances import BRUTE_FORCE, TRAJECTORY, TRAJECTORY_FLOAT32

GOLDEN = Path(__file__).parents[1] / "golden"
STEPS = 20


def golden(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files if file[key].dtype.kind in "fi"}


def gaussian_mixture(x: torch.Tensor) -> None:
    w = pyro.param("w", torch.ones(3) / 3, constraint=constraints.simplex)
    mu = pyro.param("mu", torch.zeros(3, 4))
    var = pyro.param("cov", torch.ones(3, 4), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(mu[z], var[z].sqrt()).to_event(1), obs=x)


def latent_classes(x: torch.Tensor) -> None:
    w = pyro.param("w", torch.ones(3) / 3, constraint=constraints.simplex)
    th = pyro.param("th", torch.ones(3, 10) / 2, constraint=constraints.unit_interval)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Bernoulli(th[z]).to_event(1), obs=x)


def _parameters() -> tuple[torch.Tensor, torch.Tensor]:
    pi = pyro.param("pi", torch.ones(3) / 3, constraint=constraints.simplex)
    a = pyro.param("A", torch.ones(3, 3) / 3, constraint=constraints.simplex)
    return pi, a


def _categorical() -> Callable[[torch.Tensor], Any]:
    b = pyro.param("B", torch.ones(3, 6) / 6, constraint=constraints.simplex)
    return lambda z: dist.Categorical(b[z])


def _gaussian() -> Callable[[torch.Tensor], Any]:
    mu = pyro.param("mu", torch.zeros(3, 2))
    var = pyro.param("var", torch.ones(3, 2), constraint=constraints.positive)
    return lambda z: dist.Normal(mu[z], var[z].sqrt()).to_event(1)


EMISSIONS = {"hmm_cat_ragged": _categorical, "hmm_gauss_ragged": _gaussian}


def masked_hmm(x: torch.Tensor, lengths: torch.Tensor, name: str) -> None:
    """All sequences in one plate, padded to the longest and masked."""
    (pi, a), emit = _parameters(), EMISSIONS[name]()
    z = None
    with pyro.plate("sequences", len(x)):
        for t in pyro.markov(range(x.shape[1])):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Categorical(pi if z is None else a[z]))
                pyro.sample(f"x_{t}", emit(z), obs=x[:, t])


def looped_hmm(sequences: list[torch.Tensor], name: str) -> None:
    """One sequence after the other, each of its own length, without any plate."""
    (pi, a), emit = _parameters(), EMISSIONS[name]()
    for i in pyro.markov(range(len(sequences)), history=0):
        z = None
        for t, x in pyro.markov(enumerate(sequences[i])):
            z = pyro.sample(f"z_{i}_{t}", dist.Categorical(pi if z is None else a[z]))
            pyro.sample(f"x_{i}_{t}", emit(z), obs=x)


def check(
    record: dict[str, torch.Tensor], peers: list[str], size: int, model: Callable, *args: Any
) -> ppl_em.FitResult:
    init = {key.removeprefix("init_"): value for key, value in record.items() if key.startswith("init_")}
    seen: dict[int, dict[str, torch.Tensor]] = {}
    method = ppl_em.EM(
        max_steps=STEPS, tol=0, accelerate=False, callback=lambda state: seen.update({state.step: state.params})
    )
    result = ppl_em.fit(model, *args, init=init, method=method)
    assert result.exact
    assert result.num_steps == STEPS
    assert result.status is ppl_em.Status.ALL_STEPS
    assert not result.converged
    assert len(result.history) == STEPS + 1
    assert result.objective == float(result.history[-1])
    for peer in peers:
        ours, theirs = result.history[:STEPS] / size, record[f"lls_{peer}"]
        assert float((ours - theirs).abs().max()) < TRAJECTORY
        for name in init:
            assert float((seen[0][name] - init[name]).abs().max()) == 0
            assert float((seen[1][name] - record[f"p1_{peer}_{name}"]).abs().max()) < TRAJECTORY
            assert float((result.params[name] - record[f"p20_{peer}_{name}"]).abs().max()) < TRAJECTORY
    return result


def test_diagonal_mixture_against_scikit_learn() -> None:
    record = golden("gmm_diag")
    result = check(record, ["sklearn", "ref_torch"], 1500, gaussian_mixture, record["data_X"])
    again = ppl_em.fit(gaussian_mixture, record["data_X"], init=result, method=ppl_em.EM(max_steps=0))
    assert again.objective == pytest.approx(result.objective, abs=BRUTE_FORCE)


def test_latent_classes_against_pomegranate() -> None:
    record = golden("lca")
    result = check(record, ["ref_numpy", "ref_torch"], 1500, latent_classes, record["data_X"].double())
    # pomegranate computes in float32.
    average = result.history[:STEPS] / 1500
    assert float((average - record["lls_pomegranate"]).abs().max()) < TRAJECTORY_FLOAT32


def sequences(record: dict[str, torch.Tensor]) -> list[torch.Tensor]:
    return list(record["data_X"].split(record["data_lengths"].tolist()))


HMMLEARN = ["hmmlearn_scaling", "hmmlearn_log", "ref_numpy"]


@pytest.mark.parametrize("name", EMISSIONS)
def test_masked_sequences_against_hmmlearn(name: str) -> None:
    record = golden(name)
    padded = torch.nn.utils.rnn.pad_sequence(sequences(record), batch_first=True)
    check(record, HMMLEARN, len(record["data_X"]), masked_hmm, padded, record["data_lengths"], name)


@pytest.mark.parametrize("name", EMISSIONS)
def test_sequences_in_a_python_loop_against_hmmlearn(name: str) -> None:
    record = golden(name)
    check(record, HMMLEARN, len(record["data_X"]), looped_hmm, sequences(record), name)
