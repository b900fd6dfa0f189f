"""Staying within a memory budget: a contraction is carried out value by value of some latents, chunk by chunk of data."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import torch

from ppl_em.ir import Factor
from ppl_em.ir.block import Block

if TYPE_CHECKING:
    from ppl_em.exact.elimination import Elimination

#: Contractions that one E-step is split into at most.
MAX_RUNS = 4096


@dataclass(frozen=True)
class Slicing:
    """What is taken one by one.

    Args:
        latents: latents that are conditioned on, value by value; they live in the block's own plates.
        chunks: number of parts into which the block's outermost plate is cut.
    """

    latents: tuple[str, ...] = ()
    chunks: int = 1

    @property
    def trivial(self) -> bool:
        """Everything at once."""
        return not self.latents and self.chunks == 1

    def runs(self, block: Block) -> int:
        """Number of contractions for one chunk."""
        return math.prod(block.sizes[z] for z in self.latents)

    def pieces(self, block: Block, factors: Mapping[str, Factor]) -> Iterator[dict[str, Factor]]:
        """The factors of each chunk of the outermost plate."""
        if self.chunks == 1:
            yield dict(factors)
            return
        plate = block.plates[0]
        size = block.sizes[plate]
        step = -(-size // self.chunks)
        for start in range(0, size, step):
            yield {n: narrow(f, plate, start, min(step, size - start)) for n, f in factors.items()}

    def values(
        self, block: Block, factors: Mapping[str, Factor]
    ) -> Iterator[tuple[Callable[[Factor], Factor], dict[str, Factor]]]:
        """For each joint value of the latents: how to cut it out of a factor, and the factors cut."""
        for cell in product(*(range(block.sizes[z]) for z in self.latents)):

            def region(factor: Factor, cell: tuple[int, ...] = cell) -> Factor:
                for z, k in zip(self.latents, cell, strict=True):
                    factor = narrow(factor, z, k, 1)
                return factor

            yield region, {n: region(f) for n, f in factors.items()}

    def join(self, block: Block, parts: Sequence[Factor]) -> Factor:
        """Chunks of a factor side by side."""
        if len(parts) == 1:
            return parts[0]
        axis = parts[0].dims.index(block.plates[0])
        return Factor(torch.cat([p.tensor for p in parts], axis), parts[0].dims)


def narrow(factor: Factor, dim: str, start: int, length: int) -> Factor:
    """Part of a factor along one dimension (all of it, where it has not got that)."""
    if dim not in factor.dims:
        return factor
    return Factor(factor.tensor.narrow(factor.dims.index(dim), start, length), factor.dims)


def choose_slicing(block: Block, engine: Elimination, max_bytes: float, max_flops: float) -> Slicing:
    """The least slicing by which an E-step fits into memory, or as near as it gets.

    Data are cut first: that costs nothing. Then latents are conditioned on, always the one that saves most.
    """
    slicing = engine.slicing
    if engine.cost(block).flops > max_flops:
        return slicing  # no slicing makes fewer operations

    def bytes_of(trial: Slicing) -> float:
        return replace(engine, slicing=trial).cost(block).bytes

    if block.plates:
        size = block.sizes[block.plates[0]]
        chunks = slicing.chunks
        while chunks < min(size, MAX_RUNS) and bytes_of(replace(slicing, chunks=chunks)) > max_bytes:
            chunks = min(size, MAX_RUNS, 2 * chunks)
        slicing = replace(slicing, chunks=chunks)
    free = [z.name for z in block.latents if z.plates == block.plates]
    while bytes_of(slicing) > max_bytes and free:
        trials = [replace(slicing, latents=(*slicing.latents, z)) for z in free]
        trials = [t for t in trials if t.runs(block) <= MAX_RUNS]
        trials = [t for t in trials if replace(engine, slicing=t).cost(block).flops <= max_flops]
        if not trials:
            break
        best = min(trials, key=lambda t: (bytes_of(t), t.runs(block)))
        if bytes_of(best) >= bytes_of(slicing):
            break
        slicing = best
        free.remove(best.latents[-1])
    return slicing
