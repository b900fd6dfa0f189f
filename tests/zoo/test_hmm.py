"""Hidden Markov models: the published fits of the earthquake counts, and the program's three emissions."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import ppl_em
from models import hmm
from tests.tolerances import BRUTE_FORCE, PUBLISHED

# States: Zucchini, MacDonald & Langrock, free initial distribution.
PUBLISHED_MAXIMA = {2: -341.878701, 3: -328.527483}


@pytest.fixture(scope="module")
def three_states() -> ppl_em.FitResult:
    return ppl_em.fit(hmm.model, hmm.load(), model_kwargs={"num_states": 3})


def check(result: ppl_em.FitResult, num_states: int) -> None:
    assert result.log_likelihood == pytest.approx(PUBLISHED_MAXIMA[num_states], abs=PUBLISHED)
    assert result.converged
    assert result.exact
    assert result.num_parameters == num_states**2 + num_states - 1
    assert result.num_observations == 107
    assert result.plan.engine_of("z") == "chain"
    assert result.plan.engine_of("z_17") == "chain"
    for name in ("init", "trans", "rate"):
        assert result.plan.rule_of(name) == "closed form"


def test_one_state_is_independent_counts() -> None:
    result = ppl_em.fit(hmm.model, hmm.load(), model_kwargs={"num_states": 1})
    assert result.log_likelihood == pytest.approx(-391.918928, abs=PUBLISHED)
    assert result.num_parameters == 1
    assert result.posterior().mode()["z_5"] == 0


def test_two_states() -> None:
    check(ppl_em.fit(hmm.model, hmm.load(), model_kwargs={"num_states": 2}), 2)


def test_three_states(three_states: ppl_em.FitResult) -> None:
    check(three_states, 3)
    means = three_states.params["rate"].sort().values
    assert means.tolist() == pytest.approx([13.134, 19.713, 29.710], abs=PUBLISHED)


def test_posterior_of_the_path(three_states: ppl_em.FitResult) -> None:
    posterior = three_states.posterior()
    assert posterior.path("z").probs.shape == (107, 3)
    assert torch.equal(posterior.path("z").probs[40], posterior.marginal("z_40").probs)
    # The last state's filtered marginal has seen all that its smoothed one has.
    torch.testing.assert_close(posterior.filtered("z").probs[-1], posterior.marginal("z_106").probs)
    one, two = posterior.forecast(2).probs
    torch.testing.assert_close(one, posterior.filtered("z").probs[-1] @ three_states.params["trans"])
    torch.testing.assert_close(two, one @ three_states.params["trans"])
    path = torch.stack([posterior.mode()[f"z_{t}"] for t in range(107)])
    assert torch.equal(path, posterior.mode_path("z"))


@pytest.mark.parametrize("num_states", [2, 3])
def test_plan(num_states: int, golden_plan: Callable) -> None:
    golden_plan(f"hmm_{num_states}", ppl_em.explain(hmm.model, hmm.load(), model_kwargs={"num_states": num_states}))


def ragged(emission: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([6, 3, 1, 5])
    if emission == "gaussian":
        x = torch.randn(4, 6, 2, generator=generator)
    elif emission == "poisson":
        x = torch.poisson(torch.full((4, 6), 4.0), generator=generator)
    else:
        x = torch.randint(3, (4, 6), generator=generator)
    return x, lengths


@pytest.mark.parametrize("emission", ["poisson", "gaussian", "categorical"])
def test_padding_is_not_data(emission: str, golden_plan: Callable) -> None:
    options = {"emission": emission}
    x, lengths = ragged(emission)
    result = ppl_em.fit(hmm.model, x, lengths, model_kwargs=options, restarts=2)
    assert result.num_observations == 4
    # Each series by itself, of its own length, under the same parameters.
    one_by_one = sum(float(result.log_prob(x[i, :n], **options).sum()) for i, n in enumerate(lengths.tolist()))
    assert result.log_likelihood == pytest.approx(one_by_one, abs=BRUTE_FORCE)
    each = result.log_prob()
    assert each.shape == (4,)
    assert float(each.sum()) == pytest.approx(one_by_one, abs=BRUTE_FORCE)
    golden_plan(f"hmm_ragged_{emission}", result.plan)


def test_load_reads_the_last_column(tmp_path) -> None:
    path = tmp_path / "series.csv"
    path.write_text("year,count\n1900,3\n1901,5\n")
    assert torch.equal(hmm.load(path), torch.tensor([3.0, 5.0]))
