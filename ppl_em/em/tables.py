"""Tables of probabilities that a hidden structure uses: the new table is the normalised expected counts.

Reference:
    Baker, J. K. (1979). Trainable grammars for speech recognition.
    Baum, L. E. and Eagon, J. A. (1967). An inequality with applications to statistical estimation for
    probabilistic functions of Markov processes. Bulletin of the AMS 73.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_em.distributions.constraints import square_simplex, table_simplex
from ppl_em.em.closed_form import KKT_TOLERANCE, ClosedForm, Parameters, Refused
from ppl_em.em.e_step import EStep, expected_log_joint
from ppl_em.em.structured import Counts, counted_log_joint, distributions, expected_counts
from ppl_em.errors import RuleError, message
from ppl_em.ir import Argument, Factor, Link, Site
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update

_SIMPLICES = (constraints.simplex, table_simplex, square_simplex)


class Tables(ClosedForm):
    """Parameters that are tables of structured sites, up to a gather and a normalisation.

    Args:
        plan: the plan.
        update: its entry.
    """

    def __init__(self, plan: Plan, update: Update) -> None:
        self.plan, self.update = plan, update
        sites = {s.name: s for s in plan.sites()}
        self.sites = [sites[n] for n in update.sites]
        assert self.sites[0].family is not None
        self.family = self.sites[0].family
        self.constraints = {n: plan.program.parameters[n].constraint for n in update.parameters}
        self.verified = False

    def step(self, parameters: Parameters, e: EStep) -> Parameters:
        """New tables.

        Raises:
            Refused: the counts do not give a maximum of Q for this spelling of the tables.
        """
        counts = e.counts or expected_counts(self.plan, parameters, e.weights)
        new = self._proposal(parameters, counts)
        for name, value in new.items():
            if not bool(torch.as_tensor(self.constraints[name].check(value)).all()):
                raise Refused(f"normalised counts would take '{name}' out of its constraint")
        if not self.verified:
            self._verify(parameters, e)
            self.verified = True
        return new

    def _proposal(self, parameters: Parameters, counts: Counts) -> Parameters:
        """Normalised counts, those of tied elements added up, written back through the links."""
        pooled = {n: torch.zeros(parameters[n].numel(), dtype=torch.float64) for n in self.update.parameters}
        for site in self.sites:
            for name, argument, links in self._fed(site):
                count = _compact(counts[site.name][name], site, argument).double()
                for link in links:
                    here = link.index >= 0
                    pooled[link.parameter].index_add_(0, link.index[here], count[here])
        images: dict[str, Tensor] = {}
        links_of: dict[str, Link] = {}
        written = {n: torch.zeros(len(t), dtype=torch.bool) for n, t in pooled.items()}
        current = distributions(self.plan, self.sites, parameters)
        for site in self.sites:
            spread = {}
            for name, argument, links in self._fed(site):
                count = _compact(counts[site.name][name], site, argument).double()
                for link in links:
                    count = torch.where(link.index >= 0, pooled[link.parameter][link.index.clamp_min(0)], count)
                spread[name] = Factor(count, argument.value.dims).align((*site.dims, *site.inner))
            proposals = current[site.name].normalised(spread)
            for name, argument, links in self._fed(site):
                target = _compact(proposals[name], site, argument).double()
                for link in links:
                    _write(link, target, parameters, images, links_of, written[link.parameter])
        new = {n: links_of[n].transform.inverse(t.reshape(parameters[n].shape)) for n, t in images.items()}
        return {n: t.to(parameters[n].dtype) for n, t in new.items()}

    def _fed(self, site: Site) -> list[tuple[str, Argument, list[Link]]]:
        """The arguments of a site that these parameters feed, with their links."""
        found = []
        for name, argument in site.arguments.items():
            links = [k for k in argument.links if k.parameter in self.update.parameters]
            if links:
                found.append((name, argument, links))
        return found

    def _verify(self, parameters: Parameters, e: EStep) -> None:
        """Fisher's identity at the old tables, first-order conditions of Q at the new ones, and ascent."""
        names = list(self.update.parameters)
        # Counts at these very parameters: others that feed the site may have moved since the E-step.
        counts = expected_counts(self.plan, parameters, e.weights)
        new = self._proposal(parameters, counts)

        def observed(values: Mapping[str, Tensor]) -> Tensor:
            return expected_log_joint(self.plan, self.sites, e.weights, values)

        def q(values: Mapping[str, Tensor]) -> Tensor:
            return counted_log_joint(self.plan, self.sites, counts, values)

        precision = 1.0 if all(parameters[n].dtype == torch.float64 for n in names) else 1e3
        mine, theirs = _slopes(q, parameters, names), _slopes(observed, parameters, names)
        for n in names:
            own, direct = (self._scaled(n, parameters[n], slope[n]) for slope in (mine, theirs))
            gap = float((own - direct).abs().max()) / (1 + float(direct.abs().max()))
            if not gap <= KKT_TOLERANCE * precision:
                what = f"expected_counts of {self.family.__name__} is not the derivative of its log_prob"
                why = f"Fisher's identity fails by {gap:.1e}, relative to the largest slope"
                raise RuleError(message(what, site=self.sites[0].name, value=n, why=why))
        after = {**parameters, **new}
        for n, slope in _slopes(q, after, names).items():
            residual = self._residual(n, new[n], slope)
            if not residual <= KKT_TOLERANCE * precision:
                raise Refused(f"normalised counts are not stationary for '{n}' (residual {residual:.1e})")
        with torch.no_grad():
            before, later = float(observed(parameters)), float(observed(after))
        if not later >= before - 1e-9 * precision * (1 + abs(before)):
            raise Refused(f"normalised counts lower the likelihood, by {before - later:.3g} nats")

    def _scaled(self, name: str, value: Tensor, slope: Tensor) -> Tensor:
        """The derivative by the log of a probability; by the parameter itself where it is unconstrained."""
        return slope * value.detach() if _simplex(self.constraints[name]) is not None else slope

    def _residual(self, name: str, value: Tensor, slope: Tensor) -> float:
        """Scaled residual of the first-order conditions, on the tangent space of a simplex."""
        constraint = _simplex(self.constraints[name])
        if constraint is None:
            positive = bool((value > 0).all()) and self.constraints[name] is not constraints.real
            return float((slope * value if positive else slope).abs().max()) / max(1.0, self._mass)
        dims = tuple(range(-constraint.event_dim, 0))
        uses = value * slope
        mass = uses.sum(dims, keepdim=True)
        # Where the density normalises its tables itself, all uses vanish at the maximum: relative to the data then.
        return float(((uses - value * mass).abs() / mass.abs().clamp_min(1e-6 * self._mass)).max())

    @property
    def _mass(self) -> float:
        return float(sum(s.value.tensor.numel() for s in self.sites))


def _simplex(constraint: Any) -> Any:
    """The simplex constraint behind a constraint of a whole table, or None."""
    while isinstance(constraint, constraints.independent):
        constraint = constraint.base_constraint
    return constraint if constraint in _SIMPLICES else None


def _slopes(function: Any, at: Mapping[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    leaves = {n: at[n].detach().clone().requires_grad_() for n in names}
    with torch.enable_grad():
        found = torch.autograd.grad(function({**at, **leaves}), list(leaves.values()), materialize_grads=True)
    return dict(zip(names, found, strict=True))


def _compact(tensor: Tensor, site: Site, argument: Argument) -> Tensor:
    """From the dimensions of the site to those of the argument's compact value."""
    order = (*site.dims, *site.inner)
    index = tuple(slice(None) if d in argument.value.dims else 0 for d in order)
    kept = tuple(d for d in order if d in argument.value.dims)
    return Factor(tensor[index], kept).align(argument.value.dims)


def _write(
    link: Link,
    target: Tensor,
    parameters: Parameters,
    images: dict[str, Tensor],
    links_of: dict[str, Link],
    written: Tensor,
) -> None:
    """Write proposed table elements into the image of a parameter.

    Raises:
        Refused: an element would have to take two values.
    """
    name = link.parameter
    if name not in images:
        images[name] = link.transform.forward(parameters[name].detach().double()).reshape(-1).clone()
        links_of[name] = link
    here = link.index >= 0
    index, values = link.index[here], target[here]
    image = images[name].clone()
    image[index] = values
    twice = written[index] & ((images[name][index] - values).abs() > 1e-9)
    if links_of[name].transform is not link.transform or bool(
        ((image[index] - values).abs() > 1e-9).any() or twice.any()
    ):
        raise Refused("the same parameter element would have to take two values")
    images[name] = image
    written[index] = True
