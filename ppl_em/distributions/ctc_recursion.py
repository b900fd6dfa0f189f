"""The forward and backward recursions of connectionist temporal classification, and log Z.

A label sequence y of length S is spelled by *states* 0 … 2S: blank, y₁, blank, y₂, …, blank. An alignment is
a path through the states that stays, moves on by one, or skips a blank between two different labels.

Axes: B sequences, T frames, C classes, S labels, L = 2S + 1 states. Everything is in natural logs; impossible
    is a
large negative number, so that derivatives of any order exist.

Reference:
    Graves, A., Fernández, S., Gomez, F. and Schmidhuber, J. (2006). Connectionist temporal classification.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import ctc_loss, pad

__all__ = ["FLOOR", "Spelling", "alignment_log_z", "backward_scores", "forward_scores"]

FLOOR = -1e30


@dataclass(frozen=True)
class Spelling:
    """Label sequences spelled out as states.

    Attributes:
        classes: (B, L) int64, class of each state.
        skip: (B, L) bool, whether the state can be entered from two states before.
        input_lengths: (B,) int64, number of frames.
        target_lengths: (B,) int64, number of labels.
        blank: The blank class.
    """

    classes: Tensor
    skip: Tensor
    input_lengths: Tensor
    target_lengths: Tensor
    blank: int

    @staticmethod
    def of(targets: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int) -> Spelling:
        """Spells `targets` (B, S); entries beyond the lengths are ignored."""
        position = torch.arange(targets.shape[1], device=targets.device)
        labels = targets.where(position < target_lengths.unsqueeze(-1), blank)
        classes = torch.full((len(targets), 2 * targets.shape[1] + 1), blank, device=targets.device)
        classes[:, 1::2] = labels
        skip = torch.zeros_like(classes, dtype=torch.bool)
        skip[:, 3::2] = labels[:, 1:] != labels[:, :-1]
        return Spelling(classes, skip, input_lengths, target_lengths, blank)

    def emissions(self, log_probs: Tensor) -> Tensor:
        """Returns the log-probability of each state's class at each frame, (B, T, L), at least FLOOR."""
        index = self.classes.unsqueeze(1).expand(-1, log_probs.shape[1], -1)
        return log_probs.clamp(min=FLOOR).gather(2, index)

    def final(self) -> Tensor:
        """Returns zero for the states in which an alignment may end, else FLOOR, (B, L)."""
        state = torch.arange(self.classes.shape[1], device=self.classes.device)
        last = 2 * self.target_lengths.unsqueeze(-1)
        return torch.where((state == last) | (state == last - 1), 0.0, FLOOR)

    def feasible(self) -> Tensor:
        """Whether there are frames enough for the labels and the blanks between equal ones, (B,)."""
        state = torch.arange(self.classes.shape[1], device=self.classes.device)
        inside = (state < 2 * self.target_lengths.unsqueeze(-1)) & (state >= 3) & (state % 2 == 1)
        repeats = (inside & ~self.skip).sum(-1)
        # A blank among the labels has no alignment: alignments that emit it lose it.
        label = (state < 2 * self.target_lengths.unsqueeze(-1)) & (state % 2 == 1)
        pure = ~(label & (self.classes == self.blank)).any(-1)
        return pure & (self.input_lengths >= self.target_lengths + repeats)


def forward_scores(emissions: Tensor, spelling: Spelling) -> Tensor:
    """Returns log p(frames 0 … t, state at t), (B, T, L), differentiable."""
    barred = torch.where(spelling.skip, 0.0, FLOOR).to(emissions.dtype)
    start = torch.full_like(emissions[:, 0], FLOOR)
    start[:, :2] = 0
    scores = [start + emissions[:, 0]]
    for t in range(1, emissions.shape[1]):
        stay = scores[-1]
        move = pad(stay, (1, 0), value=FLOOR)[:, :-1]
        skip = pad(stay, (2, 0), value=FLOOR)[:, : stay.shape[1]] + barred
        step = torch.stack([stay, move, skip]).logsumexp(0) + emissions[:, t]
        scores.append(step.clamp(min=FLOOR))
    return torch.stack(scores, 1)


def backward_scores(emissions: Tensor, spelling: Spelling, best: bool = False) -> Tensor:
    """Returns log p(frames t + 1 … and the end | state at t), (B, T, L); frames after the last are passed by.

    Args:
        emissions: (B, T, L).
        spelling: The states.
        best: Take the best path instead of the sum over paths.
    """
    barred = torch.where(spelling.skip, 0.0, FLOOR).to(emissions.dtype)
    final = spelling.final().to(emissions.dtype)
    scores = [final]
    for t in range(emissions.shape[1] - 1, 0, -1):
        ahead = scores[-1] + emissions[:, t]
        move = pad(ahead, (0, 1), value=FLOOR)[:, 1:]
        skip = pad(ahead + barred, (0, 2), value=FLOOR)[:, 2:]
        ways = torch.stack([ahead, move, skip])
        step = (ways.amax(0) if best else ways.logsumexp(0)).clamp(min=FLOOR)
        scores.append(torch.where((t < spelling.input_lengths).unsqueeze(-1), step, final))
    return torch.stack(scores[::-1], 1)


def alignment_log_z(log_probs: Tensor, spelling: Spelling, targets: Tensor) -> Tensor:
    """Returns the log-probability of label sequences, (B,), −inf where there is no alignment.

    Its derivative is the posterior over alignments, zero for impossible sequences. torch's own `ctc_loss`
    computes it where it is right: for finite inputs and first derivatives. (It gives NaN derivatives at −inf
    inputs, none of second order, and its derivative by log-probabilities holds only below a softmax.)

    Args:
        log_probs: (B, T, C), normalised over classes.
        spelling: The label sequences as states.
        targets: (B, S), the label sequences.
    """
    return _LogZ.apply(log_probs, spelling, targets)  # type: ignore[no-any-return]


class _LogZ(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, log_probs: Tensor, spelling: Spelling, targets: Tensor) -> Tensor:
        compute = _by_torch if bool(log_probs.isfinite().all()) else _by_recursion
        with torch.enable_grad():
            log_z, marginals = compute(log_probs.detach().requires_grad_(), spelling, targets)
        ctx.save_for_backward(log_probs, marginals)
        ctx.spelling = spelling
        return log_z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        log_probs, marginals = ctx.saved_tensors
        if torch.is_grad_enabled():  # the caller wants to differentiate again
            total = _recursive_log_z(log_probs, ctx.spelling)
            total = total.where(total > FLOOR / 2, 0)
            (marginals,) = torch.autograd.grad(total.sum(), log_probs, create_graph=True)
        return marginals * grad[:, None, None], None, None


def _recursive_log_z(log_probs: Tensor, spelling: Spelling) -> Tensor:
    """Returns log Z (B,) by the forward recursion, FLOOR or so where impossible."""
    emissions = spelling.emissions(log_probs)
    scores = forward_scores(emissions, spelling)
    frame = (spelling.input_lengths - 1).clamp(min=0)[:, None, None].expand(-1, 1, scores.shape[2])
    log_z = (scores.gather(1, frame).squeeze(1) + spelling.final().to(scores.dtype)).logsumexp(-1)
    log_z = torch.where(spelling.feasible(), log_z, FLOOR)
    return torch.where(spelling.input_lengths == 0, torch.where(spelling.target_lengths == 0, 0.0, FLOOR), log_z)


def _by_recursion(leaf: Tensor, spelling: Spelling, targets: Tensor) -> tuple[Tensor, Tensor]:
    log_z = _recursive_log_z(leaf, spelling)
    possible = log_z > FLOOR / 2
    (marginals,) = torch.autograd.grad(log_z.where(possible, 0).sum(), leaf)
    return log_z.detach().masked_fill(~possible, float("-inf")), marginals


def _by_torch(leaf: Tensor, spelling: Spelling, targets: Tensor) -> tuple[Tensor, Tensor]:
    possible = spelling.feasible() & (spelling.input_lengths > 0)
    # Impossible sequences are replaced by empty ones, which are always possible, and overwritten below.
    target_lengths = spelling.target_lengths.where(possible, 0)
    input_lengths = spelling.input_lengths.clamp(min=1)
    frames = leaf.transpose(0, 1)
    loss = ctc_loss(frames, targets, input_lengths, target_lengths, spelling.blank, reduction="none")
    (slope,) = torch.autograd.grad(loss.sum(), leaf)
    frame = torch.arange(leaf.shape[1], device=leaf.device) < input_lengths.unsqueeze(-1)
    used = (frame & possible.unsqueeze(-1)).unsqueeze(-1)
    marginals = (leaf.detach().exp() - slope).clamp(min=0).where(used, 0)
    empty = (spelling.input_lengths == 0) & (spelling.target_lengths == 0)
    log_z = torch.where(possible, -loss.detach(), float("-inf")).masked_fill(empty, 0.0)
    return log_z, marginals
