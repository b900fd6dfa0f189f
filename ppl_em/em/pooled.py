"""The M-step of one group of parameters from statistics that add up over parts of the data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ppl_em.em.closed_form import ClosedForm, Parameters, Refused
from ppl_em.em.e_step import EStep, e_step
from ppl_em.em.least_squares import LeastSquares
from ppl_em.em.shards import same, signature
from ppl_em.em.tables import Tables
from ppl_em.em.updates import Updater
from ppl_em.mstep import NoClosedForm, WeightedSample
from ppl_em.mstep.block import Block
from ppl_em.mstep.given import LostPrecision
from ppl_em.mstep.totals import Missing, Narrow, Recipe, Totals, TotalsSample, collect
from ppl_em.plan.plan import Plan


class Statistics(Protocol):
    """Expected statistics of a part of the data."""

    def __add__(self, other: Any) -> Any:
        """Those of both parts."""
        ...

    def scaled(self, factor: float) -> Any:
        """Every datum counted ``factor`` times."""
        ...


class Again(Exception):
    """The statistics at hand do not suffice: they are to be collected anew, with what is asked for now."""


class Pooled(Protocol):
    """A group of parameters whose M-step needs statistics that add up.

    Attributes:
        lead: the group's updater on the first part.
        late: the statistics depend on the newest values of other groups.
        fixed_size: the statistics do not grow with the data.
    """

    lead: Updater
    late: bool

    @property
    def fixed_size(self) -> bool:
        """Whether the statistics do not grow with the data."""
        ...

    def admit(self, own: Updater) -> None:
        """Refuse a part whose statistics cannot be added to the others'."""
        ...

    def statistics(self, own: Updater, plan: Plan, parameters: Parameters, newest: Parameters, e: EStep) -> Any:
        """Statistics of one part under its E-step."""
        ...

    def solve(self, total: Any, parameters: Parameters) -> Parameters:
        """New values of the group's parameters."""
        ...


@dataclass(frozen=True)
class Data:
    """The data of a site with their weights, where no statistics of fixed size stand for them."""

    blocks: tuple[Block, ...]

    def __add__(self, other: Data) -> Data:
        """Both."""
        return Data(self.blocks + other.blocks)

    def scaled(self, factor: float) -> Data:
        """Every datum counted ``factor`` times."""
        return Data(tuple(replace(b, weights=b.weights * factor) for b in self.blocks))


class PooledFamily:
    """A family's closed form from totals by row.

    Args:
        lead: the group's updater on the first part; it knows all rows.
    """

    def __init__(self, lead: ClosedForm) -> None:
        self.lead: ClosedForm = lead
        self.late = bool(lead.residual or lead.opaque)
        self.recipe = Recipe()
        self.discovered = False
        self.centre: Tensor | None = None
        layouts = lead.assembly.layouts
        self._signatures = {k.site.name: signature(k.site) for k in layouts}
        self._rows = {k.site.name: r for k, r in zip(layouts, lead.assembly.row_numbers, strict=True)}
        self._exact: set[int] = set()

    @property
    def fixed_size(self) -> bool:
        """Whether the rule reads sums alone."""
        return not self.recipe.needs_data

    def admit(self, own: Updater) -> None:
        """Refuse a part whose rows are others."""
        assert isinstance(own, ClosedForm)
        own.verified = True
        for layout in own.assembly.layouts:
            name = layout.site.name
            if not same(self._signatures.get(name), signature(layout.site)):
                members = layout.site.members
                raise Refused(f"the arguments of '{members[0] if members else name}' vary with the data")

    def statistics(
        self, own: Updater, plan: Plan, parameters: Parameters, newest: Parameters, e: EStep
    ) -> Totals | Data:
        """Totals of one part; moments about this group's centre."""
        assert isinstance(own, ClosedForm)
        if self.recipe.needs_data:
            return self._data(own, plan, parameters, newest, e)
        try:
            sample = own.sample(newest, e)
            return self._totals(own, sample)
        except LostPrecision:
            return self._totals(own, own.sample(newest, e_step(plan, parameters)))

    def _totals(self, own: ClosedForm, sample: WeightedSample) -> Totals:
        rows = torch.cat([self._rows[k.site.name].reshape(-1) for k in own.assembly.layouts])
        if not self.discovered:
            self._discover(sample)
        if self.centre is None:
            self.centre = self._middle(sample)
        centre = None if self.centre is None else self.centre[rows]
        return collect(sample, self.recipe, centre).spread(rows, self.lead.assembly.num_rows, self.centre)

    def _middle(self, sample: WeightedSample) -> Tensor | None:
        """The mean of a sample's data, for each row."""
        if not {("residual",), ("deviation",), ("outer",)} & set(self.recipe.requests):
            return None
        middle = sample.centre.detach()
        middle = torch.where(torch.isfinite(middle), middle, 0.0)
        return middle.expand(self.lead.assembly.num_rows, *middle.shape).clone()

    def _discover(self, sample: WeightedSample) -> None:
        """Find out which statistics the rule reads, by letting it fail for want of them."""
        while not self.recipe.needs_data:
            wanted = {("residual",), ("deviation",), ("outer",)} & set(self.recipe.requests)
            middle = sample.centre.expand(sample.num_rows, *sample.centre.shape) if wanted else None
            trial = TotalsSample(sample.args, collect(sample, self.recipe, middle), sample.event_dim)
            try:
                self.lead.rule(trial)
            except Missing as missing:
                self.recipe = self.recipe.extended(missing)
                continue
            except (Narrow, NoClosedForm):
                pass
            break
        self.discovered = True

    def _data(self, own: ClosedForm, plan: Plan, parameters: Parameters, newest: Parameters, e: EStep) -> Data:
        if all(n in e.moments for n in own.update.sites):
            e = e_step(plan, parameters)
        sample = own.sample(newest, e)
        names = [k.site.name for k in own.assembly.layouts]
        return Data(tuple(replace(b, rows=self._rows[n]) for b, n in zip(sample.blocks, names, strict=True)))

    def solve(self, total: Totals | Data, parameters: Parameters) -> Parameters:
        """The rule's answer.

        Raises:
            Again: other statistics are needed.
            Refused: the rule does not apply.
        """
        args = self.lead.arguments(parameters)
        assembly = self.lead.assembly
        if isinstance(total, Data):
            sample = WeightedSample(args, total.blocks, assembly.num_rows, assembly.event_dim)
            return self.lead.fit(sample, parameters)
        try:
            return self.lead.fit(TotalsSample(args, total, assembly.event_dim), parameters)
        except Missing as missing:
            self.recipe = self.recipe.extended(missing)
            raise Again from missing
        except Narrow as error:
            self.centre = total.recentred().centre
            raise Again from error


@dataclass(frozen=True)
class Equations:
    """Normal equations: Σ w/σ² x xᵀ and Σ w/σ² x y."""

    hessian: Tensor
    pull: Tensor

    def __add__(self, other: Equations) -> Equations:
        """Those of both parts."""
        return Equations(self.hessian + other.hessian, self.pull + other.pull)

    def scaled(self, factor: float) -> Equations:
        """Every datum counted ``factor`` times."""
        return Equations(self.hessian * factor, self.pull * factor)


class PooledRegression:
    """Coefficients of normal means from normal equations.

    Args:
        lead: the group's updater on the first part.
    """

    late = False
    fixed_size = True

    def __init__(self, lead: LeastSquares) -> None:
        self.lead: LeastSquares = lead

    def admit(self, own: Updater) -> None:
        """Normal equations always add up."""

    def statistics(self, own: Updater, plan: Plan, parameters: Parameters, newest: Parameters, e: EStep) -> Equations:
        """Normal equations of one part at the current scales."""
        assert isinstance(own, LeastSquares)
        hessian, gradient = own.equations(parameters, e)
        return Equations(hessian, gradient + hessian @ self.lead.regression.stacked(parameters))

    def solve(self, total: Equations, parameters: Parameters) -> Parameters:
        """The coefficients."""
        regression = self.lead.regression
        return regression.solved(total.hessian, total.pull - total.hessian @ regression.stacked(parameters), parameters)


@dataclass(frozen=True)
class Counts:
    """Expected counts of the use of tables, by site and argument."""

    by_site: Mapping[str, Mapping[str, Tensor]]

    def __add__(self, other: Counts) -> Counts:
        """Those of both parts."""
        total = {s: dict(tables) for s, tables in self.by_site.items()}
        for s, tables in other.by_site.items():
            mine = total.setdefault(s, {})
            for a, table in tables.items():
                mine[a] = mine[a] + table if a in mine else table
        return Counts(total)

    def scaled(self, factor: float) -> Counts:
        """Every use counted ``factor`` times."""
        return Counts({s: {a: t * factor for a, t in tables.items()} for s, tables in self.by_site.items()})


class PooledTables:
    """Tables of a hidden structure from expected counts.

    Args:
        lead: the group's updater on the first part.
    """

    late = False
    fixed_size = True

    def __init__(self, lead: Tables) -> None:
        self.lead: Tables = lead
        self._shapes: dict[tuple[str, str], torch.Size] = {}

    def admit(self, own: Updater) -> None:
        """Shapes of counts are compared when they are made."""

    def statistics(self, own: Updater, plan: Plan, parameters: Parameters, newest: Parameters, e: EStep) -> Counts:
        """Expected counts of one part."""
        mine = {n: e.counts[n] for n in own.update.sites}
        for site, tables in mine.items():
            for argument, table in tables.items():
                if self._shapes.setdefault((site, argument), table.shape) != table.shape:
                    raise Refused(f"the arguments of '{site}' vary with the data")
        return Counts(mine)

    def solve(self, total: Counts, parameters: Parameters) -> Parameters:
        """Normalised counts."""
        self.lead.verified = True
        return self.lead.step(parameters, EStep(0.0, 0.0, {}, counts=total.by_site))


def pooled(updater: Updater) -> Pooled | None:
    """The group with statistics that add up; None where only its objective does."""
    if isinstance(updater, Tables):
        return cast(Pooled, PooledTables(updater))
    if isinstance(updater, ClosedForm):
        return cast(Pooled, PooledFamily(updater))
    if isinstance(updater, LeastSquares):
        return cast(Pooled, PooledRegression(updater))
    return None


#: Makes the E-step of every part at the parameters of this step.
Passes = Callable[[], Any]
