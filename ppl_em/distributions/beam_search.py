"""Prefix beam search: the most probable label sequences given frames.

Reference:
    Hannun, A. Y., Maas, A. L., Jurafsky, D. and Ng, A. Y. (2014). First-pass large vocabulary continuous
    speech recognition using bi-directional recurrent DNNs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Hypothesis", "prefix_beam_search"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Hypothesis:
    """A decoded label sequence.

    Attributes:
        labels: The labels.
        log_prob: Log-probability of the labels over the alignments that the search kept; a lower bound.
    """

    labels: tuple[int, ...]
    log_prob: float


class _Prefixes:
    """Label sequences as a tree: each is numbered, and known by its parent and last label."""

    def __init__(self) -> None:
        self.parent, self.label = [-1], [-1]
        self.children: dict[tuple[int, int], int] = {}

    def child(self, prefix: int, label: int) -> int:
        """Returns the number of a prefix with one more label."""
        number = self.children.setdefault((prefix, label), len(self.parent))
        if number == len(self.parent):
            self.parent.append(prefix)
            self.label.append(label)
        return number

    def labels(self, prefix: int) -> tuple[int, ...]:
        """Returns a prefix written out."""
        labels: list[int] = []
        while prefix > 0:
            labels.append(self.label[prefix])
            prefix = self.parent[prefix]
        return tuple(reversed(labels))


def prefix_beam_search(log_probs: Floats, blank: int, beam_width: int) -> list[Hypothesis]:
    """Decodes one sequence of frames.

    Args:
        log_probs: (T, C), log-probability of each class at each frame.
        blank: The blank class.
        beam_width: How many prefixes are kept.

    Returns:
        Up to `beam_width` label sequences, most probable first.
    """
    prefixes = _Prefixes()
    beam = np.zeros(1, dtype=np.int64)
    in_blank, in_label = np.zeros(1), np.full(1, -np.inf)  # by whether the last frame was blank
    for frame in log_probs:
        total = np.logaddexp(in_blank, in_label)
        last = np.array([prefixes.label[prefix] for prefix in beam])
        stay_blank = total + frame[blank]
        stay_label = np.where(last >= 0, in_label + frame[last], -np.inf)
        grown = total[:, None] + frame[None, :]
        own = np.flatnonzero(last >= 0)
        grown[own, last[own]] = in_blank[own] + frame[last[own]]  # a repeat counts only after a blank
        grown[:, blank] = -np.inf
        place = {int(prefix): slot for slot, prefix in enumerate(beam)}
        for slot in own:  # a prefix that the beam holds already takes what its parent would grow into
            parent = place.get(prefixes.parent[beam[slot]])
            if parent is not None:
                stay_label[slot] = np.logaddexp(stay_label[slot], grown[parent, last[slot]])
                grown[parent, last[slot]] = -np.inf
        beam, in_blank, in_label = _keep(prefixes, beam, stay_blank, stay_label, grown, beam_width)
    total = np.logaddexp(in_blank, in_label)
    return [Hypothesis(prefixes.labels(int(beam[slot])), float(total[slot])) for slot in np.argsort(-total)]


def _keep(
    prefixes: _Prefixes, beam: Ints, stay_blank: Floats, stay_label: Floats, grown: Floats, beam_width: int
) -> tuple[Ints, Floats, Floats]:
    """Returns the best prefixes among those that stayed and those that grew by a label."""
    size, classes = grown.shape
    scores = np.concatenate([np.logaddexp(stay_blank, stay_label), grown.ravel()])
    alive = np.flatnonzero(scores > -np.inf)
    if len(alive) > beam_width:
        alive = alive[np.argpartition(-scores[alive], beam_width - 1)[:beam_width]]
    stayed, new = alive[alive < size], alive[alive >= size] - size
    numbers = [prefixes.child(int(beam[i // classes]), int(i % classes)) for i in new]
    beam = np.concatenate([beam[stayed], np.array(numbers, dtype=np.int64)])
    in_blank = np.concatenate([stay_blank[stayed], np.full(len(new), -np.inf)])
    in_label = np.concatenate([stay_label[stayed], grown.ravel()[new]])
    return beam, in_blank, in_label
