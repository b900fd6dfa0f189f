"""Plated variable elimination: any block of discrete latents, in time and memory exponential in its width only.

Reference:
    Obermeyer, F. et al. (2019). Tensor variable elimination for plated factor graphs. ICML. Algorithm 1.
    Darwiche, A. (2003). A differential approach to inference in Bayesian networks. J. ACM 50(3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from ppl_em.errors import PlanError, message
from ppl_em.exact.bucket_posterior import BucketPosterior
from ppl_em.exact.engine import Cost, Expected, Weights, count_weights, full_factor
from ppl_em.ir import Factor
from ppl_em.ir.block import Block
from ppl_em.ir.factor import add_all


@dataclass(frozen=True)
class Step:
    """One elimination: the latent and the names of the dimensions of the factor that it is summed out of.

    Args:
        latent: what is eliminated.
        dims: dimensions of its bucket.
    """

    latent: str
    dims: tuple[str, ...]


@dataclass(frozen=True)
class Term:
    """A factor together with all the plates that it lives in."""

    factor: Factor
    plates: frozenset[str]


def eliminate(
    block: Block,
    terms: Sequence[Term],
    reduce: Callable[[Factor, tuple[str, ...]], Factor],
) -> tuple[Factor, list[tuple[str, Factor]]]:
    """Eliminate all latents of a block.

    Args:
        block: gives plates and sizes.
        terms: log-factors, expanded over their plates.
        reduce: sums (or maximises) a factor over a latent.

    Returns:
        The result by the block's plates, and (latent, bucket) in elimination order.

    Raises:
        PlanError: a factor crosses two plates each of which has latents of its own.
    """
    home = {z.name: frozenset(z.plates) for z in block.latents}
    left = dict.fromkeys(home)
    outer = frozenset(block.plates)
    terms = list(terms)
    buckets: list[tuple[str, Factor]] = []
    done: list[Factor] = []
    while terms:
        leaf = max((t.plates for t in terms), key=len)
        group = [t.factor for t in terms if t.plates == leaf]
        terms = [t for t in terms if t.plates != leaf]
        inside = [z for z in left if home[z] == leaf]
        for z in _order(inside, group, block.sizes):
            touching = [f for f in group if z in f.dims]
            group = [f for f in group if z not in f.dims]
            del left[z]
            if not touching:
                continue
            bucket = add_all(touching)
            buckets.append((z, bucket))
            group.append(reduce(bucket, (z,)))
        for factor in group:
            kept = outer | frozenset(p for d in factor.dims if d in home for p in home[d])
            if kept >= leaf:
                if leaf <= outer and not any(d in left for d in factor.dims):
                    done.append(factor)
                    continue
                if leaf <= outer or kept != leaf or leaf != outer:
                    _refuse_crossing(factor, leaf, home)
            terms.append(Term(factor.sum(leaf - kept), frozenset(kept & leaf)))
    return add_all(done), buckets


def _refuse_crossing(factor: Factor, leaf: frozenset[str], home: Mapping[str, frozenset[str]]) -> None:
    latents = [d for d in factor.dims if d in home]
    raise PlanError(
        message(
            f"a factor crosses the plates {sorted(leaf)}, which have latents of their own",
            site=", ".join(latents),
            why="its cost grows exponentially with the smaller plate",
            hint='a Python loop over the smaller plate, or method="svi"',
        )
    )


def _order(latents: Sequence[str], factors: Sequence[Factor], sizes: Mapping[str, int]) -> list[str]:
    """Greedy order: next the latent whose bucket is smallest."""
    scopes = [set(f.dims) for f in factors]
    left, order = list(latents), []
    while left:
        def bucket(z: str) -> float:
            union = set().union(*(s for s in scopes if z in s))
            return math.prod(sizes.get(d, 1) for d in union)

        best = min(left, key=bucket)
        union = set().union(*(s for s in scopes if best in s))
        scopes = [s for s in scopes if best not in s] + [union - {best}]
        left.remove(best)
        order.append(best)
    return order


class Elimination:
    """General plated elimination, the engine for blocks of any shape."""

    name = "elimination"

    def reject(self, block: Block) -> str | None:
        """Crossed plates are refused; everything else is accepted."""
        try:
            self.cost(block)
        except PlanError as error:
            return str(error)
        return None

    def cost(self, block: Block) -> Cost:
        """Simulate the elimination on factors without memory."""
        terms = []
        for site in block.sites:
            dims = site.scope + site.plates
            shape = [block.sizes[d] for d in dims]
            terms.append(Term(Factor(torch.empty(shape, device="meta"), dims), frozenset(site.plates)))
        total, largest = 0.0, 0.0
        _, buckets = eliminate(block, terms, lambda f, dims: f.amax(dims))
        for _, bucket in buckets:
            size = math.prod(bucket.tensor.shape)
            total += 3.0 * size
            largest = max(largest, size)
        return Cost(2 * total, 8 * 2 * largest)

    def log_z(self, block: Block, factors: Mapping[str, Factor]) -> Factor:
        """Log-partition by the block's plates, differentiable."""
        result, _ = eliminate(block, self._terms(block, factors), lambda f, dims: f.logsumexp(dims))
        return result

    def expected(self, block: Block, factors: Mapping[str, Factor]) -> Expected:
        """Expected weights as the gradient of log Z with respect to each log-factor."""
        full = {s.name: full_factor(block, s, factors[s.name]) for s in block.sites}
        leaves = {n: Factor(f.tensor.detach().clone().requires_grad_(True), f.dims) for n, f in full.items()}
        with torch.enable_grad():
            log_z = self.log_z(block, leaves)
            grads = torch.autograd.grad(log_z.tensor.sum(), [f.tensor for f in leaves.values()], allow_unused=True)
        weights = {}
        for site, grad, leaf in zip(block.sites, grads, leaves.values(), strict=True):
            grad = torch.zeros_like(leaf.tensor) if grad is None else grad
            weights[site.name] = Weights(count_weights(block, site, Factor(grad, leaf.dims)))
        return Expected(Factor(log_z.tensor.detach(), log_z.dims), weights)

    def posterior(self, block: Block, factors: Mapping[str, Factor]) -> BucketPosterior:
        """Queries from the elimination's buckets."""
        return BucketPosterior(block, {s.name: full_factor(block, s, factors[s.name]) for s in block.sites}, eliminate)

    @staticmethod
    def _terms(block: Block, factors: Mapping[str, Factor]) -> list[Term]:
        return [Term(full_factor(block, s, factors[s.name]), frozenset(s.plates)) for s in block.sites]
