"""Lines of digits read without alignments: under five per cent of characters wrong on held-out lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyro
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import ctc_loss

import ppl_em
from models import ctc
from ppl_em.distributions import CTC


@pytest.fixture
def untrained() -> Iterator[None]:
    """Starts from the initial weights, in float32, and leaves them."""
    torch.set_default_dtype(torch.float32)
    ctc.reader.float().load_state_dict(ctc.new_reader().state_dict())
    yield
    ctc.reader.load_state_dict(ctc.new_reader().state_dict())


@pytest.mark.slow
def test_held_out_lines_are_read(untrained: None) -> None:
    """Gradient steps on batches of lines, alignments summed exactly in each: fifteen passes."""
    lines, columns, digits = ctc.load()
    method = ppl_em.SVI(max_steps=300, batch_size=25, lr=0.003)
    result = ppl_em.fit(ctc.model, lines, columns, digits, method=method)
    assert result.exact
    assert result.plan.engine_of("digits") == "structured"
    held_out, widths, written = ctc.digit_lines(300, held_out=True)
    assert ctc.character_error_rate(ctc.read(held_out, widths), written) < 0.05
    # The alignment that nobody gave: each digit is seen in the columns that show it.
    positions = result.posterior().structure("digits", first=20).mode().positions
    shown = torch.arange(positions.shape[1]) * ctc.COLUMNS_PER_FRAME // 8
    assert ((positions - shown).abs() <= 1)[positions >= 0].all()
    # The objective is the log-likelihood of all lines, as torch's own loss has it.
    with torch.no_grad():
        frames = ctc.reader(lines).log_softmax(-1).double().transpose(0, 1)
    used, targets = columns // ctc.COLUMNS_PER_FRAME, digits.clamp(min=0)
    loss = ctc_loss(frames, targets, used, (digits >= 0).sum(-1), ctc.BLANK, reduction="sum")
    assert result.objective == pytest.approx(-float(loss), rel=1e-5)


@pytest.mark.slow
def test_expected_gradient_steps_ascend_and_learn(untrained: None) -> None:
    """The same program by EM: an exact E-step over alignments, then one step of Adam that never goes down."""
    lines, columns, digits = ctc.digit_lines(60, held_out=False, fewest=2, most=3)
    method = ppl_em.EM(
        max_steps=80, tol=0, accelerate=False, m_step_steps=1, m_step_optim=lambda p: torch.optim.Adam(p, lr=0.01)
    )
    result = ppl_em.fit(ctc.model, lines, columns, digits, method=method)
    assert (result.history.diff() >= -1e-6 * result.history[0].abs()).all()  # float32
    assert ctc.character_error_rate(ctc.read(lines, columns), digits) < 0.2


def test_the_plan(untrained: None, golden_plan: Callable) -> None:
    plan = ppl_em.explain(ctc.model, *ctc.load())
    assert plan.exact
    assert plan.engine_of("digits") == "structured"
    assert plan.rule_of("reader$$$scores.weight") == "gradient"
    golden_plan("ctc", plan)


def test_data_and_program(untrained: None) -> None:
    lines, columns, digits = ctc.load()
    assert lines.shape == (500, 8, 56)
    assert columns.equal(8 * (digits >= 0).sum(-1))
    assert not lines[columns < 56][:, :, -8:].any()
    trace = pyro.poutine.trace(ctc.model).get_trace(lines[:5], columns[:5], digits[:5])
    expected = CTC(ctc.reader(lines[:5]), columns[:5] // 2, blank=10).log_prob(digits[:5])
    torch.testing.assert_close(trace.log_prob_sum(), expected.sum())
    drawn = ctc.model(lines[:5], columns[:5])
    assert ((drawn >= -1) & (drawn < 10)).all()


def test_the_images_are_those_of_scikit_learn() -> None:
    images, labels = load_digits(return_X_y=True)
    with np.load(ctc.DIGITS) as bundled:
        assert np.array_equal(bundled["images"].reshape(-1, 64), images)
        assert np.array_equal(bundled["labels"], labels)


def test_edit_distance_and_error_rate() -> None:
    assert ctc.edit_distance("kitten", "sitting") == 3
    assert ctc.edit_distance([], [1, 2]) == ctc.edit_distance([1, 2], []) == 2
    assert ctc.character_error_rate([(1, 2), (3,)], torch.tensor([[1, 2, -1], [4, 5, 3]])) == 2 / 5
