"""An autoencoder of digits: its plan, and the bound of the same loop by hand in PyTorch on images held out."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import Bernoulli

import ppl_em
from benchmarks.tasks.vae import BATCH, HIDDEN, RATE, Encoder, batches, bound
from models import vae

STEPS = 1500


def bits(nats_per_image: float) -> float:
    """Bits per pixel."""
    return -nats_per_image / vae.NUM_PIXELS / math.log(2)


@pytest.fixture(scope="module")
def parts() -> tuple[Tensor, Tensor]:
    """Images to train on, and images held out."""
    x = vae.load()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x[order[297:]], x[order[:297]]


@pytest.fixture(scope="module")
def fit(parts: tuple[Tensor, Tensor]) -> ppl_em.FitResult:
    vae.decoder.load_state_dict(vae.new_decoder().state_dict())
    method = ppl_em.SVI(max_steps=STEPS, lr=RATE, batch_size=BATCH, hidden=HIDDEN, validation=(parts[1],))
    return ppl_em.fit(vae.model, parts[0], method=method)


def test_the_plan(golden_plan: Callable) -> None:
    plan = ppl_em.explain(vae.model, vae.load())
    assert plan.engine_of("z") == "amortised"
    assert plan.rule_of("decoder$$$0.weight") == "gradient"
    assert not plan.exact and not plan.blocks
    golden_plan("vae", plan)


@pytest.mark.slow
def test_images_held_out_cost_as_many_bits_as_by_hand(fit: ppl_em.FitResult, parts: tuple[Tensor, Tensor]) -> None:
    train, held = parts
    torch.manual_seed(0)
    decoder, encoder = vae.new_decoder(), Encoder()
    optimiser = torch.optim.Adam([*decoder.parameters(), *encoder.parameters()], lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for batch in batches(train, STEPS):
        optimiser.zero_grad()
        (-bound(batch, encoder, decoder)).backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        by_hand = torch.stack([bound(held, encoder, decoder) for _ in range(16)]).mean() / len(held)
    found = float(fit.log_prob(held).mean())
    assert bits(found) == pytest.approx(bits(float(by_hand)), abs=0.015)
    assert fit.held_out_bits_per_value == pytest.approx(bits(found), abs=0.01)


@pytest.mark.slow
def test_codes_tell_more_than_pixels_one_by_one(fit: ppl_em.FitResult, parts: tuple[Tensor, Tensor]) -> None:
    train, held = parts
    share = (train.sum(0) + 0.5) / (len(train) + 1)
    alone = float(Bernoulli(share).log_prob(held).sum(-1).mean())
    found = float(fit.log_prob(held).mean())
    assert bits(found) < bits(alone) - 0.12  # 0.41 against 0.55 bits per pixel
    tighter, error = fit.estimate_log_likelihood(100, held)
    assert tighter / len(held) > found + 3 * error / len(held)


@pytest.mark.slow
def test_the_fitted_program_and_guide_under_pyro(fit: ppl_em.FitResult, parts: tuple[Tensor, Tensor]) -> None:
    from pyro.infer import Predictive

    held = parts[1][:40]
    torch.manual_seed(0)
    drawn = Predictive(fit.model, guide=fit.guide, num_samples=50)(held)
    assert drawn["z"].shape == (50, 40, vae.NUM_CODES)
    code = fit.posterior(held).marginal("z")
    error = code.base_dist.scale / 50**0.5
    assert bool(((drawn["z"].mean(0) - code.base_dist.loc).abs() < 5 * error).all())
    again = fit.predict(held, num_samples=50)["x"].mean(0)
    wrong = float(((again > 0.5).float() != held).float().mean())
    assert wrong < 0.5 * float((parts[0].mean(0).round() != held).float().mean())
