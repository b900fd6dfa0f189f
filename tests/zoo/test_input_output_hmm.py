"""Input-output hidden Markov models beside statsmodels' time-varying transition probabilities."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch

import ppl_em
from models import input_output_hmm
from tests.tolerances import ASCENT, BRUTE_FORCE


@pytest.mark.slow
def test_the_maximum_of_statsmodels() -> None:
    """Its maximum, with a known state before the series, lies between two of ours, where the first state is free."""
    import statsmodels.api as sm

    u, x = input_output_hmm.load()
    result = ppl_em.fit(input_output_hmm.model, u, x, init="params", restarts=1)
    assert result.exact and result.converged
    value = {n: v.numpy() for n, v in result.params.items()}
    before, move = np.array([0.5, 0.5]), value["move"][:, 0]
    stay = 1 / (1 + np.exp(-move @ u[0].numpy()))  # of going to the first state, from each
    once = np.stack([stay, 1 - stay], 1)
    first = float((before @ once @ once)[0])  # it moves twice before the first output
    at = {**result.params, "init": torch.tensor([first, 1 - first])}
    same = ppl_em.fit(input_output_hmm.model, u, x, init=at, restarts=1, method=ppl_em.EM(max_steps=0))

    peer = sm.tsa.MarkovRegression(x.numpy(), 2, exog=u[:, 1:].numpy(), exog_tvtp=u.numpy(), switching_variance=True)
    peer.initialize_known(before)
    params = np.array([*move.T.reshape(-1), *value["coef"].T.reshape(-1), *value["scale"] ** 2])
    assert same.log_likelihood == pytest.approx(float(peer.loglike(params)), abs=BRUTE_FORCE * len(x))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of its own line search
        maximum = float(peer.fit(start_params=params, disp=0).llf)
    assert same.log_likelihood <= maximum <= result.log_likelihood
    assert result.log_likelihood - maximum < 3.0

    found = peer.smooth(params).smoothed_marginal_probabilities
    torch.testing.assert_close(same.posterior().path("z").probs, torch.from_numpy(np.asarray(found)), atol=1e-8, rtol=0)


def test_three_states_ascend() -> None:
    u, x = (t[:40] for t in input_output_hmm.load())
    method, options = ppl_em.EM(max_steps=5, tol=0, accelerate=False), {"num_states": 3}
    result = ppl_em.fit(input_output_hmm.model, u, x, init="params", restarts=1, method=method, model_kwargs=options)
    assert result.num_parameters == 2 + 12 + 6 + 3
    assert bool((result.history.diff() >= -ASCENT * (1 + result.history[:-1].abs())).all())
    assert float(result.history[-1]) > float(result.history[0]) + 1


def test_the_plan(golden_plan: Callable) -> None:
    u, x = (t[:40] for t in input_output_hmm.load())
    plan = ppl_em.explain(input_output_hmm.model, u, x)
    assert plan.engine_of("z") == "chain"
    assert plan.rule_of("move") == "newton"
    assert plan.rule_of("coef") == "least squares"
    golden_plan("input_output_hmm", plan)


def test_load_reads_a_table(tmp_path) -> None:
    path = tmp_path / "series.csv"
    path.write_text("u,x\n0.5,2\n1.5,0\n")
    u, x = input_output_hmm.load(path)
    assert u.tolist() == [[1.0, 0.5], [1.0, 1.5]]
    assert x.tolist() == [2.0, 0.0]
