"""One part of a family made of others, as a weighted sample of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_em.distributions.compound import Compound
from ppl_em.mstep.block import Argument, Block
from ppl_em.mstep.registry import Rule
from ppl_em.mstep.sample import WeightedSample


class Part:
    """The arguments and the data of one part, as a weighted sample of its own.

    Args:
        sample: of the whole.
        family: of the whole.
        name: prefix of the part's arguments.
        shape: dimensions that its arguments have besides those of the whole (components).
    """

    def __init__(self, sample: WeightedSample, family: type[Compound], name: str, shape: tuple[int, ...]) -> None:
        self.sample = sample
        self.event_dim = sample.event_dim - family.reinterpreted
        self.names = {n.removeprefix(f"{name}_"): n for n in sample.args if n.startswith(f"{name}_")}
        values = sample.blocks[0].values
        events = values.shape[values.dim() - sample.event_dim :]
        self.shape = (*shape, *events[: family.reinterpreted])
        index = torch.arange(sample.num_rows * torch.Size(self.shape).numel(), device=values.device)
        index = index.reshape(sample.num_rows, *self.shape)
        self.num_rows = index.numel()
        self.source = torch.arange(sample.num_rows, device=values.device).repeat_interleave(
            torch.Size(self.shape).numel()
        )
        flat = [flattened(b, sample.event_dim) for b in sample.blocks]
        copies = shape[0] if shape else 1
        self.blocks = [
            Block(
                b.weights.repeat_interleave(copies, 0) if copies > 1 else b.weights,
                b.values.repeat_interleave(copies, 0) if copies > 1 and b.per_row(sample.event_dim) else b.values,
                index[b.rows].reshape(len(b.rows) * copies, *self.shape[len(shape) :]),
            )
            for b in flat
        ]
        self.groups: dict[str, Tensor] = {}
        self.arguments = {n: self._argument(n, full) for n, full in self.names.items()}

    def _argument(self, name: str, full: str) -> Argument:
        """One argument by the part's rows; elements of one parameter element are tied."""
        value = self._wide(self.sample.rows(full))
        if not self.sample.free(full):
            return Argument(value)
        ties = self.sample.ties(full)
        groups = self._wide(ties.groups[ties.cells])
        self.groups[name] = groups
        flat = groups.reshape(len(groups), -1)
        # Rows with a fixed element keep it: each is a cell of its own.
        alone = torch.arange(len(flat), device=flat.device)[:, None]
        key = torch.cat([flat, torch.where((flat < 0).any(1, keepdim=True), alone, -1)], 1)
        _, cells = torch.unique(key, dim=0, return_inverse=True)
        first = torch.zeros(int(cells.max()) + 1, dtype=torch.long, device=cells.device)
        first[cells.flip(0)] = torch.arange(len(cells), device=cells.device).flip(0)
        pattern = groups[first]
        distinct = pattern.unique().numel() == pattern.numel() and bool((pattern >= 0).all())
        return Argument(value, cells, None if distinct else pattern)

    def _wide(self, by_row: Tensor) -> Tensor:
        """(R, components or 1, …) to (rows of the part, *argument event)."""
        tail = by_row.shape[1 + len(self.shape) :]
        return by_row.expand(len(by_row), *self.shape, *tail).reshape(self.num_rows, *tail)

    def fit(self, rule: Rule, blocks: Sequence[Block]) -> None:
        """Let the part's rule propose, and hand its proposals to the whole."""
        inner = WeightedSample(self.arguments, tuple(blocks), self.num_rows, self.event_dim)
        rule(inner)
        for name in inner.proposals:
            full, groups = self.names[name], self.groups[name]
            elements = self.sample.ties(full).gather(self.sample.cell_values(full))
            values, known = inner.rows(name), groups >= 0
            elements[groups[known]] = values[known]
            self.sample.propose_elements(full, elements)


def flattened(block: Block, event_dim: int) -> Block:
    """The block with dimensions that share weights as rows of their own."""
    extra = block.extra
    if not extra:
        return block
    size = extra.numel()
    weights = block.weights.repeat_interleave(size, 0)
    values = (
        block.values
        if block.per_row(event_dim)
        else block.values.unsqueeze(0).expand(len(block.rows), *block.values.shape)
    )
    event = values.shape[values.dim() - event_dim :]
    values = values.reshape(*values.shape[:2], size, *event).transpose(1, 2).reshape(len(weights), -1, *event)
    return Block(weights, values, block.rows.reshape(-1))
