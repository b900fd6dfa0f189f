"""Posterior queries of a block of discrete latents from its elimination buckets, linear in the block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_em.ir import Factor
from ppl_em.ir.block import Block
from ppl_em.ir.factor import lookup


class BucketPosterior:
    """Posterior over one block.

    Args:
        block: the block.
        factors: log-factors by site, expanded over their plates.
        eliminate: the elimination algorithm.
    """

    def __init__(self, block: Block, factors: Mapping[str, Factor], eliminate: Callable[..., Any]) -> None:
        self.block = block
        self.factors = {n: Factor(f.tensor.detach(), f.dims) for n, f in factors.items()}
        self._eliminate = eliminate
        self._plates = {s.name: frozenset(s.plates) for s in block.sites}
        self.log_z = self._log_z({})

    def _terms(self, extra: Mapping[str, Factor]) -> list[Any]:
        from ppl_em.exact.elimination import Term

        terms = [Term(f, self._plates[n]) for n, f in self.factors.items()]
        names = set(self.block.names)
        return terms + [Term(f, frozenset(d for d in f.dims if d not in names)) for f in extra.values()]

    def _log_z(self, extra: Mapping[str, Factor]) -> Factor:
        result, _ = self._eliminate(self.block, self._terms(extra), lambda f, dims: f.logsumexp(dims))
        return result

    def _probe(self, dims: tuple[str, ...]) -> Factor:
        """Gradient of log Z with respect to an added zero factor over ``dims``: their joint marginal."""
        sizes = self.block.sizes
        zero = torch.zeros([sizes[d] for d in dims], dtype=self.log_z.tensor.dtype, device=self.log_z.tensor.device)
        zero.requires_grad_(True)
        with torch.enable_grad():
            total = self._log_z({"probe": Factor(zero, dims)}).tensor.sum()
            (grad,) = torch.autograd.grad(total, zero)
        return Factor(grad, dims)

    def marginal(self, name: str) -> Factor:
        """Posterior probabilities, plates first, the latent's dimension last."""
        return self._probe((*self.block.latent(name).plates, name))

    def pairwise(self, a: str, b: str) -> Factor:
        """Joint posterior probabilities of two latents."""
        plates = dict.fromkeys((*self.block.latent(a).plates, *self.block.latent(b).plates))
        return self._probe((*plates, a, b))

    def mode(self) -> dict[str, Factor]:
        """Jointly most probable positions by max-elimination and backtracking."""
        _, buckets = self._eliminate(self.block, self._terms({}), lambda f, dims: f.amax(dims))
        chosen: dict[str, Factor] = {}
        for name, bucket in reversed(buckets):
            scores = lookup(bucket, chosen)
            axis = scores.dims.index(name)
            chosen[name] = Factor(scores.tensor.argmax(axis), tuple(d for d in scores.dims if d != name))
        return chosen | self._constant(chosen, ())

    def sample(self, num_samples: int, generator: torch.Generator) -> dict[str, Factor]:
        """Exact joint draws, backwards through the buckets."""
        _, buckets = self._eliminate(self.block, self._terms({}), lambda f, dims: f.logsumexp(dims))
        drawn: dict[str, Factor] = {}
        for name, bucket in reversed(buckets):
            scores = lookup(bucket, drawn)
            plates = self.block.latent(name).plates
            order = ("@draw", *plates, name)
            sizes = {"@draw": num_samples, **{p: self.block.sizes[p] for p in plates}}
            logits = scores.expand(sizes).align(order)
            drawn[name] = Factor(draw_categorical(logits, generator), order[:-1])
        return drawn | self._constant(drawn, (num_samples,))

    def _constant(self, found: Mapping[str, Factor], leading: tuple[int, ...]) -> dict[str, Factor]:
        """Latents of a single value, which no factor varies over: always the first position."""
        dims = ("@draw",) if leading else ()
        missing = [z.name for z in self.block.latents if z.name not in found]
        return {z: Factor(torch.zeros(leading, dtype=torch.int64), dims) for z in missing}

    def entropy(self) -> Factor:
        """H = log Z − Σ E[log-factor], by the block's plates."""
        leaves = {n: Factor(f.tensor.clone().requires_grad_(True), f.dims) for n, f in self.factors.items()}
        from ppl_em.exact.elimination import Term

        with torch.enable_grad():
            terms = [Term(f, self._plates[n]) for n, f in leaves.items()]
            log_z, _ = self._eliminate(self.block, terms, lambda f, dims: f.logsumexp(dims))
            grads = torch.autograd.grad(log_z.tensor.sum(), [f.tensor for f in leaves.values()])
        total = Factor(log_z.tensor.detach(), log_z.dims)
        for factor, grad in zip(self.factors.values(), grads, strict=True):
            product = torch.where(grad > 0, grad * factor.tensor, torch.zeros_like(grad))
            reduced = Factor(product, factor.dims).sum([d for d in factor.dims if d not in self.block.plates])
            total = total + reduced.map(torch.neg)
        return total


def draw_categorical(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Positions drawn from unnormalised log-probabilities (..., K) by inversion, one uniform number each."""
    probabilities = torch.softmax(logits.double(), -1)
    edges = probabilities.cumsum(-1)
    uniform = torch.rand((*edges.shape[:-1], 1), generator=generator, dtype=torch.float64).to(edges.device)
    return (uniform * edges[..., -1:] > edges).sum(-1).clamp_max(edges.shape[-1] - 1)
