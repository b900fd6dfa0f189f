"""The M-step of one group of parameters from statistics that add up over parts of the data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from ppl_em.em.additive import Counts, Equations, Several
from ppl_em.em.closed_form import ClosedForm, Parameters, Refused
from ppl_em.em.conjugate import Conjugate
from ppl_em.em.e_step import EStep
from ppl_em.em.least_squares import LeastSquares
from ppl_em.em.pooled_family import Own, PooledFamily
from ppl_em.em.ridge import Ridge
from ppl_em.em.tables import Tables
from ppl_em.em.updates import Updater
from ppl_em.mstep import NoClosedForm, WeightedSample
from ppl_em.mstep.conjugate_posterior import posterior
from ppl_em.mstep.totals import Recipe, Totals
from ppl_em.plan.conjugacy import Evidence
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update


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
