"""Drawing label sequences from frames, of any length or of a given one."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.errors import ModelError, message

__all__ = ["sample_label_sequences"]

NEG_INF = float("-inf")


def sample_label_sequences(
    log_probs: Tensor, input_lengths: Tensor, target_lengths: Tensor | None, blank: int
) -> Tensor:
    """Draws the class of each frame, merges repeats and removes blanks.

    Args:
        log_probs: (B, T, C), normalised.
        input_lengths: (B,) int64, number of frames.
        target_lengths: (B,) int64, number of labels that each draw must have, or None.
        blank: The blank class.

    Returns:
        (B, T) int64, padded with −1.

    Raises:
        ModelError: If no alignment has a given number of labels.
    """
    if target_lengths is None:
        b, frames, classes = log_probs.shape
        path = torch.multinomial(log_probs.exp().reshape(b * frames, classes), 1).reshape(b, frames)
    else:
        path = _path_given_length(log_probs.double(), input_lengths, target_lengths, blank)
    frame = torch.arange(path.shape[1], device=path.device)
    previous = torch.nn.functional.pad(path, (1, 0), value=blank)[:, :-1]
    kept = (path != blank) & (path != previous) & (frame < input_lengths.unsqueeze(-1))
    result = torch.full_like(path, -1)
    result[frame < kept.sum(-1, keepdim=True)] = path[kept]
    return result


def _path_given_length(log_probs: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int) -> Tensor:
    """Draws a class for each frame given the number of labels, (B, T)."""
    b, frames, classes = log_probs.shape
    onward = _onward(log_probs, input_lengths, target_lengths, blank)
    rows = torch.arange(b, device=log_probs.device)
    count, last = torch.zeros_like(rows), torch.full_like(rows, blank)
    each = torch.arange(classes, device=log_probs.device)
    path = []
    for t in range(frames):
        new = (each != blank) & (each != last.unsqueeze(-1))
        after = (count.unsqueeze(-1) + new).clamp(max=onward.shape[2] - 1)
        score = log_probs[:, t] + onward[t + 1][rows.unsqueeze(-1), after, each]
        score = score.masked_fill(count.unsqueeze(-1) + new >= onward.shape[2], NEG_INF)
        running = t < input_lengths
        if bool((dead := running & score.isneginf().all(-1)).any()):
            value = int(target_lengths[dead][0])
            hint = "fewer labels, or more frames"
            raise ModelError(
                message("no alignment has that many labels", site="target_lengths", value=value, hint=hint)
            )
        drawn = torch.multinomial(score.where(running.unsqueeze(-1), 0).softmax(-1), 1).squeeze(-1)
        path.append(drawn)
        count = torch.where(running, count + new[rows, drawn], count)
        last = torch.where(running, drawn, last)
    return torch.stack(path, -1)


def _onward(log_probs: Tensor, input_lengths: Tensor, target_lengths: Tensor, blank: int) -> Tensor:
    """Returns log p(the right number of labels in the end | n labels up to here, last frame's class c).

    Returns:
        (T + 1, B, n, C); index 0 stands before the first frame.
    """
    b, frames, classes = log_probs.shape
    most = int(target_lengths.max()) + 1
    done = torch.arange(most, device=log_probs.device) == target_lengths.unsqueeze(-1)
    score = torch.where(done, 0.0, NEG_INF).unsqueeze(-1).expand(b, most, classes).to(log_probs.dtype)
    scores = [score]
    label = torch.arange(classes, device=log_probs.device) != blank
    for t in range(frames - 1, -1, -1):
        ahead = score + log_probs[:, t].unsqueeze(1)
        to_blank = ahead[..., blank, None].expand_as(ahead)
        again = ahead.masked_fill(~label, NEG_INF)
        fresh = _all_but_own(torch.nn.functional.pad(again[:, 1:], (0, 0, 0, 1), value=NEG_INF))
        step = torch.logaddexp(torch.logaddexp(to_blank, again), fresh)
        score = torch.where((t < input_lengths)[:, None, None], step, score)
        scores.append(score)
    return torch.stack(scores[::-1])


def _all_but_own(x: Tensor) -> Tensor:
    """Returns, for each class, the log of the sum of exp over all other classes."""
    before = torch.nn.functional.pad(x, (1, 0), value=NEG_INF)[..., :-1].logcumsumexp(-1)
    after = torch.nn.functional.pad(x, (0, 1), value=NEG_INF)[..., 1:].flip(-1).logcumsumexp(-1).flip(-1)
    return torch.logaddexp(before, after)
