"""The extension point: a third party's structured distribution, here a segmental model."""

from __future__ import annotations

import itertools

import pytest
import torch
from pyro.distributions import constraints
from torch import Size, Tensor

from ppl_em.distributions import (
    CTC,
    PCFG,
    HiddenCost,
    StructuredDistribution,
    is_structured,
    register_structured,
    structured,
    structured_distributions,
)
from tests.tolerances import BRUTE_FORCE


def test_a_third_party_adds_a_segmental_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(structured, "_REGISTRY", list(structured_distributions()))

    @register_structured
    class Segmental(StructuredDistribution):
        """Segments of 1 … L symbols; all symbols of a segment are drawn from one of K tables."""

        arg_constraints = {
            "widths": constraints.simplex,
            "kinds": constraints.simplex,
            "symbols": constraints.simplex,
        }
        counted = ("widths", "kinds", "symbols")

        def __init__(self, widths: Tensor, kinds: Tensor, symbols: Tensor) -> None:
            self.widths, self.kinds, self.symbols = widths, kinds, symbols
            super().__init__(event_shape=Size((1,)))

        def log_prob(self, value: Tensor) -> Tensor:
            ahead = [value.new_zeros(value.shape[:-1], dtype=self.widths.dtype)]
            for t in range(1, value.shape[-1] + 1):
                ways = []
                for width in range(1, min(t, len(self.widths)) + 1):
                    drawn = self.symbols[:, value[..., t - width : t]].log().sum(-1).movedim(0, -1)
                    ways.append(
                        ahead[t - width] + self.widths[width - 1].log() + (drawn + self.kinds.log()).logsumexp(-1)
                    )
                ahead.append(torch.stack(ways).logsumexp(0))
            return ahead[-1]

        def hidden_cost(self, value_shape: Size) -> HiddenCost:
            size = float(value_shape.numel() * len(self.widths) * len(self.kinds))
            return HiddenCost(flops=4 * size, bytes=8 * size)

    assert is_structured(Segmental)
    model = Segmental(*(torch.rand(*shape).softmax(-1) for shape in [(3,), (2,), (2, 4)]))
    value = torch.tensor([[0, 1, 3, 3], [2, 2, 0, 1]])
    by_hand = sum_over_segmentations(model, value)
    torch.testing.assert_close(model.log_prob(value), by_hand, rtol=0, atol=BRUTE_FORCE)
    counts = model.expected_counts(value)
    assert float(counts["symbols"].sum()) == pytest.approx(value.numel())
    assert Segmental(**model.normalised(counts)).log_prob(value).sum() > by_hand.sum()


def sum_over_segmentations(model: StructuredDistribution, value: Tensor) -> Tensor:
    """Enumerates the cuts and kinds of every sequence."""
    result = []
    for row in value.tolist():
        total = torch.tensor(0.0)
        for cuts in itertools.product([False, True], repeat=len(row) - 1):
            edges = [0, *(t + 1 for t, cut in enumerate(cuts) if cut), len(row)]
            prob = torch.tensor(1.0)
            for start, end in itertools.pairwise(edges):
                if end - start > len(model.widths):
                    prob = prob * 0
                else:
                    drawn = model.symbols[:, row[start:end]].prod(-1)
                    prob = prob * model.widths[end - start - 1] * (model.kinds * drawn).sum()
            total = total + prob
        result.append(total.log())
    return torch.stack(result)


def test_what_is_registered() -> None:
    assert {PCFG, CTC} <= set(structured_distributions())
    assert is_structured(CTC(torch.zeros(2, 3)))
    assert is_structured(type("Mine", (CTC,), {}))
    assert not is_structured(torch.distributions.Normal(0.0, 1.0))


def test_an_incomplete_class_is_refused_by_name() -> None:
    class Empty(StructuredDistribution):
        pass

    with pytest.raises(TypeError, match="Empty cannot be registered.*log_prob, hidden_cost, counted"):
        register_structured(Empty)
    assert Empty not in structured_distributions()
