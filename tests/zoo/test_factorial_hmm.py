"""Factorial hidden Markov models beside hmmlearn over the joint states."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hmmlearn.hmm import GaussianHMM

import ppl_em
from models import factorial_hmm
from tests.tolerances import ASCENT, BRUTE_FORCE


def joint(result: ppl_em.FitResult, num_chains: int) -> GaussianHMM:
    """The same model as one chain over all combinations of states."""
    values = {n: v.numpy() for n, v in result.params.items()}
    init, trans, mean = np.ones(1), np.ones((1, 1)), values["base"].reshape(1)
    for i in range(num_chains):
        init = np.kron(init, values[f"init_{i}"])
        trans = np.kron(trans, values[f"trans_{i}"])
        mean = (mean[:, None] + np.append(0.0, values[f"part_{i}"])).reshape(-1)
    peer = GaussianHMM(len(init), "diag")
    peer.startprob_, peer.transmat_, peer.means_ = init, trans, mean[:, None]
    peer.covars_ = np.full((len(init), 1), values["scale"] ** 2)
    return peer


@pytest.mark.slow
def test_two_switches_are_found_again() -> None:
    """Simulated from 0 and 4, 0 and 1.5, noise 0.4, switching with 0.04 and 0.3."""
    x = factorial_hmm.load()
    result = ppl_em.fit(factorial_hmm.model, x, init="params", restarts=1)
    assert result.exact and result.converged
    assert bool((result.history.diff() >= -ASCENT * (1 + result.history[:-1].abs())).all())
    peer = joint(result, 2)
    assert result.log_likelihood == pytest.approx(float(peer.score(x[:, None].numpy())), abs=BRUTE_FORCE * len(x))
    # hmmlearn, free of the factorial structure, gains little from here, and what it gains in is noise of 6 numbers.
    assert sorted(float(result.params[f"part_{i}"].abs()) for i in range(2)) == pytest.approx([1.5, 4.0], abs=0.1)
    assert float(result.params["scale"]) == pytest.approx(0.4, abs=0.03)
    posterior = result.posterior()
    codes = 2 * posterior.mode_path("z0") + posterior.mode_path("z1")
    assert codes.tolist() == peer.decode(x[:, None].numpy())[1].tolist()
    smoothed = torch.from_numpy(peer.predict_proba(x[:, None].numpy())).reshape(-1, 2, 2)
    torch.testing.assert_close(posterior.path("z0").probs, smoothed.sum(2), atol=BRUTE_FORCE, rtol=0)
    torch.testing.assert_close(posterior.path("z1").probs, smoothed.sum(1), atol=BRUTE_FORCE, rtol=0)


def test_three_chains_score_as_one() -> None:
    x, sizes = factorial_hmm.load()[:20], (2, 3, 2)
    method = ppl_em.EM(max_steps=2, tol=0, accelerate=False)
    options = {"num_states": sizes}
    result = ppl_em.fit(factorial_hmm.model, x, init="params", restarts=1, method=method, model_kwargs=options)
    peer = joint(result, 3)
    assert result.log_likelihood == pytest.approx(float(peer.score(x[:, None].numpy())), abs=BRUTE_FORCE * len(x))


def test_the_plan(golden_plan: Callable) -> None:
    plan = ppl_em.explain(factorial_hmm.model, factorial_hmm.load()[:20])
    assert plan.engine_of("z0") == plan.engine_of("z1_7") == "chain"
    assert plan.rule_of("part_0") == plan.rule_of("base") == "least squares"
    golden_plan("factorial_hmm", plan)


def test_load_reads_the_last_column(tmp_path) -> None:
    path = tmp_path / "series.csv"
    path.write_text("t,x\n0,3\n1,5\n")
    assert factorial_hmm.load(path).tolist() == [3.0, 5.0]
