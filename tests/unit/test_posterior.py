"""Posterior queries in the terms of the program: values, supports, shapes; against a listing of all assignments."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

import ppl_em
from ppl_em import EM
from ppl_em.errors import PplEmError
from tests.styles.oracle import Truth, enumerate_program
from tests.tolerances import BRUTE_FORCE
from tests.unit.programs import chain

AT_START = EM(max_steps=0)


def kinds(x: Tensor, y: Tensor) -> None:
    """One latent of each kind, in one connected component, and a coin in another; x (2, 3), y (2,)."""
    loc = pyro.param("loc", torch.tensor([-1.0, 0.5, 2.0]))
    theta = pyro.param("theta", torch.tensor(0.3), constraint=constraints.unit_interval)
    n = pyro.sample("n", dist.Binomial(2, theta))
    rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 3, dim=-1)
    with rows:
        hot = pyro.sample("hot", dist.OneHotCategorical(torch.tensor([0.2, 0.3, 0.5])))
        with columns:
            mean = loc[n.long()] + (hot * loc).sum(-1)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)
    with rows:
        coin = pyro.sample("coin", dist.Bernoulli(0.4))
        pyro.sample("y", dist.Normal(3 * coin, 1.0), obs=y[:, None])


DATA = (torch.tensor([[0.1, 0.5, -0.3], [2.0, 2.6, 1.1]]), torch.tensor([0.4, 2.0]))


@pytest.fixture
def fitted() -> ppl_em.FitResult:
    return ppl_em.fit(kinds, *(d.double() for d in DATA), init="params", method=AT_START)


@pytest.fixture
def truth() -> Truth:
    return enumerate_program(kinds, tuple(d.double() for d in DATA))


def best(truth: Truth) -> dict[str, Tensor]:
    return truth.values[int(truth.scores.argmax())]


def test_marginals_are_distributions_of_the_sites_kind(fitted: ppl_em.FitResult, truth: Truth) -> None:
    marginals = fitted.posterior().marginals
    assert marginals.keys() == {"n", "hot", "coin"}
    assert isinstance(marginals["n"], torch.distributions.Categorical)  # positions in the support 0, 1, 2
    assert isinstance(marginals["hot"], torch.distributions.OneHotCategorical)
    assert isinstance(marginals["coin"], torch.distributions.Bernoulli)
    assert marginals["n"].batch_shape == ()
    assert marginals["hot"].batch_shape == (2,) and marginals["hot"].event_shape == (3,)
    assert marginals["coin"].batch_shape == (2,)
    close = {"atol": BRUTE_FORCE, "rtol": 0.0}
    torch.testing.assert_close(marginals["n"].probs, truth.marginal("n", torch.arange(3.0), 0).detach(), **close)
    hot = truth.marginal("hot", torch.eye(3), 1).detach().reshape(2, 3)
    torch.testing.assert_close(marginals["hot"].probs, hot, **close)
    coin = truth.marginal("coin", torch.tensor([0.0, 1.0]), 0).detach().reshape(2, 2)[:, 1]
    torch.testing.assert_close(marginals["coin"].probs, coin, **close)


def test_the_mode_is_the_best_assignment_in_the_sites_own_values(fitted: ppl_em.FitResult, truth: Truth) -> None:
    mode = fitted.posterior().mode()
    expected = best(truth)
    assert mode.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(mode[name].reshape(value.shape), value)
    log_prob = float((truth.scores.max() - truth.log_z).detach())
    assert fitted.posterior().log_prob_of_mode() == pytest.approx(log_prob, abs=BRUTE_FORCE)


def test_the_entropy_is_that_of_all_latents(fitted: ppl_em.FitResult, truth: Truth) -> None:
    log_p = (truth.scores - truth.log_z).detach()
    expected = -float((log_p.exp() * log_p).sum())
    assert float(fitted.posterior().entropy()) == pytest.approx(expected, abs=BRUTE_FORCE)


def frequencies(truth: Truth, first: Callable[[dict], int], second: Callable[[dict], int], shape: list[int]) -> Tensor:
    table = torch.zeros(shape)
    for weight, values in zip((truth.scores - truth.log_z).exp().detach(), truth.values, strict=True):
        table[first(values), second(values)] += weight
    return table


def test_pairs_within_a_component_and_across(fitted: ppl_em.FitResult, truth: Truth) -> None:
    posterior = fitted.posterior()
    pair = posterior.pairwise("n", "hot")
    assert pair.shape == (2, 3, 3)
    expected = frequencies(truth, lambda v: int(v["n"]), lambda v: int(v["hot"][1].argmax()), [3, 3])
    torch.testing.assert_close(pair[1], expected, atol=BRUTE_FORCE, rtol=0)
    turned = posterior.pairwise("hot", "n")
    torch.testing.assert_close(turned, pair.mT)
    across = posterior.pairwise("coin", "n")
    assert across.shape == (2, 2, 3)
    expected = frequencies(truth, lambda v: int(v["coin"].reshape(-1)[0]), lambda v: int(v["n"]), [2, 3])
    torch.testing.assert_close(across[0], expected, atol=BRUTE_FORCE, rtol=0)


def test_draws_are_values_of_the_sites_and_jointly_distributed(fitted: ppl_em.FitResult) -> None:
    drawn = fitted.posterior().sample(3000, seed=1)
    assert drawn["n"].shape == (3000,) and set(drawn["n"].tolist()) <= {0.0, 1.0, 2.0}
    assert drawn["hot"].shape == (3000, 2, 3) and bool((drawn["hot"].sum(-1) == 1).all())
    assert drawn["coin"].shape == (3000, 2) and set(drawn["coin"].unique().tolist()) <= {0.0, 1.0}
    joint = fitted.posterior().pairwise("n", "hot")[0].reshape(-1)
    index = (drawn["n"] * 3 + drawn["hot"][:, 0].argmax(-1)).long()
    frequency = torch.bincount(index, minlength=9) / 3000
    error = (joint * (1 - joint) / 3000).sqrt()
    assert bool(((frequency - joint).abs() < 4 * error + 2 / 3000).all())


def test_draws_are_fresh_unless_seeded(fitted: ppl_em.FitResult, no_footprint: Callable) -> None:
    posterior = fitted.posterior()
    with no_footprint():
        one, two = posterior.sample(200), posterior.sample(200)
        assert not torch.equal(one["hot"], two["hot"])
        one, two = posterior.sample(200, seed=4), posterior.sample(200, seed=4)
        assert all(torch.equal(one[n], two[n]) for n in one)


def test_unknown_names_are_errors(fitted: ppl_em.FitResult) -> None:
    posterior = fitted.posterior()
    with pytest.raises(PplEmError, match="'w'.*coin"):
        posterior.marginal("w")
    with pytest.raises(PplEmError, match="not a latent"):
        posterior.marginal("x")
    with pytest.raises(PplEmError, match="chain"):
        posterior.path("n")


def test_queries_of_a_chain_are_those_of_its_sites() -> None:
    x = torch.tensor([-1.2, 0.3, 0.4, 2.0, -0.6])
    posterior = ppl_em.fit(chain, x, init="params", method=AT_START).posterior()
    truth = enumerate_program(chain, (x,))
    smoothed = posterior.path("z").probs
    for t in range(5):
        expected = truth.marginal(f"z_{t}", torch.arange(2), 0).detach()
        torch.testing.assert_close(smoothed[t], expected, atol=BRUTE_FORCE, rtol=0)
        torch.testing.assert_close(posterior.marginal(f"z_{t}").probs, expected, atol=BRUTE_FORCE, rtol=0)
    for s, t in [(0, 1), (1, 4), (3, 2)]:
        expected = frequencies(truth, lambda v, s=s: int(v[f"z_{s}"]), lambda v, t=t: int(v[f"z_{t}"]), [2, 2])
        torch.testing.assert_close(posterior.pairwise(f"z_{s}", f"z_{t}"), expected, atol=BRUTE_FORCE, rtol=0)
    assert {n: int(v) for n, v in posterior.mode().items()} == {n: int(v) for n, v in best(truth).items()}
    assert posterior.mode_path("z").tolist() == [int(best(truth)[f"z_{t}"]) for t in range(5)]
    # Filtering is smoothing with the later observations left out.
    for t in range(5):
        earlier = enumerate_program(chain, (x[: t + 1],)).marginal(f"z_{t}", torch.arange(2), 0).detach()
        torch.testing.assert_close(posterior.filtered("z").probs[t], earlier, atol=BRUTE_FORCE, rtol=0)
    drawn = posterior.sample(10, seed=0)
    assert drawn["z_2"].shape == (10,)


def test_draws_fit_the_plates_of_the_program(fitted: ppl_em.FitResult) -> None:
    """A latent in an outer plate alone comes back with the inner plate's dimension of size 1."""
    posterior = fitted.posterior()
    drawn = posterior.by_step({n: v[0] for n, v in posterior.sample(1, seed=0).items()})
    assert drawn["n"].shape == () and drawn["coin"].shape == (2, 1) and drawn["hot"].shape == (2, 1, 3)
    predicted = fitted.predict(num_samples=4)
    assert predicted["x"].shape == (4, 2, 3) and predicted["y"].shape == (4, 2, 1)
    log_joint = poutine.trace(poutine.condition(fitted.model, drawn)).get_trace(*(d.double() for d in DATA))
    assert torch.isfinite(log_joint.log_prob_sum())
