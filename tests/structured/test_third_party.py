"""The extension point: a structured distribution from elsewhere, registered and fitted."""

from __future__ import annotations

import itertools
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import constraints
from torch import Size, Tensor

import ppl_em
from ppl_em.distributions import HiddenCost, StructuredDistribution, register_structured, structured
from tests.tolerances import ASCENT, BRUTE_FORCE

WORDS = torch.tensor([[0, 1, 3, 3], [2, 2, 0, 1], [0, 1, 0, 1], [3, 3, 0, 1]])


def test_a_segmental_model_in_thirty_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured, "_REGISTRY", list(structured._REGISTRY))

    @register_structured
    class Segments(StructuredDistribution):
        """Segments of 1 … L symbols, all from one table; where they end is hidden."""

        arg_constraints = {"widths": constraints.simplex, "symbols": constraints.simplex}
        counted = ("widths", "symbols")

        def __init__(self, widths: Tensor, symbols: Tensor, validate_args: bool | None = None) -> None:
            self.widths, self.symbols = widths, symbols
            super().__init__(symbols.shape[:-1], Size((1,)), validate_args=validate_args)

        def log_prob(self, value: Tensor) -> Tensor:
            drawn = self.symbols.expand(*value.shape[:-1], -1).gather(-1, value)
            ahead = [torch.ones(value.shape[:-1])]
            for t in range(1, value.shape[-1] + 1):
                ways = [(w, t - w) for w in range(1, min(t, self.widths.shape[-1]) + 1)]
                ahead.append(sum(ahead[s] * self.widths[..., w - 1] * drawn[..., s:t].prod(-1) for w, s in ways))
            return ahead[-1].log()

        def hidden_cost(self, value_shape: Size) -> HiddenCost:
            return HiddenCost(flops=24.0 * value_shape.numel(), bytes=64.0 * value_shape.numel())

    def model(words: Tensor) -> None:
        widths = pyro.param("widths", torch.tensor([0.5, 0.3, 0.2]), constraint=constraints.simplex)
        symbols = pyro.param("symbols", torch.tensor([0.4, 0.3, 0.2, 0.1]), constraint=constraints.simplex)
        with pyro.plate("lines", len(words)):
            pyro.sample("words", Segments(widths, symbols), obs=words)

    result = ppl_em.fit(model, WORDS, init="params", method=ppl_em.EM(max_steps=1, tol=0, accelerate=False))
    check(result)


def check(result: Any) -> None:
    """Engine, rule, and the step against the list of all segmentations."""
    assert result.plan.engine_of("words") == "structured"
    assert result.plan.rule_of("widths") == result.plan.rule_of("symbols") == "closed form"
    widths, used, total = torch.tensor([0.5, 0.3, 0.2]), torch.zeros(3), 0.0
    symbols = torch.tensor([0.4, 0.3, 0.2, 0.1])
    for row in WORDS.tolist():
        cuts = [c for n in range(1, 5) for c in itertools.product((1, 2, 3), repeat=n) if sum(c) == len(row)]
        probs = torch.stack([widths[torch.tensor(c) - 1].prod() for c in cuts])
        total += float((probs.sum() * symbols[row].prod()).log())
        for share, c in zip((probs / probs.sum()).tolist(), cuts, strict=True):
            used += share * torch.bincount(torch.tensor(c) - 1, minlength=3)
    torch.testing.assert_close(result.params["widths"], used / used.sum(), rtol=0, atol=BRUTE_FORCE)
    frequency = torch.bincount(WORDS.flatten(), minlength=4) / WORDS.numel()
    torch.testing.assert_close(result.params["symbols"], frequency, rtol=0, atol=BRUTE_FORCE)
    assert float(result.history[0]) == pytest.approx(total, abs=BRUTE_FORCE)
    assert result.history.diff().min() > -ASCENT
    # What it does not define is refused by name, nothing else.
    with pytest.raises(ppl_em.errors.PplEmError, match="Segments has no posterior"):
        result.posterior().structure("words")
    with pytest.raises(ppl_em.errors.PplEmError, match="Segments draws no values"):
        result.predict(num_samples=1)


def test_counts_that_are_not_derivatives_of_the_density_are_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed form is a claim: Fisher's identity is checked when it is first used."""
    monkeypatch.setattr(structured, "_REGISTRY", list(structured._REGISTRY))

    @register_structured
    class Wrong(ppl_em.distributions.PCFG):
        def expected_counts(self, value: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
            return {name: count + 0.1 for name, count in super().expected_counts(value, weights).items()}

    def model(words: Tensor) -> None:
        emissions = pyro.param("emissions", torch.tensor([[0.7, 0.3]]), constraint=constraints.simplex)
        with pyro.plate("lines", len(words)):
            rules = torch.tensor([[[0.2, 0.3], [0.1, 0.4]]])
            pyro.sample("words", Wrong(torch.ones(1), rules, emissions), obs=words)

    with pytest.raises(
        ppl_em.errors.PplEmError, match="expected_counts of Wrong is not the derivative of its log_prob"
    ):
        ppl_em.fit(model, torch.tensor([[0, 1, 1], [1, 0, 0]]), init="params")
