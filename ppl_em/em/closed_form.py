"""The M-step of one group of linked parameters: its family's weighted maximum-likelihood rule, proven at use."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ppl_em.em.boundary import inside, keep_zeros, outside
from ppl_em.em.e_step import EStep
from ppl_em.em.live_sites import scores_as_run, with_run_values
from ppl_em.em.prior import at_point
from ppl_em.ir import Argument, Factor, Site
from ppl_em.mstep import NoClosedForm, WeightedSample, stationarity, weighted_mle
from ppl_em.mstep.assemble import Assembly
from ppl_em.mstep.block import Argument as SampleArgument
from ppl_em.mstep.block import Block
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update

#: A proposal whose scaled KKT residual exceeds this is not a maximiser.
KKT_TOLERANCE = 1e-6
#: Data used to verify a rule; a formula does not depend on their number.
VERIFY_DATA = 20_000

Parameters = dict[str, Tensor]


class Refused(Exception):
    """A closed form does not hold for this program; the message says why."""


class ClosedForm:
    """Parameters that are weighted maximum-likelihood estimates of one family's arguments.

    Arguments of these sites that the program computes from other parameters (a network's mean) are constants of this
    step, taken from a run. Of normal sites whose mean varies from datum to datum the residuals are the data.

    Args:
        plan: the plan.
        update: its entry.
    """

    def __init__(self, plan: Plan, update: Update) -> None:
        self.plan, self.update = plan, update
        sizes = dict(plan.program.sizes())
        for entry in plan.blocks:
            sizes.update(entry.block.sizes)
        self.sites = self._members()
        self.opaque = [s for s in self.sites if any(a.opaque for a in s.arguments.values())]
        self.residual = {s.name for s in self.sites if _predicted_mean(s)}
        members = [_about_zero(s, s) if s.name in self.residual else s for s in self.sites]
        self.assembly = Assembly([_constant(s) for s in members], sizes, frozenset(update.parameters))
        assert self.assembly.family is not None
        self.family: type = self.assembly.family
        self.rule = weighted_mle[self.family]
        self.constraints = {n: plan.program.parameters[n].constraint for n in update.parameters}
        self.verified = False
        self.sweeps = 1

    def _members(self) -> list[Site]:
        """The sites whose arguments the parameters are."""
        sites = {s.name: s for s in self.plan.sites()}
        return [sites[n] for n in self.update.sites]

    def step(self, parameters: Parameters, e: EStep) -> Parameters:
        """New values of this group's parameters.

        Raises:
            Refused: the rule does not apply, or its proposal is not stationary.
        """
        return self.fit(self.sample(parameters, e), parameters)

    def sample(self, parameters: Parameters, e: EStep) -> WeightedSample:
        """The weighted sample that the rule is fitted to."""
        if all(n in e.moments for n in self.update.sites):
            given = [self._moments(s, e.moments[s.name], parameters) for s in self.sites]
            return self.assembly.sample_of(given, parameters)
        return self._weighted(parameters, e)

    def arguments(self, parameters: Parameters) -> dict[str, SampleArgument]:
        """The family's arguments over all rows at given parameters."""
        if self.residual or not all(s.lowered for s in self.sites):
            self._refresh(parameters)
        return self.assembly.arguments(parameters)

    def fit(self, sample: WeightedSample, parameters: Parameters) -> Parameters:
        """The rule's answer to a weighted sample, as parameter values.

        Raises:
            Refused: the rule does not apply.
        """
        self._propose(sample, self.sweeps)
        new = self.assembly.write(sample.proposals, parameters)
        if new is None:
            raise Refused("the same parameter element would have to take two values")
        old = {n: parameters[n].detach() for n in new}
        new = {n: inside(self.constraints[n], keep_zeros(self.constraints[n], old[n], v)) for n, v in new.items()}
        for n, value in new.items():
            if outside(self.constraints[n], value):
                raise Refused(f"the free maximum of '{n}' lies outside its constraint, {self.constraints[n]}")
        return new

    def _moments(self, site: Site, given: Any, parameters: Parameters) -> Any:
        """A site's statistics; those of residuals brought to the newest coefficients."""
        if site.name not in self.residual:
            return given
        design = site.arguments["loc"].design
        assert design is not None
        return given.about(design.coefficients(parameters).detach()[design.index])

    def _weighted(self, parameters: Parameters, e: EStep) -> WeightedSample:
        weights = {n: (e.weights[n].factor, e.weights[n].summed) for n in self.update.sites}
        if self.residual or not all(s.lowered for s in self.sites):
            self._refresh(parameters)
        for site in self.sites:
            if site.point is not None and site.name not in self.residual:  # a prior's datum is its latent's value
                self.assembly.replace_value(site.name, at_point(site, parameters).value)
        sample = self.assembly.sample(weights, parameters)
        if not self.verified:
            self.verify(sample)
        return sample

    def _refresh(self, parameters: Parameters) -> None:
        """Residuals and computed arguments at the newest parameters."""
        filled = with_run_values(self.plan, self.sites, parameters)
        if not self.verified:
            check_density(self.plan, self.sites, filled, parameters)
        for old, site in zip(self.sites, filled, strict=True):
            if site.name in self.residual:
                loc = site.arguments["loc"]
                mean = Factor(loc.evaluate(parameters).detach(), loc.value.dims)
                self.assembly.replace_value(site.name, site.value + mean.map(torch.neg))
            for name, argument in site.arguments.items():
                if old.arguments[name].opaque and not (name == "loc" and site.name in self.residual):
                    self.assembly.replace_argument(site.name, name, argument.value)

    def _propose(self, sample: WeightedSample, sweeps: int) -> None:
        try:
            for _ in range(sweeps):
                self.rule(sample)
        except NoClosedForm as error:
            raise Refused(str(error)) from error

    def verify(self, sample: WeightedSample) -> None:
        """The claim "closed form" is proven at the first proposal by its KKT conditions."""
        small = _thinned(sample)
        if self.rule.exact == "em":
            self._verify_ascent(small)
            self.verified = True
            return
        for sweeps in (1, 3, 10):
            trial = WeightedSample(small.args, small.blocks, small.num_rows, small.event_dim)
            self._propose(trial, sweeps)
            residual = stationarity(trial, self.family)
            if residual <= KKT_TOLERANCE:
                self.sweeps = sweeps
                break
        else:
            if self.rule.exact != "ascent" and not trial.partial:
                raise Refused(
                    f"the rule of {self.family.__name__} is not stationary at its proposal (residual {residual:.1e})"
                )
        self.verified = True

    def _verify_ascent(self, small: WeightedSample) -> None:
        """A step of EM over missing elements is no maximiser: it must not lower the likelihood of what is observed."""
        trial = WeightedSample(small.args, small.blocks, small.num_rows, small.event_dim)
        before = float(trial.log_likelihood(self.family))
        self._propose(trial, 1)
        after = float(trial.log_likelihood(self.family))
        if after < before - 1e-9 * (1 + abs(before)):
            raise Refused(f"the rule of {self.family.__name__} lowers the likelihood by {before - after:.1e}")


def check_density(plan: Plan, sites: list[Site], filled: list[Site], parameters: Parameters) -> None:
    """Prove that the densities of sites with computed arguments follow from their arguments.

    Raises:
        Refused: they do not.
    """
    if not all(s.lowered for s in sites) and not scores_as_run(plan, sites, filled, parameters):
        raise Refused("the density does not follow from the arguments of its distribution")


def _predicted_mean(site: Site) -> bool:
    """A normal site whose mean is a linear predictor or computed: its scale is estimated from residuals."""
    assert site.family is not None
    if site.family.__name__ != "Normal":
        return False
    loc = site.arguments["loc"]
    return loc.design is not None or loc.opaque


def _about_zero(site: Site, like: Site) -> Site:
    """The site with residuals as values and a mean of zero."""
    loc = like.arguments["loc"].value
    zero = Argument(Factor(site.value.tensor.new_zeros(()), ()))
    return replace(site, value=site.value + loc.map(torch.neg), arguments={**site.arguments, "loc": zero})


def _constant(site: Site) -> Site:
    """The site with computed arguments as constants (to be refreshed)."""
    arguments = {n: Argument(a.value) if a.opaque else a for n, a in site.arguments.items()}
    return replace(site, arguments=arguments)


def _thinned(sample: WeightedSample) -> WeightedSample:
    blocks = []
    for block in sample.blocks:
        per_row = block.per_row(sample.event_dim)
        keep = max(1, VERIFY_DATA // max(1, block.rows.numel()))
        if block.weights.shape[1] > keep:
            index = torch.linspace(0, block.weights.shape[1] - 1, keep).long()
            values = block.values[:, index] if per_row else block.values[index]
            block = Block(block.weights[:, index], values, block.rows)
        blocks.append(block)
    return WeightedSample(sample.args, tuple(blocks), sample.num_rows, sample.event_dim)
