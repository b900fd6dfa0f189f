"""Connectionist temporal classification as a Pyro distribution over label sequences."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import constraints
from torch import Tensor

from ppl_em.distributions.beam_search import Hypothesis, prefix_beam_search
from ppl_em.distributions.constraints import given, padded_labels
from ppl_em.distributions.ctc_posterior import CTCPosterior
from ppl_em.distributions.ctc_recursion import Spelling, alignment_log_z
from ppl_em.distributions.ctc_sampling import sample_label_sequences
from ppl_em.distributions.structured import HiddenCost, StructuredDistribution, register_structured
from ppl_em.errors import ModelError, message

__all__ = ["CTC"]


@register_structured
class CTC(StructuredDistribution):
    """Label sequences emitted by T frames, the alignment summed out (connectionist temporal classification).

    Each frame emits one class, independently, from softmax(logits); repeats are merged and blanks removed.
    `log_prob` sums over all alignments of the labels to the frames.

    Args:
        logits: (…, T, C), scores of the classes at each frame; softmax is applied.
        input_lengths: (…) int64, number of frames used; T if None.
        target_lengths: (…) int64, number of labels; if None, a value ends at its first entry that is negative
            or blank.
        blank: The blank class.

    Values are int64 (…, S), labels 0 … C − 1 except the blank. Draws are padded with −1; where
    `target_lengths` are given they have those lengths. The event shape is (longest target length,), or (T,)
    if unknown.

    Raises:
        ModelError: If the shapes do not fit together.

    Reference:
        Graves, A., Fernández, S., Gomez, F. and Schmidhuber, J. (2006). Connectionist temporal
        classification.

    Example:
        >>> uniform = CTC(torch.zeros(2, 3))           # two frames; blank and labels 1, 2
        >>> uniform.log_prob(torch.tensor([1])).exp()  # 1 1, 1 blank or blank 1, of nine
        tensor(0.3333)
    """

    arg_constraints = {  # pyright: ignore[reportAssignmentType]
        "logits": constraints.independent(constraints.real_vector, 1),
        "input_lengths": given,
        "target_lengths": given,
        "blank": given,
    }
    counted = ("logits",)
    impossible = "there are fewer frames than labels and blanks between equal labels"

    def __init__(
        self,
        logits: Tensor,
        input_lengths: Tensor | None = None,
        target_lengths: Tensor | None = None,
        blank: int = 0,
        validate_args: bool | None = None,
    ) -> None:
        if logits.dim() < 2 or not 0 <= blank < logits.shape[-1]:
            what = f"logits must be (…, T, C) with the blank {blank} among the C classes"
            raise ModelError(message(what, site="logits", value=tuple(logits.shape), hint="frames, then classes, last"))
        if input_lengths is not None and input_lengths.numel() and int(input_lengths.max()) > logits.shape[-2]:
            what = f"an input length exceeds the {logits.shape[-2]} frames"
            raise ModelError(
                message(what, site="input_lengths", value=int(input_lengths.max()), hint="lengths in frames")
            )
        self.logits, self.blank = logits, blank
        self.input_lengths, self.target_lengths = input_lengths, target_lengths
        lengths = [x.shape for x in (input_lengths, target_lengths) if x is not None]
        known = target_lengths is not None and target_lengths.numel() > 0
        width = int(target_lengths.max()) if known and target_lengths is not None else logits.shape[-2]
        batch = torch.broadcast_shapes(logits.shape[:-2], *lengths)
        super().__init__(batch, torch.Size((width,)), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> Any:
        """Sequences of labels, padded."""
        return padded_labels(self.logits.shape[-1], self.target_lengths, excluded=self.blank)

    def expand(self, batch_shape: torch.Size | tuple[int, ...], _instance: Any = None) -> CTC:
        """Returns the same distribution for a larger batch."""
        new = copy.copy(self) if _instance is None else _instance
        new._batch_shape = torch.broadcast_shapes(self.batch_shape, torch.Size(batch_shape))
        return new

    def log_prob(self, value: Tensor) -> Tensor:
        """Returns the log-probability of label sequences, (…); −inf where there are too few frames.

        Args:
            value: (…, S) int64.
        """
        return self._log_prob(self.logits.log_softmax(-1), value)

    def posterior(self, value: Tensor) -> CTCPosterior:
        """Returns the posterior over alignments of given label sequences.

        Args:
            value: (…, S) int64.

        Raises:
            DataError: If a sequence has no alignment.
        """
        with torch.no_grad():
            log_probs, spelling, targets, batch = self._arrange(self.logits.log_softmax(-1), value)
            return CTCPosterior.of(log_probs, spelling, targets, batch)

    def beam_search(self, beam_width: int = 100) -> list[list[Hypothesis]]:
        """Decodes by prefix beam search.

        Args:
            beam_width: How many prefixes are kept at each frame. With all of them kept the search is exact.

        Returns:
            For each element of the batch (row-major) up to `beam_width` label sequences, most probable first.
        """
        log_probs = self.logits.detach().log_softmax(-1).double().expand(*self.batch_shape, -1, -1)
        flat = log_probs.reshape(-1, *log_probs.shape[-2:]).cpu().numpy()
        used = self._frames().expand(self.batch_shape).reshape(-1).tolist()
        return [prefix_beam_search(x[:n], self.blank, beam_width) for x, n in zip(flat, used, strict=True)]

    def sample(self, sample_shape: torch.Size | tuple[int, ...] = ()) -> Tensor:
        """Draws label sequences, (*sample_shape, *batch, S) int64, padded with −1."""
        shape = self._extended_shape(torch.Size(sample_shape))[:-1]
        with torch.no_grad():
            log_probs = self.logits.log_softmax(-1).expand(*shape, -1, -1)
            lengths = self._frames().expand(shape).reshape(-1)
            targets = self.target_lengths
            targets = None if targets is None else targets.expand(shape).reshape(-1)
            flat = log_probs.reshape(-1, *log_probs.shape[-2:])
            drawn = sample_label_sequences(flat, lengths, targets, self.blank)
        return drawn[:, : self.event_shape[0]].reshape(*shape, self.event_shape[0])

    def expected_counts(self, value: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Posterior expectation of how often each frame emits each class: the alignment marginals.

        Args:
            value: (…, S) int64.
            weights: One weight per batch element; one if None.

        Returns:
            ``logits``: in the shape of `logits`, summed over the batch dims along which they are shared.
        """
        leaf = self.logits.detach().log_softmax(-1).requires_grad_()
        with torch.enable_grad():
            log_z = self._log_prob(leaf, value)
            total = (log_z if weights is None else log_z * weights.detach()).where(log_z.isfinite(), 0).sum()
            (counts,) = torch.autograd.grad(total, leaf)
        return {"logits": counts}

    def normalised(self, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The M-step of free logits: log of the normalised counts; frames without counts keep theirs."""
        count = counts["logits"]
        total = count.sum(-1, keepdim=True)
        return {"logits": torch.where(total > 0, (count / total.masked_fill(total == 0, 1)).log(), self.logits)}

    def expected_log_prob(self, counts: Mapping[str, Tensor]) -> Tensor:
        """Q, the posterior expectation of the log-probability of labels and alignment.

        Args:
            counts: As returned by `expected_counts`.
        """
        count = counts["logits"]
        return (count * self.logits.log_softmax(-1)).where(count != 0, 0).sum()

    def hidden_cost(self, value_shape: torch.Size) -> HiddenCost:
        """Predicts the cost of log Z and the alignment marginals from shapes.

        Args:
            value_shape: (*batch, S).
        """
        sequences = torch.broadcast_shapes(self.batch_shape, value_shape[:-1]).numel()
        frames, classes = self.logits.shape[-2:]
        states = 2 * value_shape[-1] + 1
        # Two recursions of three exponentials and a logarithm for each state; a softmax and its backward
        # pass.
        flops = sequences * frames * (60.0 * states + 20.0 * classes)
        return HiddenCost(flops, float(sequences * frames * (2 * states + 4 * classes) * self.logits.element_size()))

    def lengths_of(self, value: Tensor) -> Tensor:
        """Returns the number of labels of each sequence: as given, or up to the first padding."""
        return self.support.lengths_of(value)

    def _frames(self) -> Tensor:
        if self.input_lengths is not None:
            return self.input_lengths
        return torch.tensor(self.logits.shape[-2], device=self.logits.device)

    def _log_prob(self, log_probs: Tensor, value: Tensor) -> Tensor:
        flat, spelling, targets, batch = self._arrange(log_probs, value)
        return alignment_log_z(flat, spelling, targets).reshape(batch)

    def _arrange(self, log_probs: Tensor, value: Tensor) -> tuple[Tensor, Spelling, Tensor, torch.Size]:
        """Flattens the batch: log-probabilities (B, T, C), states, targets (B, S), and the batch shape."""
        if self._validate_args:
            self._validate_sample(value)
        batch = torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        target_lengths = self.support.lengths_of(value).expand(batch).reshape(-1)
        input_lengths = self._frames().to(value.device).expand(batch).reshape(-1)
        width = max(int(target_lengths.max()) if target_lengths.numel() else 0, 1)
        targets = torch.nn.functional.pad(value, (0, max(width - value.shape[-1], 0)))[..., :width]
        targets = targets.expand(*batch, width).reshape(-1, width)
        inside = torch.arange(width, device=value.device) < target_lengths.unsqueeze(-1)
        targets = targets.where(inside, self.blank)
        frames, classes = log_probs.shape[-2:]
        flat = log_probs.expand(*batch, frames, classes).reshape(-1, frames, classes)
        return flat, Spelling.of(targets, input_lengths, target_lengths, self.blank), targets, batch

    def _validate_sample(self, value: Tensor) -> None:
        torch.broadcast_shapes(self.batch_shape, value.shape[:-1])
        self.support.validate(value)
