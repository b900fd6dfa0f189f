"""Pyro's ``DiscreteHMM``, a distribution that is summed over its hidden states already, with expected counts.

Reference:
    Eisner, J. (2016). Inside-outside and forward-backward algorithms are just backprop.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Size, Tensor

from ppl_em.distributions.compound import Compound
from ppl_em.distributions.structured import HiddenCost, StructuredDistribution, register_structured
from ppl_em.exact.forward_backward import chain_log_z

_TABLES = ("initial_logits", "transition_logits")


@register_structured
class HiddenMarkovOf(StructuredDistribution, Compound):
    """A hidden Markov model over whole sequences; the state before the first step has the initial distribution.

    Arguments: ``initial_logits`` (*batch, K), ``transition_logits`` (*batch, T or 1, K, K), rows from, columns to, and those
    of what the states emit, ``observation_…`` (*batch, T or 1, K, *event).

    Attributes:
        event_dim_of_step: event dimensions of one step's observation.
    """

    counted = _TABLES
    impossible: ClassVar[str] = "no path of states gives them"
    event_dim_of_step: ClassVar[int] = 0

    def __init__(self, **arguments: Any) -> None:
        arguments.pop("validate_args", None)
        for name, value in arguments.items():
            object.__setattr__(self, name, value)
        self.names = tuple(arguments)
        # Events are sequences, whatever their length.
        super(Compound, self).__init__(Size(), Size((1,) * (1 + self.event_dim_of_step)), validate_args=False)

    @property
    def arguments(self) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The arguments by name."""
        return {n: self.__dict__[n] for n in self.names}

    def _factors(self, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log-factors of the chain, the state before the first step included, batch dimensions in full.

        Args:
            value: (*batch, T, *event).
        """
        score = self._score("observation", value.unsqueeze(-1 - self.event_dim_of_step))
        init, trans = (self.__dict__[n] - self.__dict__[n].logsumexp(-1, True) for n in _TABLES)
        trans = trans if trans.dim() > 2 else trans.unsqueeze(0)
        batch = torch.broadcast_shapes(score.shape[:-2], init.shape[:-1], trans.shape[:-3])
        states = score.shape[-1]
        score = score.expand(*batch, *score.shape[-2:])
        obs = torch.cat([score.new_zeros(*batch, 1, states), score], -2)
        if trans.shape[:-2].numel() == 1:
            return init, trans.reshape(states, states), obs
        return init, trans.expand(*trans.shape[:-3], score.shape[-2], states, states), obs

    def log_prob(self, value: Tensor) -> Tensor:
        """Log-density of whole sequences, (*batch)."""
        return chain_log_z(*self._factors(value))

    def hidden_cost(self, value_shape: Size) -> HiddenCost:
        """Forward and backward: two multiply-adds for each pair of states, step and sequence, each way."""
        states = self.__dict__["initial_logits"].shape[-1]
        steps = value_shape[: len(value_shape) - self.event_dim_of_step].numel()
        return HiddenCost(flops=8.0 * steps * states**2, bytes=8.0 * steps * states * 4)

    def expected_counts(self, value: Tensor, weights: Tensor | None = None) -> dict[str, Tensor]:
        """Expected number of starts in each state, of moves, and the probability of each state at each step.

        Args:
            value: (*batch, T, *event).
            weights: one weight per batch element, or None for one.

        Returns:
            Counts in the shapes of ``initial_logits`` and ``transition_logits``; ``observation``, (*batch, T, K), and the
            ``value`` that the states emit, with which they make Q.
        """
        factors = [f.detach() for f in self._factors(value)]
        init, trans, obs = (f.clone().requires_grad_() for f in factors)
        with torch.enable_grad():
            log_z = chain_log_z(init, trans, obs)
            wide = torch.ones_like(log_z) if weights is None else weights.detach().to(log_z.dtype)
            total = (log_z * wide).where(log_z.isfinite(), 0).sum()
            starts, moves, states = torch.autograd.grad(total, (init, trans, obs))
        own = self.__dict__["transition_logits"]
        spread = moves if own.dim() > 2 else moves.reshape(moves.shape[-2:])
        if own.dim() > spread.dim():
            spread = spread.reshape(*(1 for _ in range(own.dim() - 2)), *spread.shape[-2:])
        return {
            "initial_logits": starts.sum_to_size(self.__dict__["initial_logits"].shape),
            "transition_logits": spread.sum_to_size(own.shape),
            "observation": states[..., 1:, :],
            "value": value,
        }

    def normalised(self, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Logs of the normalised counts; a row without counts keeps its current value."""
        updated = {}
        for name, count in counts.items():
            total = count.sum(-1, keepdim=True)
            log = (count / total.masked_fill(total == 0, 1)).log()
            updated[name] = torch.where(total > 0, log, self.__dict__[name].log_softmax(-1))
        return updated

    def expected_log_prob(self, counts: Mapping[str, Tensor]) -> Tensor:
        """Q under counts of `expected_counts`, differentiable in all arguments."""
        terms = []
        for name in _TABLES:
            count = counts[name]
            logits = self.__dict__[name] - self.__dict__[name].logsumexp(-1, True)
            terms.append((count * logits.where(count != 0, 0.0)).sum())
        value = counts["value"].unsqueeze(-1 - self.event_dim_of_step)
        score = self._score("observation", value)
        weight = counts["observation"]
        terms.append((weight * score.where(weight != 0, 0.0)).sum())
        return torch.stack([t.double() for t in terms]).sum()

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draws come from the program's own distribution; this one stands for it in densities alone."""
        return StructuredDistribution.sample(self, sample_shape)
