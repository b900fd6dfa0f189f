"""Hidden structures under other settings: single precision, batches, budgets, E-steps that cannot be had."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import ctc_loss
from torch.utils.data import DataLoader, TensorDataset

import ppl_em
from ppl_em.errors import DataError, PlanError
from tests.structured import programs

LABELS = torch.tensor([[1, 2, 3], [1, 1, -1], [3, -1, -1], [2, 3, 2], [1, 2, -1], [1, 2, 3]])
USED = torch.tensor([9, 7, 8, 9, 5, 3])


def loader(labels: Tensor) -> tuple[Tensor, DataLoader]:
    frames = torch.randn(6, 3, 9)
    return frames, DataLoader(TensorDataset(frames, USED, labels), batch_size=2)


def test_single_precision_follows_double_precision() -> None:
    start = programs.tables(1)
    options: dict[str, Any] = {"init": "params", "method": ppl_em.EM(max_steps=10, tol=0, accelerate=False)}
    double = ppl_em.fit(programs.grammar, programs.SENTENCES, start, **options)
    single = ppl_em.fit(programs.grammar, programs.SENTENCES, {n: t.float() for n, t in start.items()}, **options)
    assert single.params["rules"].dtype is torch.float32
    assert single.plan.rule_of("rules") == "closed form"
    torch.testing.assert_close(single.history, double.history, rtol=1e-5, atol=0)


def test_the_number_of_rules_in_use_is_that_of_the_words() -> None:
    """A binary tree over n words has n − 1 inner nodes, whatever the grammar."""
    result = ppl_em.fit(programs.grammar, programs.SENTENCES, programs.tables(1), method=ppl_em.EM(max_steps=5))
    counts = result.posterior().structure("words").expected_counts()
    lengths = (programs.SENTENCES >= 0).sum(-1).double()
    torch.testing.assert_close(counts["rules"].sum((-3, -2, -1)), lengths - 1)


def test_batches_of_several_arguments_from_a_loader() -> None:
    network = nn.Conv1d(3, 4, 3, padding=1)
    frames, batches = loader(LABELS)

    def speech(x: Tensor, used: Tensor, labels: Tensor) -> None:
        programs.aligned(x, used, labels, network)

    result = ppl_em.fit(speech, batches, method=ppl_em.SVI(max_steps=30, lr=0.02))
    with torch.no_grad():
        scores = network(frames).log_softmax(1).permute(2, 0, 1)
    lengths = (LABELS > 0).sum(-1)
    loss = ctc_loss(scores, LABELS.clamp(min=0), USED, lengths, reduction="sum")
    assert result.objective == pytest.approx(-float(loss))
    assert result.history[-5:].mean() > result.history[:5].mean()


def test_a_batch_that_comes_late_and_is_impossible_is_named() -> None:
    network = nn.Conv1d(3, 4, 3, padding=1)
    late = LABELS.clone()
    late[5] = torch.tensor([1, 1, 2])  # needs four frames and has three

    def speech(x: Tensor, used: Tensor, labels: Tensor) -> None:
        programs.aligned(x, used, labels, network)

    with pytest.raises(DataError, match=r"1 of 2 data have probability zero under CTC at site 'labels' .*1 of batch 2"):
        ppl_em.fit(speech, loader(late)[1], method=ppl_em.SVI(max_steps=5))
    assert all(weight.isfinite().all() for weight in network.parameters())


@pytest.mark.parametrize("kind", ["hard", "sample"])
def test_e_steps_that_replace_the_posterior_are_refused(kind: Any) -> None:
    with pytest.raises(PlanError, match=f'e_step="{kind}" cannot be had at site .words.'):
        ppl_em.fit(programs.grammar, programs.SENTENCES, programs.tables(1), method=ppl_em.EM(e_step=kind))


def test_the_predicted_cost_is_held_against_the_budget() -> None:
    start = programs.tables(1)
    with pytest.raises(PlanError, match="does not fit into memory at site 'words'.*memory_bytes"):
        ppl_em.explain(programs.grammar, programs.SENTENCES, start, method=ppl_em.Auto(memory_bytes=1e3))
    (entry,) = ppl_em.explain(programs.grammar, programs.SENTENCES, start).structured
    (double,) = ppl_em.explain(programs.grammar, programs.SENTENCES.repeat(2, 1), start).structured
    assert double.flops == 2 * entry.flops


def test_a_fit_is_saved_and_asked_again(tmp_path: Any) -> None:
    start = programs.tables(1)
    result = ppl_em.fit(programs.grammar, programs.SENTENCES, start, method=ppl_em.EM(max_steps=5, tol=0), restarts=1)
    result.save(tmp_path / "fit")
    loaded = ppl_em.load(tmp_path / "fit", programs.grammar)
    torch.testing.assert_close(loaded.log_prob(programs.SENTENCES, start), result.log_prob())
