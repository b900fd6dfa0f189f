"""The weighted sample: all that a maximum-likelihood rule may know about the data and the parameters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_em.mstep.block import Argument, Block
from ppl_em.mstep.density import log_likelihood_terms
from ppl_em.mstep.moments import Moments
from ppl_em.mstep.ties import Ties


class NoClosedForm(ValueError):
    """A rule cannot handle the structure that it was given; the next rung of the ladder takes over."""


class WeightedSample:
    """Data with expected weights, and the tied arguments of one distribution family to be fitted to them.

    A *row* is one setting of the family's arguments (a mixture component, say); a *cell* is a group of rows
    tied to the same value of one argument. A rule reads statistics by row, adds them up by cell and proposes
    cell values. All arithmetic is in float64 whatever the dtype of the data.

    Args:
        args: the arguments by name.
        blocks: the data, one block per site; a block need not cover all rows.
        num_rows: R.
        event_dim: number of event dimensions of one datum (1 for a multivariate normal).

    Example:
        Two components with one common rate:

        >>> both = Argument(torch.ones(2), cells=torch.tensor([0, 0]))
        >>> block = Block(torch.ones(2, 3), torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 1]))
        >>> sample = WeightedSample({"rate": both}, (block,), num_rows=2)
        >>> sample.propose("rate", sample.pool("rate", sample.sum("x")) / sample.mass("rate"))
        >>> sample.proposals["rate"]
        tensor([3.], dtype=torch.float64)
    """

    def __init__(
        self, args: Mapping[str, Argument], blocks: tuple[Block, ...], num_rows: int, event_dim: int = 0
    ) -> None:
        self.args = dict(args)
        self.blocks = tuple(Block(block.weights.detach(), block.values.detach(), block.rows) for block in blocks)
        self.num_rows = num_rows
        self.event_dim = event_dim
        self.proposals: dict[str, Tensor] = {}
        self.partial = False  # set by a rule that can only ascend, for want of time, on a problem of this size
        self._sums: dict[str, Tensor] = {}
        self._ties = {name: Ties(argument) for name, argument in self.args.items() if argument.cells is not None}
        self._moments = Moments(self.blocks, num_rows, event_dim)
        self._check()

    def _check(self) -> None:
        for name, argument in self.args.items():
            if argument.value.shape[:1] != (self.num_rows,):
                raise ValueError(
                    f"argument '{name}' has shape {tuple(argument.value.shape)} but the sample has "
                    f"{self.num_rows} rows. Try expanding the argument over the rows."
                )
        for block in self.blocks:
            size = block.weights.shape[1]
            shared = (size, *block.extra)
            if block.values.shape[: len(shared)] == shared and not block.per_row(self.event_dim):
                continue
            own = (block.weights.shape[0], *shared)
            if block.per_row(self.event_dim) and block.values.shape[: len(own)] == own:
                continue
            raise ValueError(
                f"block values of shape {tuple(block.values.shape)} do not fit weights "
                f"{tuple(block.weights.shape)}, rows {tuple(block.rows.shape)} and "
                f"event_dim={self.event_dim}. Try values of shape (I, *E, *event) or (R_b, I, *E, *event)."
            )

    # Arguments

    def free(self, name: str) -> bool:
        """Whether the argument was given and may change."""
        return name in self._ties

    def rows(self, name: str) -> Tensor:
        """Values by row, (R, *arg_event); the newest proposal where there is one."""
        if name in self.proposals:
            return self._ties[name].spread(self.proposals[name])
        if name not in self.args:
            given = ", ".join(self.args)
            raise NoClosedForm(f"the rule needs the argument '{name}', but the site was given {given}")
        return self.args[name].value.detach().double()

    def ties(self, name: str) -> Ties:
        """The ties of a free argument: which elements are one parameter element, which are fixed."""
        return self._ties[name]

    def pool(self, name: str, by_row: Tensor) -> Tensor:
        """Add rows (R, …) up to the cells (C, …) of an argument."""
        return self._ties[name].pool(by_row)

    def spread(self, name: str, by_cell: Tensor) -> Tensor:
        """Give each row (R, …) the value of its cell (C, …)."""
        return self._ties[name].spread(by_cell)

    def cell_values(self, name: str) -> Tensor:
        """Values by cell, (C, *arg_event); the newest proposal where there is one."""
        if name in self.proposals:
            return self.proposals[name]
        return self._ties[name].first(self.args[name].value.detach().double())

    def mass(self, name: str) -> Tensor:
        """Total weight of each cell of an argument, (C,)."""
        return self.pool(name, self.count())

    def propose(self, name: str, values: Tensor) -> None:
        """Record new cell values (C, *arg_event).

        Cells without weight and fixed elements keep their values.

        Raises:
            NoClosedForm: elements that are one parameter element were given different values.
        """
        ties, old = self._ties[name], self.cell_values(name)
        tiny = torch.finfo(torch.float64).tiny
        mass = self.mass(name).reshape((-1,) + (1,) * (old.dim() - 1))
        new = torch.where(ties.fixed | (mass < tiny), old, values.detach().double().expand_as(old))
        if not ties.agrees(new):
            raise NoClosedForm(f"elements of '{name}' are tied to each other in a way that the rule does not know")
        self.proposals[name] = new

    def propose_elements(self, name: str, elements: Tensor) -> None:
        """Record new values of the free parameter elements (G,) of an argument, however they are tied."""
        ties = self._ties[name]
        tiny = torch.finfo(torch.float64).tiny
        kept = ties.gather(self.cell_values(name))
        mass = ties.pool_elements(self.count().reshape((-1,) + (1,) * ties.arg_dim))
        elements = torch.where(mass < tiny, kept, elements.detach().double())
        self.proposals[name] = ties.scatter(elements, self.cell_values(name))

    # Statistics

    def count(self) -> Tensor:
        """Σ_i w, (R,)."""
        return self._moments.count

    def sum(self, name: str = "x", fn: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Σ_i w_ri fn(x_i), (R, *statistic_event), remembered by name.

        Args:
            name: name under which the statistic is kept.
            fn: maps data (…, *event) to statistics (…, *statistic_event); the data themselves by default.
        """
        if name not in self._sums:
            fn = fn or (lambda x: x)
            parts = [block.sum(fn, self.event_dim) for block in self.blocks]
            self._sums[name] = self._moments.add_rows(parts)
        return self._sums[name]

    def histogram(self, num_values: int) -> Tensor:
        """Total weight of each of the values 0…num_values−1, (R, num_values)."""
        name = f"histogram {num_values}"
        if name not in self._sums:
            self._sums[name] = self._moments.histogram(num_values)
        return self._sums[name]

    @property
    def centre(self) -> Tensor:
        """Weighted mean of all data, (*event)."""
        return self.sum("x").sum(0) / self.count().sum()

    def residual(self, loc: Tensor) -> Tensor:
        """Σ_i w (x − loc), (R, *event), for one location per row (R, *event)."""
        return self._moments.residual(loc)

    def deviation(self, loc: Tensor) -> Tensor:
        """Σ_i w (x − loc)² element by element, (R, *event), free of cancellation."""
        return self._moments.deviation(loc)

    def outer(self, loc: Tensor) -> Tensor:
        """Σ_i w (x − loc)(x − loc)ᵀ, (R, D, D), free of cancellation; event_dim must be 1."""
        return self._moments.outer(loc)

    def flat(self) -> tuple[Tensor, Tensor, Tensor]:
        """Every (row, datum) pair with weight: weights (M,), data (M, *event) and row numbers (M,)."""
        return self._moments.flat

    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Like `flat`, with equal counts merged into one datum of their total weight."""
        return self._moments.table

    def log_likelihood(self, family: Callable[..., Any], args: Mapping[str, Tensor] | None = None) -> Tensor:
        """Σ w log p(x | args), a scalar: what this sample contributes to EM's Q. Differentiable in ``args``.

        Args:
            family: the distribution class.
            args: values by row (R, *arg_event) of all arguments; the current ones by default.
        """
        if args is None:
            args = {name: self.rows(name) for name in self.args}
        total = self.count().new_zeros(())
        for term in log_likelihood_terms(self.blocks, self.event_dim, family):
            total = total + term(args)
        return total
