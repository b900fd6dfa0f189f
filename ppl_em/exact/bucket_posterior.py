"""Posterior queries of a block of discrete latents from its elimination buckets, linear in the block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ppl_em.exact.contraction import Contraction, element_name, plan_contraction
from ppl_em.exact.slicing import Slicing
from ppl_em.ir import Factor
from ppl_em.ir.block import Block
from ppl_em.ir.factor import lookup

if TYPE_CHECKING:
    from ppl_em.exact.elimination import Elimination


class BucketPosterior:
    """Posterior over one block.

    Args:
        block: the block.
        factors: log-factors by site, with all their latents and plates, detached.
        engine: how the block is contracted.
    """

    def __init__(self, block: Block, factors: Mapping[str, Factor], engine: Elimination) -> None:
        self.block, self.factors, self.engine = block, dict(factors), engine
        self.log_z, self._grads = engine.gradients(block, self.factors)

    @property
    def _slicing(self) -> Slicing:
        return self.engine.slicing

    def marginal(self, name: str) -> Factor:
        """Posterior probabilities, plates first, the latent's dimension last."""
        return self._joint((name,))

    def pairwise(self, a: str, b: str) -> Factor:
        """Joint posterior probabilities of two latents."""
        return self._joint((a, b))

    def _joint(self, names: tuple[str, ...]) -> Factor:
        """Joint marginal of latents: from a factor that holds them all, else by adding one."""
        plates = tuple(dict.fromkeys(p for n in names for p in self.block.latent(n).plates))
        order = (*plates, *names)
        for site in self.block.sites:
            if set(names) <= set(site.scope) and set(site.plates) == set(plates):
                grad = self._grads[site.name]
                return grad.sum([d for d in grad.dims if d not in order]).to(order)
        return self._probe(names, plates)

    def _probe(self, names: tuple[str, ...], plates: tuple[str, ...]) -> Factor:
        """Gradient of log Z with respect to an added zero factor."""
        from ppl_em.exact.elimination import scopes_of

        order = (*plates, *names)
        some = self.log_z.tensor
        zero = some.new_zeros([self.block.sizes[d] for d in order]).requires_grad_(True)
        contraction = plan_contraction(self.block, [*scopes_of(self.block), (names, plates)])
        with torch.enable_grad():
            total, _ = contraction.run([*self.factors.values(), Factor(zero, order)], Factor.logsumexp)
            (grad,) = torch.autograd.grad(total.tensor.sum(), zero)
        return Factor(grad, order)

    def mode(self) -> dict[str, Factor]:
        """Jointly most probable positions by max-elimination and backtracking."""
        best: Tensor | None = None
        chosen: dict[str, Factor] = {}
        for cell, values in self._slices():
            contraction = self._contraction()
            score, buckets = contraction.run(list(values.values()), Factor.amax)
            found: dict[str, Factor] = {}
            for name, bucket in reversed(buckets):
                scores = lookup(bucket, found)
                axis = scores.dims.index(name)
                found[name] = Factor(scores.tensor.argmax(axis), tuple(d for d in scores.dims if d != name))
            mine = self._whole(contraction, found, cell, {})
            value = score.align(self.block.plates)
            if best is None:
                best, chosen = value, mine
                continue
            better = Factor(value > best, self.block.plates)
            best = torch.maximum(best, value)
            chosen = {z: _where(better, mine[z], chosen[z]) for z in chosen}
        return chosen

    def sample(self, num_samples: int, generator: torch.Generator) -> dict[str, Factor]:
        """Exact joint draws, backwards through the buckets."""
        draw = {"@draw": num_samples}
        weights, drawn = [], []
        for cell, values in self._slices():
            contraction = self._contraction()
            score, buckets = contraction.run(list(values.values()), Factor.logsumexp)
            found: dict[str, Factor] = {}
            for name, bucket in reversed(buckets):
                scores = lookup(bucket, found)
                plates = tuple(sorted(contraction.homes[name], key=list(self.block.sizes).index))
                order = ("@draw", *plates, name)
                logits = scores.expand({**draw, **{p: self.block.sizes[p] for p in plates}}).align(order)
                found[name] = Factor(draw_categorical(logits, generator), order[:-1])
            weights.append(score.align(self.block.plates))
            drawn.append(self._whole(contraction, found, cell, draw))
        if len(drawn) == 1:
            return drawn[0]
        sizes = [self.block.sizes[p] for p in self.block.plates]
        logits = torch.stack(weights, -1).expand(num_samples, *sizes, len(weights))
        which = Factor(draw_categorical(logits, generator), ("@draw", *self.block.plates))
        result = drawn[0]
        for i, mine in enumerate(drawn[1:], 1):
            result = {z: _where(which.map(lambda t, i=i: t == i), mine[z], result[z]) for z in result}
        return result

    def entropy(self) -> Factor:
        """H = log Z − Σ E[log-factor], by the block's plates."""
        total = self.log_z
        for name, factor in self.factors.items():
            grad = self._grads[name].align(factor.dims)
            product = torch.where(grad > 0, grad * factor.tensor, torch.zeros_like(grad))
            reduced = Factor(product, factor.dims).sum([d for d in factor.dims if d not in self.block.plates])
            total = total + reduced.map(torch.neg)
        return total

    # slices --------------------------------------------------------------------------------------------------

    def _contraction(self) -> Contraction:
        from ppl_em.exact.elimination import contraction_of

        return contraction_of(self.block, self._slicing)

    def _slices(self):  # type: ignore[no-untyped-def]
        from itertools import product

        cells = product(*(range(self.block.sizes[z]) for z in self._slicing.latents))
        for cell, (_, values) in zip(cells, self._slicing.values(self.block, self.factors), strict=True):
            yield dict(zip(self._slicing.latents, cell, strict=True)), values

    def _whole(
        self, contraction: Contraction, found: Mapping[str, Factor], cell: Mapping[str, int], draw: Mapping[str, int]
    ) -> dict[str, Factor]:
        """Positions of the block's own latents: elements of unrolled plates stacked, conditioned ones filled in."""
        result = {}
        for latent in self.block.latents:
            lead = (*draw, *latent.plates)
            sizes = {**draw, **{p: self.block.sizes[p] for p in latent.plates}}
            over = [p for p in latent.plates if p in contraction.unrolled]
            if latent.name in cell:
                index = torch.tensor(cell[latent.name])
                result[latent.name] = Factor(index.expand([sizes[d] for d in lead]), lead)
                continue
            if not over:
                known = found.get(latent.name, Factor(torch.zeros((), dtype=torch.int64), ()))
                result[latent.name] = known.expand(sizes).to(lead)
                continue
            result[latent.name] = _stacked(latent.name, found, over, sizes).to(lead)
        return result


def _stacked(name: str, found: Mapping[str, Factor], over: list[str], sizes: Mapping[str, int]) -> Factor:
    """Elements along unrolled plates side by side."""

    def level(element: dict[str, int], depth: int) -> Factor:
        if depth == len(over):
            part = found[element_name(name, element)]
            return part.expand({d: n for d, n in sizes.items() if d not in over})
        parts = [level({**element, over[depth]: i}, depth + 1) for i in range(sizes[over[depth]])]
        dims = parts[0].dims
        return Factor(torch.stack([p.align(dims) for p in parts]), (over[depth], *dims))

    return level({}, 0)


def _where(condition: Factor, a: Factor, b: Factor) -> Factor:
    dims = a.dims
    return Factor(torch.where(condition.to(dims).tensor, a.align(dims), b.align(dims)), dims)


def draw_categorical(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Positions drawn from unnormalised log-probabilities (..., K) by inversion, one uniform number each."""
    probabilities = torch.softmax(logits.double(), -1)
    edges = probabilities.cumsum(-1)
    uniform = torch.rand((*edges.shape[:-1], 1), generator=generator, dtype=torch.float64).to(edges.device)
    return (uniform * edges[..., -1:] > edges).sum(-1).clamp_max(edges.shape[-1] - 1)
