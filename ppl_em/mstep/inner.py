"""Inner Newton iterations of a rule: arguments without a closed form, whatever their ties."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_em.mstep.constraint import Coordinate, coordinate
from ppl_em.mstep.density import build
from ppl_em.mstep.newton import newton_batch
from ppl_em.mstep.sample import NoClosedForm, WeightedSample

TINY = torch.finfo(torch.float64).tiny
MAX_JOINT = 300
"""Largest number of parameter elements that ties may entangle into one Newton problem."""

RowObjective = Callable[[Mapping[str, Tensor]], Tensor]


def maximise(
    sample: WeightedSample,
    family: Any,
    names: Sequence[str],
    objective: RowObjective,
    ceilings: Mapping[str, float] | None = None,
    max_steps: int = 100,
) -> None:
    """Propose the joint maximiser over some arguments, by Newton's method from their current values.

    The free elements fall into groups that no row connects (a component's shape and rate, say); each group is
    a Newton problem of its own and all are solved at once.

    Args:
        sample: the sample.
        family: the distribution class, whose constraints give unconstrained coordinates.
        names: arguments to maximise over; those that are fixed are left out.
        objective: maps all arguments by row (R, *arg_event) to the log-likelihood of each row (R,).
        ceilings: largest value of an argument whose likelihood may have no maximum.
        max_steps: Newton steps at most.

    Raises:
        NoClosedForm: ties entangle too many elements.
    """
    names = [name for name in names if sample.free(name)]
    if not names:
        return
    problem = _Problem(sample, family, names, ceilings or {})
    result = newton_batch(lambda x: problem.pool(objective(problem.args(x))), problem.start, problem.upper, max_steps)
    for name, elements in problem.elements(result.x).items():
        sample.propose_elements(name, elements)


def newton_rule(
    family: Any, ceilings: Mapping[str, float] | None = None, max_steps: int = 100
) -> Callable[[WeightedSample], None]:
    """A rule that maximises the family's own log-density by Newton's method over all free arguments.

    For families of few arguments that have neither sufficient statistics nor a closed form.

    Args:
        family: the distribution class.
        ceilings: largest value of an argument whose likelihood may have no maximum.
        max_steps: Newton steps at most.

    Example:
        >>> import pyro.distributions as dist
        >>> from ppl_em.mstep import weighted_mle
        >>> _ = weighted_mle.register(dist.Gumbel, exact="newton")(newton_rule(dist.Gumbel))
    """

    def rule(sample: WeightedSample) -> None:
        maximise(sample, family, list(sample.args), density_by_row(sample, family), ceilings, max_steps)

    rule.__doc__ = f"Maximise the log-density of {family.__name__} by Newton's method."
    return rule


def density_by_row(sample: WeightedSample, family: Any) -> RowObjective:
    """The family's weighted log-density added up by row, for all (row, datum) pairs at once."""
    weights, x, row = sample.table()

    def objective(args: Mapping[str, Tensor]) -> Tensor:
        log_prob = build(family, {name: value[row] for name, value in args.items()}).log_prob(x)
        return log_prob.new_zeros(sample.num_rows).index_add(0, row, weights * log_prob)

    return objective


class _Problem:
    """The free elements of some arguments as (B, P) unconstrained variables of B independent problems."""

    def __init__(
        self, sample: WeightedSample, family: Any, names: Sequence[str], ceilings: Mapping[str, float]
    ) -> None:
        self.sample = sample
        self.names = names
        self.fixed = {name: sample.rows(name) for name in sample.args}
        self.coordinates: dict[str, Coordinate] = {name: coordinate(family, name) for name in names}
        label = _components(sample, names)
        problems, self.problem_of_row = torch.unique(label, return_inverse=True)
        mass = torch.zeros(len(problems), dtype=torch.float64, device=label.device)
        self.mass = mass.index_add(0, self.problem_of_row, sample.count()).clamp(min=TINY)
        owner = torch.cat([self._owner(name) for name in names])
        self.sizes = [sample.ties(name).num_groups for name in names]
        order = torch.argsort(owner, stable=True)
        counts = torch.bincount(owner, minlength=len(problems))
        first = counts.cumsum(0) - counts
        slot = torch.empty_like(owner)
        slot[order] = torch.arange(len(owner), device=owner.device) - first[owner[order]]
        self.width = int(counts.max())
        if self.width > MAX_JOINT:
            raise NoClosedForm(f"ties entangle {self.width} elements of {', '.join(names)}")
        self.index = owner * self.width + slot
        self.num_problems = len(problems)
        self.start = self._lay_out(
            [self.coordinates[name].free(sample.ties(name).gather(sample.cell_values(name))) for name in names],
            0.0,
        )
        self.upper = self._lay_out([self._ceiling(name, ceilings.get(name)) for name in names], torch.inf)

    def _owner(self, name: str) -> Tensor:
        """The problem that each element (G,) of an argument belongs to."""
        ties = self.sample.ties(name)
        problem = ties.first(self.problem_of_row)
        return ties.gather(problem.reshape((-1,) + (1,) * ties.arg_dim).expand(ties.groups.shape))

    def _ceiling(self, name: str, ceiling: float | None) -> Tensor:
        size = self.sample.ties(name).num_groups
        bound = self.start.new_full((size,), torch.inf if ceiling is None else ceiling)
        return bound if ceiling is None else self.coordinates[name].free(bound)

    def _lay_out(self, parts: list[Tensor], empty: float) -> Tensor:
        flat = torch.cat(parts)
        table = flat.new_full((self.num_problems * self.width,), empty)
        return table.index_copy(0, self.index, flat).view(self.num_problems, self.width)

    def elements(self, x: Tensor) -> dict[str, Tensor]:
        """Constrained values (G,) of each argument at (B, P) variables."""
        parts = x.reshape(-1)[self.index].split(self.sizes)
        return {name: self.coordinates[name].constrained(part) for name, part in zip(self.names, parts, strict=True)}

    def args(self, x: Tensor) -> dict[str, Tensor]:
        """All arguments by row (R, *arg_event) at (B, P) variables."""
        args = dict(self.fixed)
        for name, elements in self.elements(x).items():
            ties = self.sample.ties(name)
            args[name] = ties.spread(ties.scatter(elements, self.sample.cell_values(name)))
        return args

    def pool(self, by_row: Tensor) -> Tensor:
        """(R,) → (B,), per unit of weight, so that light problems are solved as well as heavy ones."""
        return by_row.new_zeros(self.num_problems).index_add(0, self.problem_of_row, by_row) / self.mass


def _components(sample: WeightedSample, names: Sequence[str]) -> Tensor:
    """(R,) label of each row: rows that share parameter elements, directly or in a chain, have one label."""
    device = sample.ties(names[0]).cells.device
    label = torch.arange(sample.num_rows, device=device)
    while True:
        before = label
        for name in names:
            ties = sample.ties(name)
            by_cell = label.new_full((ties.num_cells,), sample.num_rows)
            by_cell = by_cell.scatter_reduce(0, ties.cells, label, "amin")
            if ties.patterned:
                wide = by_cell.reshape((-1,) + (1,) * ties.arg_dim).expand(ties.groups.shape)
                free = ~ties.fixed
                least = label.new_full((ties.num_groups,), sample.num_rows)
                least = least.scatter_reduce(0, ties.groups[free], wide[free], "amin")
                wide = wide.clone()
                wide[free] = least[ties.groups[free]]
                by_cell = wide.reshape(ties.num_cells, -1).amin(1)
            label = torch.minimum(label, by_cell[ties.cells])
        if torch.equal(before, label):
            return label
