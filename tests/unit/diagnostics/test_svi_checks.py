"""Checks of approximate posteriors on programs whose exact posterior is known."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import ppl_em
from ppl_em.diagnostics import CHECKS, Check, Outcome
from ppl_em.diagnostics.exact_gap import exact_gap
from ppl_em.diagnostics.iterates import iterates_r_hat, split_r_hat
from ppl_em.errors import PplEmError
from tests.tolerances import EXACT

NOW = ppl_em.SVI(max_steps=0)
SPREAD = 0.5**0.5
"""Standard deviation of the posterior of `line`."""


def outcomes(result: ppl_em.FitResult) -> dict[str, Check]:
    return {c.name: c for c in result.diagnose().checks}


def line(x: torch.Tensor) -> None:
    """z ~ N(0, 1), x ~ N(z, 1): the posterior is N(x / 2, 1 / 2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(share: float = 0.5, scale: float = SPREAD) -> Callable[[torch.Tensor], None]:
    def draw(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(share * x, scale))

    return draw


@pytest.fixture
def x() -> torch.Tensor:
    return 2**0.5 * torch.randn(200)


def test_the_exact_posterior_passes(x: torch.Tensor) -> None:
    result = ppl_em.fit(line, x, guide=guide(), method=NOW)
    drawn = result.particles
    assert float(drawn.log_weights.std(0).max()) < 1e-9
    exact = float(dist.Normal(0.0, 2**0.5).log_prob(x).sum())
    assert drawn.log_likelihood == pytest.approx(exact, abs=1e-8)
    # KL(N(x/2, 1/2) ‖ N(0, 1)) = ½ (1/2 + x²/4 − 1 + log 2), averaged over the data.
    known = 0.5 * (x.square().mean() / 4 - 0.5 + torch.tensor(2.0).log())
    assert float(drawn.divergences["z"]) == pytest.approx(float(known), rel=0.1)
    found = outcomes(result)
    assert found["approximation"].outcome is Outcome.PASS
    assert found["use of latents"].outcome is Outcome.PASS
    assert found["calibration"].outcome is Outcome.PASS
    assert abs(found["gap"].value or 0.0) < EXACT * len(x) + 1e-9


def test_a_posterior_made_too_narrow_fails(x: torch.Tensor) -> None:
    result = ppl_em.fit(line, x, guide=guide(scale=0.3 * SPREAD), method=NOW)
    found = outcomes(result)
    assert found["approximation"].outcome is Outcome.FAIL
    assert float(result.particles.k_hat.median()) > 0.6
    assert found["calibration"].outcome is Outcome.FAIL
    assert not result.diagnose().ok
    assert "uncertainty cannot" in result.diagnose().verdict


def test_the_gap_is_split_between_encoder_and_family(x: torch.Tensor) -> None:
    # The mean is wrong by 0.2 x: KL = (0.2 x)² / (2 · ½). The family holds the posterior: nothing is left to it.
    result = ppl_em.fit(line, x, guide=guide(share=0.3), method=NOW)
    gap = result.gap
    assert gap is not None and gap.num_data == 100
    assert gap.amortisation == pytest.approx(float((0.2 * x[:100]).square().mean()), rel=0.15)
    assert abs(gap.approximation) < 0.02


def test_a_mean_field_family_has_its_known_gap() -> None:
    # x ~ N(z₁ + z₂, s²): posterior precision I + 11ᵀ/s²; the best independent normals lose ½ (Σ log Λᵢᵢ − log det Λ).
    variance = 0.5
    precision = torch.eye(2) + torch.ones(2, 2) / variance
    share = torch.linalg.solve(precision, torch.ones(2) / variance)

    def pair(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), variance**0.5), obs=x)

    def independent(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, None] * share, precision.diagonal() ** -0.5).to_event(1))

    result = ppl_em.fit(pair, (2 + variance) ** 0.5 * torch.randn(100), guide=independent, method=NOW)
    known = 0.5 * float(precision.diagonal().log().sum() - torch.logdet(precision))
    assert result.gap is not None
    assert result.gap.approximation == pytest.approx(known, abs=0.06)
    assert abs(result.gap.amortisation) < 0.03
    drawn = result.particles
    assert (drawn.log_likelihood - drawn.elbo) / 100 == pytest.approx(known, abs=0.06)


def test_the_bound_beside_the_exact_likelihood() -> None:
    """A guide of two classes that is wrong by a known divergence."""
    loc = torch.tensor([-1.0, 1.0])

    def classes(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("x", dist.Normal(loc[k], 1.0), obs=x)

    def flat(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(torch.tensor([0.5, 0.5])))

    x = torch.randn(300)
    result = ppl_em.fit(classes, x, guide=flat, method=NOW)
    joint = dist.Normal(loc, 1.0).log_prob(x[:100, None]) + torch.tensor([0.3, 0.7]).log()
    exact, known = joint.logsumexp(-1), joint.mean(-1) - torch.tensor(0.5).log()
    gap = exact_gap(result)
    assert gap is not None and gap.num_data == 100
    assert gap.log_likelihood == pytest.approx(float(exact.sum()), abs=1e-9)
    spread = float((joint[:, 0] - joint[:, 1]).square().sum().sqrt()) / 2 / 64**0.5  # of a mean of 64 draws
    assert gap.bound == pytest.approx(float(known.sum()), abs=4 * spread)
    assert "exact gap" in outcomes(result)
    # Nothing is drawn that an engine could sum.
    assert exact_gap(ppl_em.fit(line, x, guide=guide(), method=NOW)) is None


def test_a_collapsed_dimension_is_named(x: torch.Tensor) -> None:
    def wide(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def encoder(x: torch.Tensor) -> None:
        loc = torch.stack([x / 2, torch.zeros_like(x), torch.zeros_like(x)], -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, torch.tensor([SPREAD, 1.0, 1.0])).to_event(1))

    result = ppl_em.fit(wide, x, guide=encoder, method=NOW)
    assert result.particles.unused() == ["z[1]", "z[2]"]
    found = outcomes(result)["use of latents"]
    assert found.outcome is Outcome.FAIL and found.found.endswith("collapsed: z[1], z[2]")
    assert found.found.startswith("1 of 3 dimensions are used")


def test_priors_that_depend_on_summed_latents(x: torch.Tensor) -> None:
    """Each class has a prior of its own: the divergence is its mean over the classes' posterior."""
    loc, scale = torch.tensor([-1.5, 2.0]), torch.tensor([0.5, 1.3])

    def pairs(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])))
            means = torch.stack([loc, loc.flip(0)], -1)
            z = pyro.sample("z", dist.Normal(means[k], scale[k].unsqueeze(-1)).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def encoder(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.stack([x / 2, -x], -1), torch.tensor([0.6, 1e-9])).to_event(1))

    result = ppl_em.fit(pairs, x, guide=encoder, method=NOW)
    found = result.particles.divergences["z"]
    # The second element is all but fixed at −x, and nothing but the classes' priors tells them apart given z.
    draws = torch.stack([x / 2 + 0.6 * torch.randn(4000, len(x)), (-x).expand(4000, len(x))], -1)
    means = torch.stack([loc, loc.flip(0)], -1)
    joint = dist.Normal(means, scale.unsqueeze(-1)).to_event(1).log_prob(draws.unsqueeze(-2))
    share = (joint + torch.tensor([0.3, 0.7]).log()).softmax(-1).mean(0)
    q = dist.Normal(torch.stack([x / 2, -x], -1).unsqueeze(1), torch.tensor([0.6, 1e-9]))
    known = (share.unsqueeze(-1) * torch.distributions.kl_divergence(q, dist.Normal(means, scale.unsqueeze(-1)))).sum(1)
    assert torch.allclose(found, known.mean(0), rtol=0.03)


def test_a_trained_encoder_passes_and_the_report_says_so(x: torch.Tensor) -> None:
    def learnt(x: torch.Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, scale), obs=x)

    settings = ppl_em.SVI(max_steps=1500, lr=1e-2, hidden=(16,), validation=0.2)
    result = ppl_em.fit(learnt, x, method=settings)
    found = outcomes(result)
    assert {n for n, c in found.items() if c.outcome is Outcome.FAIL} <= {"approximation", "calibration"}
    assert found["bound"].ok and found["use of latents"].ok
    assert "on held-out data" in found["held out"].found
    assert not {"converged", "restarts", "leave-one-out"} & set(found)


def test_an_exact_fit_has_none_of_these(faithful) -> None:
    with pytest.raises(PplEmError, match="posterior is exact"):
        faithful.particles  # noqa: B018
    assert faithful.gap is None
    assert not {"approximation", "use of latents", "bound"} & {c.name for c in faithful.diagnose().checks}
    assert len(CHECKS) == 25


def test_a_bound_that_still_rises_is_told_to_go_on(x: torch.Tensor) -> None:
    result = ppl_em.fit(line, x, guide=guide(), method=NOW)
    rising = replace(result, history=torch.linspace(-900.0, -400.0, 400, dtype=torch.float64))
    found = outcomes(rising)["bound"]
    assert found.outcome is Outcome.FAIL and "init=result" in found.advice
    flat = replace(result, history=-400 + torch.randn(400, dtype=torch.float64))
    assert outcomes(flat)["bound"].ok
    assert outcomes(result)["bound"].outcome is Outcome.NOT_RUN


def test_split_r_hat() -> None:
    settled = torch.randn(2000, 3)
    assert bool((split_r_hat(settled) < 1.01).all())
    drifting = settled + torch.linspace(0, 4, 2000)[:, None] * torch.tensor([0.0, 1.0, 1.0])
    found = split_r_hat(drifting)
    assert float(found[0]) < 1.01 and float(found[1:].min()) > 1.1
    assert float(split_r_hat(torch.ones(50, 1))) == 1.0


def test_global_variational_parameters_are_watched(no_footprint) -> None:
    def global_mean(x: torch.Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x = torch.randn(50) + 2
    result = ppl_em.fit(global_mean, x, method=ppl_em.SVI(max_steps=800, lr=2e-2))
    before = {n: v.clone() for n, v in result.guide_params.items()}
    with no_footprint():
        found = iterates_r_hat(result)
    assert found is not None and found > 0.9
    assert all(torch.equal(before[n], v) for n, v in result.guide_params.items())
    # One joint posterior: its k-hat is that of all data together.
    assert result.particles.log_weights.shape[1] == 1
    assert outcomes(result)["approximation"].ok
