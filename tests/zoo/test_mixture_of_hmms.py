"""Mixtures of hidden Markov models: hmmlearn scores each class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hmmlearn.hmm import GaussianHMM

import ppl_em
from models import mixture_of_hmms
from tests.tolerances import BRUTE_FORCE


@pytest.fixture(scope="module")
def fitted() -> ppl_em.FitResult:
    return ppl_em.fit(mixture_of_hmms.model, mixture_of_hmms.load(), init="params", restarts=1)


def joint(result: ppl_em.FitResult, x: torch.Tensor) -> torch.Tensor:
    """Log-density of each series and class, (n, C), by hmmlearn."""
    values = {n: v.numpy() for n, v in result.params.items()}
    columns = []
    for c, share in enumerate(values["share"]):
        peer = GaussianHMM(values["init"].shape[1], "diag")
        peer.startprob_, peer.transmat_, peer.means_ = values["init"][c], values["trans"][c], values["loc"][c][:, None]
        peer.covars_ = values["scale"][c][:, None] ** 2
        columns.append([np.log(share) + peer.score(row[:, None].numpy()) for row in x])
    return torch.tensor(columns).T


def test_the_kinds_are_found_again(fitted: ppl_em.FitResult) -> None:
    """Simulated: two in five switch with 0.6 between -1 and 1, the others with 0.1 between -2 and 2, noise 0.7."""
    assert fitted.exact and fitted.converged
    slow = int(fitted.params["loc"].abs().sum(1).argmax())
    assert fitted.params["loc"][slow].sort().values.tolist() == pytest.approx([-2, 2], abs=0.1)
    assert fitted.params["loc"][1 - slow].sort().values.tolist() == pytest.approx([-1, 1], abs=0.2)
    assert float(fitted.params["trans"][slow].diagonal().mean()) == pytest.approx(0.9, abs=0.03)
    assert float(fitted.params["trans"][1 - slow].diagonal().mean()) == pytest.approx(0.4, abs=0.1)


def test_scores_beside_hmmlearn(fitted: ppl_em.FitResult) -> None:
    x = mixture_of_hmms.load()
    table = joint(fitted, x)
    torch.testing.assert_close(fitted.log_prob(), table.logsumexp(1), atol=BRUTE_FORCE, rtol=0)
    assert fitted.log_likelihood == pytest.approx(float(table.logsumexp(1).sum()), abs=BRUTE_FORCE * len(x))
    found = fitted.posterior().marginal("c").probs
    torch.testing.assert_close(found, table.softmax(1), atol=BRUTE_FORCE, rtol=0)


def test_new_series_are_classified(fitted: ppl_em.FitResult) -> None:
    new = mixture_of_hmms.load()[:3, 5:17].flip(1)
    table = joint(fitted, new)
    torch.testing.assert_close(fitted.log_prob(new), table.logsumexp(1), atol=BRUTE_FORCE, rtol=0)
    torch.testing.assert_close(fitted.posterior(new).marginal("c").probs, table.softmax(1), atol=BRUTE_FORCE, rtol=0)


def test_the_plan(golden_plan: Callable) -> None:
    plan = ppl_em.explain(mixture_of_hmms.model, mixture_of_hmms.load())
    assert plan.engine_of("z") == plan.engine_of("c") == "chain"
    for name in ("share", "init", "trans", "loc", "scale"):
        assert plan.rule_of(name) == "closed form"
    golden_plan("mixture_of_hmms", plan)


def test_load_reads_rows(tmp_path) -> None:
    path = tmp_path / "series.csv"
    path.write_text("a,b\n1,2\n3,4\n")
    assert mixture_of_hmms.load(path).tolist() == [[1.0, 2.0], [3.0, 4.0]]
