"""The closed form of one family from totals by row that add up over parts of the data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from ppl_em.em.additive import Data
from ppl_em.em.closed_form import ClosedForm, Parameters, Refused
from ppl_em.em.e_step import EStep, e_step
from ppl_em.em.shards import same, signature
from ppl_em.em.updates import Updater
from ppl_em.mstep import NoClosedForm, WeightedSample
from ppl_em.mstep.given import LostPrecision
from ppl_em.mstep.totals import Missing, Narrow, Recipe, Totals, TotalsSample, collect
from ppl_em.plan.plan import Plan

T = TypeVar("T")


class Again(Exception):
    """The statistics at hand do not suffice: they are to be collected anew, with what is asked for now."""


#: What a part has of a group: its updater, or one for each of the likelihoods that a prior is combined with.
Own = Sequence[Updater]


class PooledFamily:
    """A family's closed form from totals by row.

    Args:
        lead: the group's updater on the first part; it knows all rows.
        read: what is made of a weighted sample, the rule by default.
    """

    def __init__(self, lead: ClosedForm, read: Callable[[WeightedSample], Any] | None = None) -> None:
        self.lead: ClosedForm = lead
        self.read = lead.rule if read is None else read
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

    def admit(self, own: Own) -> None:
        """Refuse a part whose rows are others."""
        (mine,) = own
        assert isinstance(mine, ClosedForm)
        mine.verified = True
        for layout in mine.assembly.layouts:
            name = layout.site.name
            if not same(self._signatures.get(name), signature(layout.site)):
                members = layout.site.members
                raise Refused(f"the arguments of '{members[0] if members else name}' vary with the data")

    def statistics(self, own: Own, plan: Plan, parameters: Parameters, newest: Parameters, e: EStep) -> Totals | Data:
        """Totals of one part; moments about this group's centre."""
        (mine,) = own
        assert isinstance(mine, ClosedForm)
        if not self.recipe.needs_data:
            try:
                return self._totals(mine, mine.sample(newest, e))
            except LostPrecision:
                e = e_step(plan, parameters)
            if not self.recipe.needs_data:
                return self._totals(mine, mine.sample(newest, e))
        return self._data(mine, plan, parameters, newest, e)

    def recentred(self, total: Totals | Data) -> Totals | Data:
        """The statistics about their own means; later ones are collected about the same."""
        if isinstance(total, Totals):
            total = total.recentred()
            self.centre = total.centre
        return total

    def ingredients(self) -> Recipe:
        """What the statistics consist of."""
        return self.recipe

    def resume(self, total: Totals, ingredients: Recipe) -> None:
        """Collect statistics as given ones were collected."""
        self.recipe, self.discovered, self.centre = ingredients, True, total.centre

    def _totals(self, own: ClosedForm, sample: WeightedSample) -> Totals:
        rows = torch.cat([self._rows[k.site.name].reshape(-1) for k in own.assembly.layouts])
        if not self.discovered:
            self._discover(sample)
            if self.recipe.needs_data:
                raise LostPrecision("the rule goes through the data one by one")
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
                self.read(trial)
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
        return self.reading(lambda: self.lead.fit(self.sample(total, parameters), parameters), total)

    def sample(self, total: Totals | Data, parameters: Parameters) -> WeightedSample:
        """The weighted sample of all parts at given parameters."""
        args, assembly = self.lead.arguments(parameters), self.lead.assembly
        if isinstance(total, Data):
            return WeightedSample(args, total.blocks, assembly.num_rows, assembly.event_dim)
        return TotalsSample(args, total, assembly.event_dim)

    def reading(self, work: Callable[[], T], total: Totals | Data) -> T:
        """The outcome of what reads a sample.

        Raises:
            Again: other statistics are needed; they will be collected.
        """
        try:
            return work()
        except Missing as missing:
            self.recipe = self.recipe.extended(missing)
            raise Again from missing
        except Narrow as error:
            assert isinstance(total, Totals)
            self.centre = total.recentred().centre
            raise Again from error
