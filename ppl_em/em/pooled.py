"""The M-step of one group of parameters from statistics that add up over parts of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor

from ppl_em.em.closed_form import ClosedForm, Parameters, Refused
from ppl_em.em.conjugate import Conjugate
from ppl_em.em.e_step import EStep, e_step
from ppl_em.em.least_squares import LeastSquares
from ppl_em.em.ridge import Ridge
from ppl_em.em.shards import same, signature
from ppl_em.em.tables import Tables
from ppl_em.em.updates import Updater
from ppl_em.mstep import NoClosedForm, WeightedSample
from ppl_em.mstep.block import Block
from ppl_em.mstep.conjugate_posterior import posterior
from ppl_em.mstep.given import LostPrecision
from ppl_em.mstep.totals import Missing, Narrow, Recipe, Totals, TotalsSample, collect
from ppl_em.plan.conjugacy import Evidence
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update

T = TypeVar("T")


class Again(Exception):
    """The statistics at hand do not suffice: they are to be collected anew, with what is asked for now."""


#: What a part has of a group: its updater, or one for each of the likelihoods that a prior is combined with.
Own = Sequence[Updater]


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

    def admit(self, own: Own) -> None:
        """Refuse a part whose statistics cannot be added to the others'."""
        ...

    def statistics(self, own: Own, plan: Plan, parameters: Parameters, newest: Parameters, e: EStep) -> Any:
        """Statistics of one part under its E-step."""
        ...

    def solve(self, total: Any, parameters: Parameters) -> Parameters:
        """New values of the group's parameters."""
        ...

    def recentred(self, total: Any) -> Any:
        """The statistics about their own means; later ones are collected about the same."""
        ...

    def ingredients(self) -> Any:
        """What the statistics consist of, for :meth:`resume`."""
        ...

    def resume(self, total: Any, ingredients: Any) -> None:
        """Collect statistics as given ones were collected."""
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


class _Plain:
    """Statistics of one kind only, that need no centre."""

    late = False
    fixed_size = True

    def recentred(self, total: Any) -> Any:
        """The statistics as they are."""
        return total

    def ingredients(self) -> None:
        """Nothing is to be told."""

    def resume(self, total: Any, ingredients: None) -> None:
        """Nothing is to be told."""


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


class PooledRegression(_Plain):
    """Coefficients of normal means from normal equations.

    Args:
        lead: the group's updater on the first part.
    """

    def __init__(self, lead: LeastSquares | Ridge) -> None:
        self.lead: LeastSquares | Ridge = lead
        self.regression = lead.likelihood.regression if isinstance(lead, Ridge) else lead.regression

    def admit(self, own: Own) -> None:
        """Normal equations always add up."""

    def statistics(self, own: Own, plan: Plan, parameters: Parameters, newest: Parameters, e: EStep) -> Equations:
        """Normal equations of one part at the current scales."""
        (mine,) = own
        assert isinstance(mine, (LeastSquares, Ridge))
        hessian, gradient = mine.equations(parameters, e)
        return Equations(hessian, gradient + hessian @ self.regression.stacked(parameters))

    def solve(self, total: Equations, parameters: Parameters) -> Parameters:
        """The coefficients."""
        slope = total.pull - total.hessian @ self.regression.stacked(parameters)
        return self.regression.solved(total.hessian, slope, parameters)


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


class PooledTables(_Plain):
    """Tables of a hidden structure from expected counts.

    Args:
        lead: the group's updater on the first part.
    """

    def __init__(self, lead: Tables) -> None:
        self.lead: Tables = lead
        self._shapes: dict[tuple[str, str], torch.Size] = {}

    def admit(self, own: Own) -> None:
        """Shapes of counts are compared when they are made."""

    def statistics(self, own: Own, plan: Plan, parameters: Parameters, newest: Parameters, e: EStep) -> Counts:
        """Expected counts of one part."""
        (updater,) = own
        mine = {n: e.counts[n] for n in updater.update.sites}
        for site, tables in mine.items():
            for argument, table in tables.items():
                if self._shapes.setdefault((site, argument), table.shape) != table.shape:
                    raise Refused(f"the arguments of '{site}' vary with the data")
        return Counts(mine)

    def solve(self, total: Counts, parameters: Parameters) -> Parameters:
        """Normalised counts."""
        self.lead.verified = True
        return self.lead.step(parameters, EStep(0.0, 0.0, {}, counts=total.by_site))


@dataclass(frozen=True)
class Several:
    """Statistics of several likelihoods of one latent, by their position."""

    parts: Mapping[int, Totals | Data]

    def __add__(self, other: Several) -> Several:
        """Those of both parts."""
        total: dict[int, Any] = dict(self.parts)
        for i, more in other.parts.items():
            total[i] = total[i] + more if i in total else more
        return Several(total)

    def scaled(self, factor: float) -> Several:
        """Every datum counted ``factor`` times."""
        return Several({i: p.scaled(factor) for i, p in self.parts.items()})


def _reader(evidence: Evidence) -> Callable[[WeightedSample], Any]:
    """Reads what one likelihood adds to its prior."""
    return lambda sample: evidence.pair.message(sample, None)


class PooledConjugate:
    """A point estimate under a conjugate prior, from the statistics of each of its likelihoods.

    Args:
        lead: the group's updater on the first part.
    """

    def __init__(self, lead: Conjugate) -> None:
        self.lead: Conjugate = lead
        pairs = zip(lead.conjugacy.evidence, lead.children, strict=True)
        self.children = [PooledFamily(child, _reader(evidence)) for evidence, child in pairs]
        self.late = any(c.late for c in self.children)

    @property
    def fixed_size(self) -> bool:
        """Whether all likelihoods are read by sums alone."""
        return all(c.fixed_size for c in self.children)

    def _places(self, own: Own) -> Iterator[tuple[int, Updater]]:
        for i, child in enumerate(self.lead.children):
            yield from ((i, u) for u in own if u.update.sites == child.update.sites)

    def admit(self, own: Own) -> None:
        """Refuse a part whose rows are others."""
        for i, mine in self._places(own):
            self.children[i].admit((mine,))

    def statistics(self, own: Own, plan: Plan, parameters: Parameters, newest: Parameters, e: EStep) -> Several:
        """Statistics of one part's likelihoods."""
        places = self._places(own)
        return Several({i: self.children[i].statistics((u,), plan, parameters, newest, e) for i, u in places})

    def recentred(self, total: Several) -> Several:
        """The statistics about their own means; later ones are collected about the same."""
        return Several({i: self.children[i].recentred(p) for i, p in total.parts.items()})

    def ingredients(self) -> tuple[Recipe, ...]:
        """What the statistics consist of, by likelihood."""
        return tuple(c.recipe for c in self.children)

    def resume(self, total: Several, ingredients: Sequence[Recipe]) -> None:
        """Collect statistics as given ones were collected."""
        for i, known in total.parts.items():
            assert isinstance(known, Totals)
            self.children[i].resume(known, ingredients[i])

    def solve(self, total: Several, parameters: Parameters) -> Parameters:
        """The mode of the posterior.

        Raises:
            Again: other statistics are needed.
            Refused: the posterior has no mode of this form.
        """
        message: dict[str, Tensor] = {}
        for i, known in total.parts.items():
            child, evidence = self.children[i], self.lead.conjugacy.evidence[i]
            sample = child.sample(known, parameters)
            part = child.reading(partial(self.lead.message_of, evidence, child.lead, sample, parameters), known)
            message = {n: message[n] + t if n in message else t for n, t in part.items()}
        try:
            found = posterior(self.lead.prior(parameters), message)
        except NoClosedForm as error:
            raise Refused(str(error)) from error
        return {self.lead.name: self.lead.mode(found, parameters)}


def pooled(updater: Updater) -> Pooled | None:
    """The group with statistics that add up; None where only its objective does."""
    if isinstance(updater, Tables):
        return cast(Pooled, PooledTables(updater))
    if isinstance(updater, ClosedForm):
        return cast(Pooled, PooledFamily(updater))
    if isinstance(updater, Conjugate):
        return cast(Pooled, PooledConjugate(updater))
    if isinstance(updater, (LeastSquares, Ridge)):
        return cast(Pooled, PooledRegression(updater))
    return None


def messages(updater: Updater) -> tuple[Update, ...]:
    """The entries of a part's M-step that pass on what a prior is combined with."""
    return tuple(c.update for c in updater.children) if isinstance(updater, Conjugate) else ()
