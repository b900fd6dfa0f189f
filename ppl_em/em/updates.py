"""The M-step of a plan: one updater for each group of parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import transform_to

from ppl_em.em.boundary import inside
from ppl_em.em.e_step import EStep, expected_log_joint
from ppl_em.ir import Argument, Factor, Site
from ppl_em.methods import EM
from ppl_em.mstep import NoClosedForm, WeightedSample, stationarity, weighted_mle
from ppl_em.mstep.assemble import Assembly
from ppl_em.mstep.block import Block
from ppl_em.mstep.newton import newton
from ppl_em.mstep.regression import Regression
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update

#: A proposal whose scaled KKT residual exceeds this is not a maximiser.
KKT_TOLERANCE = 1e-6
#: Data used to verify a rule; a formula does not depend on their number.
VERIFY_DATA = 20_000
#: Unconstrained elements up to which Newton's dense Hessian is used.
NEWTON_SIZE = 60

Parameters = dict[str, Tensor]


class Refused(Exception):
    """A closed form does not hold for this program; the message says why."""


class ClosedForm:
    """Parameters that are weighted maximum-likelihood estimates of one family's arguments.

    Args:
        plan: the plan.
        update: its entry.
    """

    def __init__(self, plan: Plan, update: Update) -> None:
        self.update = update
        sites = {s.name: s for s in plan.sites()}
        sizes = dict(plan.program.sizes())
        for entry in plan.blocks:
            sizes.update(entry.block.sizes)
        members = [sites[n] for n in update.sites]
        self.residual = {s.name: s for s in members if s.family is not None and _predicted_mean(s)}
        members = [_about_zero(s, plan) if s.name in self.residual else s for s in members]
        self.assembly = Assembly(members, sizes, frozenset(update.parameters))
        assert self.assembly.family is not None
        self.family: type = self.assembly.family
        self.rule = weighted_mle[self.family]
        self.constraints = {n: plan.program.parameters[n].constraint for n in update.parameters}
        self.verified = False
        self.sweeps = 1

    def step(self, parameters: Parameters, e: EStep) -> Parameters:
        """New values of this group's parameters.

        Raises:
            Refused: the rule does not apply, or its proposal is not stationary.
        """
        if all(n in e.moments for n in self.update.sites):
            sample = self.assembly.sample_of([e.moments[n] for n in self.update.sites], parameters)
        else:
            sample = self._weighted(parameters, e)
        self._propose(sample, self.sweeps)
        new = self.assembly.write(sample.proposals, parameters)
        if new is None:
            raise Refused("the same parameter element would have to take two values")
        return {n: inside(self.constraints[n], v) for n, v in new.items()}

    def _weighted(self, parameters: Parameters, e: EStep) -> WeightedSample:
        weights = {n: (e.weights[n].factor, e.weights[n].summed) for n in self.update.sites}
        for site in self.residual.values():
            self.assembly.replace_value(site.name, _residual(site, parameters))
        sample = self.assembly.sample(weights, parameters)
        if not self.verified:
            self.verify(sample)
        return sample

    def _propose(self, sample: WeightedSample, sweeps: int) -> None:
        try:
            for _ in range(sweeps):
                self.rule(sample)
        except NoClosedForm as error:
            raise Refused(str(error)) from error

    def verify(self, sample: WeightedSample) -> None:
        """The claim "closed form" is proven at the first proposal by its KKT conditions."""
        small = _thinned(sample)
        for sweeps in (1, 3, 10):
            trial = WeightedSample(small.args, small.blocks, small.num_rows, small.event_dim)
            self._propose(trial, sweeps)
            residual = stationarity(trial, self.family)
            if residual <= KKT_TOLERANCE:
                self.sweeps = sweeps
                break
        else:
            if self.rule.exact != "ascent":
                raise Refused(
                    f"the rule of {self.family.__name__} is not stationary at its proposal (residual {residual:.1e})"
                )
        self.verified = True


def _predicted_mean(site: Site) -> bool:
    """A normal site whose mean is a linear predictor: its scale is estimated from residuals."""
    assert site.family is not None
    return site.family.__name__ == "Normal" and site.arguments["loc"].design is not None


def _residual(site: Site, parameters: Parameters) -> Factor:
    loc = site.arguments["loc"]
    return site.value + Factor(-loc.evaluate(parameters).detach(), loc.value.dims)


def _about_zero(site: Site, plan: Plan) -> Site:
    """The site with its residuals as values and a mean of zero."""
    start = {n: p.init for n, p in plan.program.parameters.items()}
    zero = Argument(Factor(site.value.tensor.new_zeros(()), ()))
    return replace(site, value=_residual(site, start), arguments={**site.arguments, "loc": zero})


class LeastSquares:
    """Coefficients of linear predictors of normal means.

    Args:
        plan: the plan.
        update: its entry.
    """

    def __init__(self, plan: Plan, update: Update) -> None:
        self.update = update
        sites = {s.name: s for s in plan.sites()}
        sizes = dict(plan.program.sizes())
        for entry in plan.blocks:
            sizes.update(entry.block.sizes)
        self.sites = [sites[n] for n in update.sites]
        for site in self.sites:
            sizes.update({d: n for d, n in site.value.sizes.items() if d not in sizes})
        self.regression = Regression(self.sites, update.parameters, sizes)

    def step(self, parameters: Parameters, e: EStep) -> Parameters:
        """New coefficients."""
        weights = {n: (e.weights[n].factor, e.weights[n].summed) for n in self.update.sites}
        return self.regression.solve(weights, parameters)


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


class Gradient:
    """Parameters without a closed form: ascent of Q in unconstrained space, never downhill.

    Args:
        plan: the plan.
        names: the parameters.
        settings: iterations and optimiser.
    """

    def __init__(self, plan: Plan, names: tuple[str, ...], settings: EM) -> None:
        self.plan, self.names, self.settings = plan, names, settings
        self.sites = [s for s in plan.sites() if s.parameters & set(names)]
        self.constraints = {n: plan.program.parameters[n].constraint for n in names}
        self._optimiser: Any = None
        self._free: Parameters = {}

    def step(self, parameters: Parameters, e: EStep) -> Parameters:
        """New values of these parameters; the old ones where Q cannot be raised."""
        if not self.sites:
            return {}
        before = float(self._q({**parameters}, e))
        if self.settings.m_step_optim is not None or any(
            self.plan.program.parameters[n].module_tensor is not None for n in self.names
        ):
            new = self._first_order(parameters, e)
        else:
            new = self._second_order(parameters, e)
        after = float(self._q({**parameters, **new}, e))
        slack = 1e-10 * (1 + abs(before))
        if math.isfinite(after) and after >= before - slack:
            return new
        return self._backtrack(parameters, new, e, before)

    def _q(self, parameters: Mapping[str, Tensor], e: EStep) -> Tensor:
        if not e.counts:
            return expected_log_joint(self.plan, self.sites, e.weights, parameters)
        from ppl_em.em.structured import counted_log_joint

        counted = [s for s in self.sites if s.name in e.counts]
        others = [s for s in self.sites if s.name not in e.counts]
        total = expected_log_joint(self.plan, others, e.weights, parameters)
        return total + counted_log_joint(self.plan, counted, e.counts, parameters)

    def _second_order(self, parameters: Parameters, e: EStep) -> Parameters:
        free = {n: _unconstrain(self.constraints[n], parameters[n]) for n in self.names}
        shapes = {n: t.shape for n, t in free.items()}
        x0 = torch.cat([t.reshape(-1) for t in free.values()]).double()

        def rebuild(x: Tensor) -> Parameters:
            values, at = {}, 0
            for n, shape in shapes.items():
                count = math.prod(shape)
                piece = x[at : at + count].reshape(shape).to(parameters[n].dtype)
                values[n] = transform_to(self.constraints[n])(piece)
                at += count
            return values

        def q(x: Tensor) -> Tensor:
            return self._q({**parameters, **rebuild(x)}, e)

        if x0.numel() <= NEWTON_SIZE and self.settings.m_step_steps > 1:
            best = newton(q, x0, max_steps=self.settings.m_step_steps).x
        else:
            best = _lbfgs(q, x0, self.settings.m_step_steps)
        return {n: v.detach() for n, v in rebuild(best).items()}

    def _first_order(self, parameters: Parameters, e: EStep) -> Parameters:
        leaves = self.plan.program.leaves(parameters)
        if self._optimiser is None:
            self._free = {}
            for n in self.names:
                tensor = self.plan.program.parameters[n].module_tensor
                self._free[n] = (
                    tensor
                    if tensor is not None
                    else _unconstrain(self.constraints[n], parameters[n]).requires_grad_(True)
                )
            make = self.settings.m_step_optim or (lambda ps: torch.optim.Adam(ps, lr=1e-2))
            self._optimiser = make(list(self._free.values()))
        for n in self.names:
            if self.plan.program.parameters[n].module_tensor is None:
                with torch.no_grad():
                    self._free[n].copy_(_unconstrain(self.constraints[n], parameters[n]))
        for _ in range(self.settings.m_step_steps):
            self._optimiser.zero_grad()
            values = {
                n: t
                if self.plan.program.parameters[n].module_tensor is not None
                else transform_to(self.constraints[n])(t)
                for n, t in self._free.items()
            }
            (-self._q({**leaves, **values}, e)).backward()
            self._optimiser.step()
        return {
            n: (
                t
                if self.plan.program.parameters[n].module_tensor is not None
                else transform_to(self.constraints[n])(t)
            )
            .detach()
            .clone()
            for n, t in self._free.items()
        }

    def _backtrack(self, parameters: Parameters, new: Parameters, e: EStep, before: float) -> Parameters:
        old_free = {n: _unconstrain(self.constraints[n], parameters[n]) for n in new}
        new_free = {n: _unconstrain(self.constraints[n], v) for n, v in new.items()}
        for halving in range(1, 30):
            share = 0.5**halving
            trial = {
                n: transform_to(self.constraints[n])(old_free[n] + share * (new_free[n] - old_free[n]))
                for n in new
            }
            self._restore(trial)
            if float(self._q({**parameters, **trial}, e)) >= before:
                return trial
        kept = {n: parameters[n] for n in new}
        self._restore(kept)
        return kept

    def _restore(self, values: Parameters) -> None:
        for n, value in values.items():
            tensor = self.plan.program.parameters[n].module_tensor
            if tensor is not None:
                with torch.no_grad():
                    tensor.copy_(value)


def _unconstrain(constraint: Any, value: Tensor) -> Tensor:
    free = transform_to(constraint).inv(value.detach())
    limit = 50.0 if value.dtype == torch.float64 else 30.0
    return torch.nan_to_num(free, nan=0.0, posinf=limit, neginf=-limit).clone()


def _lbfgs(q: Any, x0: Tensor, steps: int) -> Tensor:
    x = x0.detach().clone().requires_grad_(True)
    optimiser = torch.optim.LBFGS([x], max_iter=steps, line_search_fn="strong_wolfe", history_size=20)

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -q(x)
        loss.backward()
        return loss

    optimiser.step(closure)
    return x.detach()
