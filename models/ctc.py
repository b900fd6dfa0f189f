"""Reading lines of digits: a convolutional network trained without knowing which column shows which digit.

Plan: the alignment of digits to columns is summed out by the forward–backward recursion of CTC (engine
"structured"); the network takes gradient steps. The gradient of log Z is the expected gradient: an exact
E-step over alignments, then one gradient step of the M-step. ``SVI(max_steps=300, batch_size=25, lr=0.003)``
takes these steps on batches of lines: 97 % of the digits of held-out lines are read after fifteen passes.

Data: lines of three to seven digits, the 8 × 8 images of scikit-learn's digits side by side. Images are split
before lines are made, so that held-out lines show handwriting not seen in training.

Reference:
    Graves, A., Fernández, S., Gomez, F. and Schmidhuber, J. (2006). Connectionist temporal classification.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyro
import torch
from torch import Tensor, nn

from ppl_em.distributions import CTC

DIGITS = Path(__file__).parent / "data" / "digits.npz"
BLANK = 10
COLUMNS_PER_FRAME = 2


class LineReader(nn.Module):
    """Columns of pixels to scores of ten digits and the blank, one frame for every two columns."""

    def __init__(self, channels: int = 64) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            [
                nn.Conv1d(8, channels, 3, padding=1),
                nn.Conv1d(channels, channels, 5, padding=2, stride=COLUMNS_PER_FRAME),
                nn.Conv1d(channels, channels, 5, padding=2),
            ]
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in self.convolutions)
        self.scores = nn.Linear(channels, 11)

    def forward(self, lines: Tensor) -> Tensor:
        """Returns logits (lines, frames, 11) of `lines` (lines, 8, columns)."""
        hidden = lines
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            hidden = norm(convolution(hidden).mT).relu().mT
        return self.scores(hidden.mT)


def new_reader(seed: int = 0) -> LineReader:
    """Returns a network with fresh weights; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LineReader()


reader = new_reader()


def model(lines: Tensor, columns: Tensor, digits: Tensor | None = None) -> Tensor:
    """Observes what is written on each line.

    Args:
        lines: (lines, 8, longest width), grey values from 0 to 1.
        columns: (lines,) int64, width of each line in columns.
        digits: (lines, longest) int64, the digits, padded with −1; None to draw them.

    Returns:
        The digits.
    """
    network = pyro.module("reader", reader)
    with pyro.plate("lines", len(lines)):
        written = CTC(network(lines), columns // COLUMNS_PER_FRAME, blank=BLANK)
        return pyro.sample("digits", written, obs=digits)


def read(lines: Tensor, columns: Tensor, beam_width: int = 10) -> list[tuple[int, ...]]:
    """Returns the most probable digits of each line, by the network as it stands."""
    with torch.no_grad():
        written = CTC(reader(lines), columns // COLUMNS_PER_FRAME, blank=BLANK)
    return [hypotheses[0].labels for hypotheses in written.beam_search(beam_width)]


def load(path: str | Path | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Returns training lines: (lines, columns, digits), as `model` takes them.

    Args:
        path: An .npz file with arrays of these names; lines of scikit-learn's digits if None.
    """
    if path is None:
        return digit_lines(500, held_out=False)
    arrays = np.load(path)
    lines, columns, digits = (torch.from_numpy(arrays[name]) for name in ("lines", "columns", "digits"))
    return lines.to(torch.get_default_dtype()), columns.long(), digits.long()


def digit_lines(count: int, held_out: bool, fewest: int = 3, most: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """Returns `count` lines of `fewest` to `most` digits from the training or the held-out images."""
    with np.load(DIGITS) as bundled:
        images, labels = bundled["images"], bundled["labels"]
    shuffled = np.random.default_rng(0).permutation(len(images))
    chosen = shuffled[1437:] if held_out else shuffled[:1437]
    generator = np.random.default_rng(2 if held_out else 1)
    lines, digits = np.zeros((count, 8, 8 * most)), np.full((count, most), -1)
    lengths = generator.integers(fewest, most + 1, count)
    for row, length in enumerate(lengths):
        drawn = generator.choice(chosen, length)
        lines[row, :, : 8 * length] = np.hstack(list(images[drawn])) / 16
        digits[row, :length] = labels[drawn]
    pixels = torch.tensor(lines, dtype=torch.get_default_dtype())
    return pixels, torch.tensor(8 * lengths), torch.tensor(digits)


def character_error_rate(found: Sequence[Sequence[int]], digits: Tensor) -> float:
    """Returns the edit distance between digits found and written, per digit written."""
    written = [[digit for digit in row if digit >= 0] for row in digits.tolist()]
    errors = sum(edit_distance(a, b) for a, b in zip(found, written, strict=True))
    return errors / sum(map(len, written))


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Returns the fewest insertions, deletions and substitutions that turn `a` into `b`."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, start=1):
        above, row = row, [i]
        for j, y in enumerate(b, start=1):
            row.append(min(row[-1] + 1, above[j] + 1, above[j - 1] + (x != y)))
    return row[-1]
