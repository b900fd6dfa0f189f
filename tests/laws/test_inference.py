"""Laws of the E-step on random programs: log Z, marginals, draws, Fisher's identity."""

from __future__ import annotations

import torch
from hypothesis import given, settings

from ppl_em.em.e_step import e_step, expected_log_joint, objective
from ppl_em.exact.elimination import Elimination
from ppl_em.posterior import Posterior
from tests.laws.cases import SEEDS, plan_of, posed, probabilities, truth_of
from tests.tolerances import BRUTE_FORCE, GRADIENT, STATISTICAL


@settings(max_examples=40)
@given(SEEDS)
def test_1_log_z_equals_brute_force(seed: int) -> None:
    program, plan, values = posed(seed)
    expected = float(truth_of(program, values).log_z)
    assert abs(float(objective(plan, values)) - expected) <= BRUTE_FORCE * (1 + abs(expected)), str(program)
    assert abs(e_step(plan, values).objective - expected) <= BRUTE_FORCE * (1 + abs(expected)), str(program)


@settings(max_examples=25)
@given(SEEDS)
def test_2_marginals_are_probabilities_and_engines_agree(seed: int) -> None:
    program, plan, values = posed(seed)
    truth = truth_of(program, values)
    general = Posterior(plan_of(program, engines=(Elimination(),)), values)
    posterior = Posterior(plan, values)
    for name, latent in plan.program.latents.items():
        assert latent.support is not None
        found = probabilities(posterior.marginal(name))
        assert bool((found >= 0).all()) and bool((found <= 1 + BRUTE_FORCE).all()), str(program)
        torch.testing.assert_close(found.sum(-1), torch.ones(found.shape[:-1]), atol=BRUTE_FORCE, rtol=0)
        other = probabilities(general.marginal(name))
        torch.testing.assert_close(found, other, atol=BRUTE_FORCE, rtol=0, msg=f"{name} of\n{program}")
        expected = truth.marginal(name, latent.support, len(latent.event_shape)).reshape(found.shape)
        torch.testing.assert_close(found, expected, atol=BRUTE_FORCE, rtol=0, msg=f"{name} of\n{program}")


@settings(max_examples=25)
@given(SEEDS)
def test_3_fishers_identity(seed: int) -> None:
    """The gradient of Q at the current parameters is that of log Z."""
    program, plan, values = posed(seed)
    leaves = {n: v.clone().requires_grad_(True) for n, v in values.items()}
    names = list(leaves)
    wanted = torch.autograd.grad(truth_of(program, leaves).log_z, list(leaves.values()), allow_unused=True)
    weights = e_step(plan, values).weights
    q = expected_log_joint(plan, plan.sites(), weights, leaves)
    found = torch.autograd.grad(q, list(leaves.values()), allow_unused=True)
    for name, a, b in zip(names, found, wanted, strict=True):
        a, b = (torch.zeros_like(leaves[name]) if g is None else g for g in (a, b))
        largest = 1 + float(b.abs().max())
        torch.testing.assert_close(a, b, atol=GRADIENT * largest, rtol=0, msg=f"{name} of\n{program}")


@settings(max_examples=15)
@given(SEEDS)
def test_10_draws_match_the_marginals(seed: int) -> None:
    program, plan, values = posed(seed)
    posterior, draws = Posterior(plan, values), 4000
    drawn = posterior.sample(draws, seed=seed)
    for name, latent in plan.program.latents.items():
        assert latent.support is not None
        probs = probabilities(posterior.marginal(name))
        event = len(latent.event_shape)
        value = drawn[name]
        same = value.unsqueeze(value.dim() - event) == latent.support
        same = same.reshape(*same.shape[: same.dim() - event], -1).all(-1)
        frequency = same.double().mean(0)
        error = (probs * (1 - probs) / draws).sqrt()
        # A share of 1/n may be drawn once where less is expected.
        assert bool(((frequency - probs).abs() <= STATISTICAL * error + 2 / draws).all()), f"{name} of\n{program}"
