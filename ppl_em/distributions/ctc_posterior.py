"""The posterior over the alignments of given label sequences to frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.distributions.ctc_recursion import (
    FLOOR,
    Spelling,
    alignment_log_z,
    backward_scores,
    forward_scores,
)
from ppl_em.errors import DataError, message

__all__ = ["Alignment", "CTCPosterior"]


@dataclass(frozen=True)
class Alignment:
    """Alignments of label sequences to frames.

    Attributes:
        classes: (…, T) int64, class that each frame emits, blanks included; −1 after the last frame.
        positions: (…, T) int64, which label of the sequence each frame spells, from 0; −1 for blanks.
        log_prob: (…), log-probability of the alignment (and with it the labels), in nats.
    """

    classes: Tensor
    positions: Tensor
    log_prob: Tensor


@dataclass(frozen=True)
class CTCPosterior:
    """Posterior over alignments, given frames and label sequences.

    Made by `CTC.posterior`.

    Attributes:
        log_probs: (B, T, C), normalised.
        spelling: The label sequences as states: blank, label, blank, …
        flat_log_z: (B,).
        batch_shape: Shape to which B unflattens.
    """

    log_probs: Tensor
    spelling: Spelling
    flat_log_z: Tensor
    batch_shape: torch.Size

    @staticmethod
    def of(log_probs: Tensor, spelling: Spelling, targets: Tensor, batch_shape: torch.Size) -> CTCPosterior:
        """Sums over the alignments; raises DataError where there are none."""
        log_z = alignment_log_z(log_probs, spelling, targets)
        if bool((impossible := log_z.isneginf()).any()):
            where = [tuple(index) for index in impossible.reshape(batch_shape).nonzero().tolist()][:5]
            what = f"{int(impossible.sum())} label sequences have no alignment, so they have no posterior"
            why = "there are fewer frames than labels and blanks between equal labels, or a class is excluded"
            raise DataError(message(what, value=f"batch indices {where}", why=why, hint="more frames for each label"))
        return CTCPosterior(log_probs, spelling, log_z, batch_shape)

    @property
    def log_z(self) -> Tensor:
        """Log-probability of each label sequence, (*batch)."""
        return self.flat_log_z.reshape(self.batch_shape)

    def state_marginals(self) -> Tensor:
        """Probability that a frame is in each state (blank, label, blank, …), (*batch, T, 2S + 1)."""
        emissions = self.spelling.emissions(self.log_probs)
        joint = forward_scores(emissions, self.spelling) + backward_scores(emissions, self.spelling)
        marginals = (joint - self.flat_log_z[:, None, None]).exp() * self._frames()
        return marginals.reshape(*self.batch_shape, *marginals.shape[1:])

    def class_marginals(self) -> Tensor:
        """Probability that a frame emits each class, (*batch, T, C): the derivative of log Z."""
        states = self.state_marginals().reshape(*self.log_probs.shape[:2], -1)
        index = self.spelling.classes.unsqueeze(1).expand_as(states)
        marginals = torch.zeros_like(self.log_probs).scatter_add_(2, index, states)
        return marginals.reshape(*self.batch_shape, *marginals.shape[1:])

    def entropy(self) -> Tensor:
        """Entropy of the posterior over alignments, in nats, (*batch): log Z − E[log p(alignment)]."""
        marginals = self.class_marginals().reshape(self.log_probs.shape)
        mean = torch.where(marginals > 0, marginals * self.log_probs, 0).sum((-1, -2))
        return (self.flat_log_z - mean).clamp(min=0).reshape(self.batch_shape)

    def mode(self) -> Alignment:
        """Returns the most probable alignment (Viterbi), of shape (*batch)."""
        emissions = self.spelling.emissions(self.log_probs)
        onward = backward_scores(emissions, self.spelling, best=True)
        alignment = self._walk(emissions, onward.unsqueeze(0), lambda scores: scores.argmax(-1))
        return Alignment(alignment.classes[0], alignment.positions[0], alignment.log_prob[0])

    def sample(self, num_samples: int = 1, generator: torch.Generator | None = None) -> Alignment:
        """Draws alignments from the posterior, of shape (num_samples, *batch).

        Args:
            num_samples: Number of draws for each label sequence.
            generator: Source of random numbers; torch's global one if None.
        """
        emissions = self.spelling.emissions(self.log_probs)
        onward = backward_scores(emissions, self.spelling).expand(num_samples, *emissions.shape)

        def draw(scores: Tensor) -> Tensor:
            probs = scores.softmax(-1)
            flat = torch.multinomial(probs.reshape(-1, probs.shape[-1]), 1, generator=generator)
            return flat.reshape(probs.shape[:-1])

        return self._walk(emissions, onward, draw)

    def _walk(self, emissions: Tensor, onward: Tensor, choose: Callable[[Tensor], Tensor]) -> Alignment:
        """Goes from frame to frame by the scores of what lies ahead, `onward` (draws, B, T, L)."""
        draws, b, frames, num_states = onward.shape
        ahead = torch.nn.functional.pad(emissions + onward, (0, 2), value=FLOOR)
        skip = torch.nn.functional.pad(self.spelling.skip, (0, 2))
        rows = torch.arange(b, device=emissions.device)
        state = choose(ahead[:, :, 0, :2])
        states = [state]
        for t in range(1, frames):
            ways = state.unsqueeze(-1) + torch.arange(3, device=state.device)
            scores = ahead[:, :, t].gather(-1, ways)
            barred = ~skip[rows, state + 2]
            scores[..., 2] = scores[..., 2].masked_fill(barred, FLOOR)
            moved = state + choose(scores)
            state = torch.where(t < self.spelling.input_lengths, moved, state)
            states.append(state)
        path = torch.stack(states, -1)
        assert int(path.amax()) < num_states
        running = self._frames().squeeze(-1)
        classes = self.spelling.classes.expand(draws, b, num_states).gather(-1, path)
        score = self.log_probs.gather(-1, classes.movedim(0, -1)).movedim(-1, 0)
        positions = torch.where(path % 2 == 1, path // 2, -1)
        shape = (draws, *self.batch_shape)
        return Alignment(
            classes.where(running, -1).reshape(*shape, frames),
            positions.where(running, -1).reshape(*shape, frames),
            score.where(running, 0).sum(-1).reshape(shape),
        )

    def _frames(self) -> Tensor:
        """Which frames are used, (B, T, 1)."""
        frame = torch.arange(self.log_probs.shape[1], device=self.log_probs.device)
        return (frame < self.spelling.input_lengths.unsqueeze(-1)).unsqueeze(-1)
