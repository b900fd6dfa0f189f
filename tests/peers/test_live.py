"""scikit-learn and hmmlearn run beside `fit`, from the same random starts."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

import ppl_em
from models import gmm, hmm
from tests.tolerances import TRAJECTORY

STEPS = 20
pytestmark = pytest.mark.peers


def plain(max_steps: int) -> ppl_em.EM:
    return ppl_em.EM(max_steps=max_steps, tol=0, accelerate=False)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal"])
def test_mixtures_step_as_scikit_learns(covariance: str, seed: int) -> None:
    from sklearn.mixture import GaussianMixture

    generator = np.random.default_rng(seed)
    x = np.concatenate([generator.normal(size=(80, 3)) + shift for shift in (0, 1.5, 3)])
    weights, means = generator.dirichlet(np.ones(3)), generator.normal(size=(3, 3)) + 1.5
    precisions = {"full": np.tile(np.eye(3), (3, 1, 1)), "tied": np.eye(3), "diagonal": np.ones((3, 3))}[covariance]
    start = {"weights": weights, "loc": means, "scale" if covariance == "diagonal" else "cov": precisions}
    options = {"num_components": 3, "covariance": covariance}
    ours = ppl_em.fit(gmm.model, x, init=start, method=plain(STEPS), model_kwargs=options)
    for steps in range(1, STEPS + 1):
        peer = GaussianMixture(
            3,
            covariance_type={"diagonal": "diag"}.get(covariance, covariance),
            max_iter=steps,
            tol=0.0,
            reg_covar=0.0,
            weights_init=weights,
            means_init=means,
            precisions_init=precisions,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it says each time that it has not converged
            peer.fit(x)
        assert peer.score(x) == pytest.approx(float(ours.history[steps]) / len(x), abs=TRAJECTORY)
    np.testing.assert_allclose(peer.means_, ours.params["loc"], atol=TRAJECTORY)
    np.testing.assert_allclose(peer.weights_, ours.params["weights"], atol=TRAJECTORY)
    covariances = ours.params["scale"] ** 2 if covariance == "diagonal" else ours.params["cov"]
    np.testing.assert_allclose(peer.covariances_, covariances, atol=TRAJECTORY)
    np.testing.assert_allclose(peer.predict_proba(x), ours.posterior().marginal("z").probs, atol=TRAJECTORY)


@pytest.mark.parametrize("seed", [0, 1])
def test_poisson_chains_step_as_hmmlearns(seed: int) -> None:
    from hmmlearn.hmm import PoissonHMM

    generator = np.random.default_rng(seed)
    x = hmm.load().numpy().astype(int)
    start = {
        "init": generator.dirichlet(np.ones(3)),
        "trans": generator.dirichlet(np.ones(3), size=3),
        "rate": generator.uniform(8, 35, size=3),
    }
    ours = ppl_em.fit(hmm.model, x.astype(float), init=start, method=plain(STEPS), model_kwargs={"num_states": 3})
    peer = PoissonHMM(3, n_iter=STEPS, tol=-np.inf, init_params="", lambdas_prior=0.0, lambdas_weight=0.0)
    peer.startprob_, peer.transmat_ = start["init"], start["trans"]
    peer.lambdas_ = start["rate"][:, None]
    peer.fit(x[:, None])
    np.testing.assert_allclose(list(peer.monitor_.history), ours.history[:STEPS], atol=TRAJECTORY * len(x))
    np.testing.assert_allclose(peer.lambdas_[:, 0], ours.params["rate"], atol=TRAJECTORY)
    np.testing.assert_allclose(peer.transmat_, ours.params["trans"], atol=TRAJECTORY)
    assert peer.score(x[:, None]) == pytest.approx(ours.objective, abs=TRAJECTORY * len(x))
    log_likelihood, path = peer.decode(x[:, None])
    assert torch.equal(ours.posterior().mode_path("z"), torch.from_numpy(path))
    np.testing.assert_allclose(peer.predict_proba(x[:, None]), ours.posterior().path("z").probs, atol=TRAJECTORY)
