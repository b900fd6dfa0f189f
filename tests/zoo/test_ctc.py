"""Lines of digits read without alignments: under five per cent of characters wrong on held-out lines."""

from __future__ import annotations

import numpy as np
import pyro
import pytest
import torch
from sklearn.datasets import load_digits

from models import ctc
from ppl_em.distributions import CTC


@pytest.fixture
def untrained() -> None:
    """Starts from the initial weights, in float32."""
    torch.set_default_dtype(torch.float32)
    ctc.reader.load_state_dict(ctc.new_reader().state_dict())


@pytest.mark.slow
def test_held_out_lines_are_read(untrained: None) -> None:
    lines, columns, digits = ctc.load()
    optimiser = torch.optim.Adam(ctc.reader.parameters(), lr=0.003)
    for _ in range(15):
        for rows in torch.randperm(len(lines)).split(25):
            trace = pyro.poutine.trace(ctc.model).get_trace(lines[rows], columns[rows], digits[rows])
            optimiser.zero_grad()
            (-trace.log_prob_sum() / len(rows)).backward()
            optimiser.step()
    held_out, widths, written = ctc.digit_lines(300, held_out=True)
    assert ctc.character_error_rate(ctc.read(held_out, widths), written) < 0.05
    # The alignment that nobody gave: each digit is seen in the columns that show it.
    rows = slice(0, 20)
    with torch.no_grad():
        distribution = CTC(ctc.reader(lines[rows]), columns[rows] // ctc.COLUMNS_PER_FRAME, blank=ctc.BLANK)
    positions = distribution.posterior(digits[rows]).mode().positions
    shown = torch.arange(positions.shape[1]) * ctc.COLUMNS_PER_FRAME // 8
    assert ((positions - shown).abs() <= 1)[positions >= 0].all()


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
