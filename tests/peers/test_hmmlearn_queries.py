"""What a fitted hidden Markov model answers, on training and on new data, beside hmmlearn at the same parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hmmlearn import hmm as peer
from torch import Tensor

import ppl_em
from models import hmm
from tests.tolerances import BRUTE_FORCE, STATISTICAL

K = 3
DRAWS = 2000


def series(emission: str, seed: int, num: int, steps: int) -> Tensor:
    """Series (num, steps[, 2]) with states that last."""
    rng = np.random.default_rng(seed)
    z = np.cumsum(rng.random((num, steps)) < 0.2, 1) % K
    if emission == "gaussian":
        return torch.from_numpy(2.0 * z[..., None] + rng.normal(size=(num, steps, 2)))
    if emission == "poisson":
        return torch.from_numpy(rng.poisson(1 + 4 * z).astype(float))
    return torch.from_numpy((z + (rng.random(z.shape) < 0.3)) % 4)


def fitted(emission: str) -> tuple[ppl_em.FitResult, Any]:
    x = series(emission, 0, 5, 12)
    lengths = torch.tensor([12, 7, 1, 9, 4])
    settings = {"num_states": K, "emission": emission}
    method = ppl_em.EM(max_steps=5, tol=0)
    result = ppl_em.fit(hmm.model, x, lengths, init="params", restarts=1, method=method, model_kwargs=settings)
    values = {n: v.numpy() for n, v in result.params.items()}
    if emission == "gaussian":
        theirs: Any = peer.GaussianHMM(K, "diag")
        theirs.means_, theirs.covars_ = values["loc"], values["scale"] ** 2
    elif emission == "poisson":
        theirs = peer.PoissonHMM(K)
        theirs.lambdas_ = values["rate"][:, None]
    else:
        theirs = peer.CategoricalHMM(K)
        theirs.emissionprob_, theirs.n_features = values["probs"], values["probs"].shape[1]
    theirs.startprob_, theirs.transmat_ = values["init"], values["trans"]
    return result, theirs


@pytest.mark.parametrize("emission", ["gaussian", "poisson", "categorical"])
def test_queries_beside_hmmlearn(emission: str) -> None:
    result, theirs = fitted(emission)
    new, new_lengths = series(emission, 1, 4, 10), torch.tensor([10, 2, 8, 5])
    for args in ((), (new, new_lengths)):
        x, lengths = args or (series(emission, 0, 5, 12), torch.tensor([12, 7, 1, 9, 4]))
        posterior, log_prob = result.posterior(*args), result.log_prob(*args)
        smoothed, mode, filtered = posterior.path("z").probs, posterior.mode_path("z"), posterior.filtered("z").probs
        best, best_log_prob = posterior.k_best(1)
        ahead, by_step = posterior.forecast(2, "z").probs, posterior.log_prob_by_step("z")
        predicted = posterior.predicted("z").probs
        for i, n in enumerate(lengths.tolist()):
            rows = x[i, :n].reshape(n, -1).numpy()
            close(float(log_prob[i]), theirs.score(rows))
            close(smoothed[i, :n], theirs.predict_proba(rows))
            best_score, path = theirs.decode(rows, algorithm="viterbi")
            assert mode[i, :n].tolist() == path.tolist() == best["z"][0, i, :n].tolist()
            close(best_log_prob[0, i], best_score - theirs.score(rows))
            prefixes = [theirs.predict_proba(rows[: t + 1])[-1] for t in range(n)]
            close(filtered[i, :n], np.stack(prefixes))
            scores = [theirs.score(rows[: t + 1]) for t in range(n)]
            close(by_step[i, :n].cumsum(0), np.array(scores))
            onward = [theirs.startprob_, *(p @ theirs.transmat_ for p in prefixes[:-1])]
            close(predicted[i, :n], np.stack(onward))
            close(ahead[i, 0], prefixes[-1] @ theirs.transmat_)
            close(ahead[i, 1], prefixes[-1] @ theirs.transmat_ @ theirs.transmat_)


def test_entropy_pairs_and_draws_of_new_data() -> None:
    """The entropy of a Markov chain from its smoothed pairs; draws hit these pairs."""
    result, _ = fitted("gaussian")
    x, lengths = series("gaussian", 1, 3, 8), torch.tensor([8, 8, 8])
    posterior = result.posterior(x, lengths)
    marginals = posterior.path("z").probs
    pairs = torch.stack([posterior.pairwise(f"z_{t}", f"z_{t + 1}") for t in range(7)], 1)
    torch.testing.assert_close(pairs.sum(-1), marginals[:, :-1])
    torch.testing.assert_close(pairs.sum(-2), marginals[:, 1:])
    entropy = torch.special.entr(pairs).sum() - torch.special.entr(marginals[:, 1:-1]).sum()
    close(posterior.entropy(), entropy)
    drawn = posterior.sample(DRAWS, seed=3)
    paths = torch.stack([drawn[f"z_{t}"] for t in range(8)], -1)
    codes = torch.nn.functional.one_hot(K * paths[..., :-1] + paths[..., 1:], K * K).double().mean(0)
    wanted = pairs.flatten(-2)
    error = STATISTICAL * (wanted * (1 - wanted) / DRAWS).sqrt() + 5 / DRAWS
    assert bool(((codes - wanted).abs() <= error).all())


def close(found: Any, wanted: Any) -> None:
    torch.testing.assert_close(torch.as_tensor(found), torch.as_tensor(wanted), atol=BRUTE_FORCE, rtol=BRUTE_FORCE)
