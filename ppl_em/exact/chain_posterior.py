"""Posterior queries of a chain, from the forward–backward kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_em.errors import EngineError, message
from ppl_em.exact import chain_queries
from ppl_em.exact.chain_lengths import by_length
from ppl_em.exact.chain_paths import sample_paths, viterbi
from ppl_em.exact.chain_slices import at_last
from ppl_em.exact.forward_backward import chain_log_z, expected_counts
from ppl_em.ir import Factor
from ppl_em.ir.block import Block


class ChainPosterior:
    """Posterior over the states of one chain (or of many, in plates).

    Args:
        block: with its time axis.
        init, trans, obs: log-factors in the layout of the kernels.
    """

    def __init__(self, block: Block, init: Tensor, trans: Tensor, obs: Tensor) -> None:
        assert block.axis is not None
        self.block, self.axis = block, block.axis
        self._chain = (init, trans, obs)
        self._gamma: Tensor | None = None
        shape = [block.sizes[p] for p in block.plates]
        self.log_z = Factor(chain_log_z(init, trans, obs).expand(shape), block.plates)

    def _time(self, name: str) -> int:
        return self.axis.states.index(name)

    @property
    def path(self) -> Tensor:
        """(*plates, T, K) smoothed marginals of all states."""
        if self._gamma is None:
            self._gamma = expected_counts(*self._chain).gamma
        return self._gamma

    @property
    def filtered(self) -> Tensor:
        """(*plates, T, K) probabilities of each state given the observations so far."""
        return chain_queries.filtered(*self._chain)

    @property
    def predicted(self) -> Tensor:
        """(*plates, T, K) probabilities of each state given the observations before its step."""
        init, trans, _ = self._chain
        later = self.filtered[..., :-1, :].unsqueeze(-2) @ trans.exp()
        first = torch.softmax(init, -1).expand(*later.shape[:-3], 1, init.shape[-1])
        return torch.cat([first, later.squeeze(-2)], -2)

    @property
    def evidence(self) -> Tensor:
        """(*plates, T) log-density of each step's observations given those before."""
        init, _, obs = self._chain
        predicted = self.predicted.log()
        predicted[..., 0, :] = init
        return (predicted + obs).logsumexp(-1)

    def forecast(self, steps: int) -> Tensor:
        """(*plates, steps, K) state probabilities after the last observation.

        Raises:
            EngineError: the transitions vary over time, so that there are none for the future.
        """
        trans = self._chain[1]
        if trans.dim() > 2 and trans.shape[-3] != 1:
            raise EngineError(
                message("transitions that vary over time say nothing about later steps", site=self.axis.states[-1])
            )
        trans = trans if trans.dim() == 2 else trans.squeeze(-3)
        return chain_queries.forecast(at_last(self.filtered, self.block), trans.exp(), steps)

    def ahead(self, steps: int) -> Factor:
        """As :meth:`forecast`, by plates, ``@ahead`` and the current state's dimension."""
        return Factor(self.forecast(steps), (*self.block.plates, "@ahead", self.axis.now))

    def k_best(self, k: int) -> tuple[Tensor, Tensor]:
        """The most probable paths, (k, *plates, T), best first, and their log posterior probabilities (k, *plates).

        Padding is not a part of them, see `ppl_em.exact.chain_lengths`.
        """
        paths, weights = by_length(self.block, self._chain, lambda a, b, c: chain_queries.k_best(a, b, c, k))
        shape = [self.block.sizes[p] for p in self.block.plates]
        paths = paths.expand(*shape, *paths.shape[-2:])
        return paths.movedim(-2, 0), (weights.expand(*shape, k) - self.log_z.tensor.unsqueeze(-1)).movedim(-1, 0)

    def marginal(self, name: str) -> Factor:
        """Smoothed marginal of one state."""
        return Factor(self.path[..., self._time(name), :], (*self.block.plates, name))

    def pairwise(self, a: str, b: str) -> Factor:
        """Joint marginal of two states, however far apart."""
        s, t = self._time(a), self._time(b)
        first, last = (a, b) if s < t else (b, a)
        joint = chain_queries.pairwise_between(*self._chain, min(s, t), max(s, t))
        return Factor(joint, (*self.block.plates, first, last)).to((*self.block.plates, a, b))

    def mode(self) -> dict[str, Factor]:
        """The most probable path (Viterbi)."""
        path = self.mode_path()
        return {z: Factor(path[..., t], self.block.plates) for t, z in enumerate(self.axis.states)}

    def mode_path(self) -> Tensor:
        """The most probable path as positions, (*plates, T)."""
        return by_length(self.block, self._chain, viterbi)[0]

    def sample_path(self, num_samples: int, generator: torch.Generator) -> Tensor:
        """Exact joint draws of whole paths as positions, (num_samples, *plates, T)."""
        return sample_paths(*self._chain, num_samples, generator)

    def sample(self, num_samples: int, generator: torch.Generator) -> dict[str, Factor]:
        """Exact joint draws of whole paths."""
        paths = sample_paths(*self._chain, num_samples, generator)
        dims = ("@draw", *self.block.plates)
        return {z: Factor(paths[..., t], dims) for t, z in enumerate(self.axis.states)}

    def entropy(self) -> Factor:
        """Entropy of the posterior over paths, nats."""
        (entropy,) = by_length(self.block, self._chain, lambda *chain: (chain_queries.entropy(*chain),))
        return Factor(entropy, self.block.plates)
