"""Variational Bayes EM: the E-step sums over expected log-densities, the M-step updates the conjugate factors.

Reference:
    Beal, M. (2003). Variational algorithms for approximate Bayesian inference. PhD thesis, UCL. Chapter 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ppl_em.em.accelerate import Space
from ppl_em.em.e_step import EStep, e_step, plain_total, scaled_total
from ppl_em.em.loop import Machine
from ppl_em.em.updates import Parameters, Refused, Updater, make_updater
from ppl_em.exact.engine import Weights
from ppl_em.ir import Factor, Site
from ppl_em.methods import EM
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update
from ppl_em.variational_em.network import Network
from ppl_em.variational_em.plan import refuse_settings

#: Rounds of updates by which factors that are updated in turn settle at a start.
SETTLE = 5


class Conjugate:
    """The update of one latent's factor.

    Args:
        network: all factors.
        update: the plan's entry.
    """

    def __init__(self, network: Network, update: Update) -> None:
        self.network, self.update = network, update
        self.name = update.parameters[0]
        self.sites: list[Site] = [c.site for c in network.nodes[self.name].children]

    def step(self, parameters: Parameters, e: EStep) -> Parameters:
        """New hyperparameters, and the new posterior mean under the latent's own name."""
        factors = self.network.read(parameters)
        assert factors is not None
        new = self.network.update(self.name, factors, e.weights, parameters)
        written = self.network.write({self.name: new})
        return {**written, **self.network.means(self.network.beliefs({self.name: new}))}


class VariationalMachine(Machine):
    """A plan whose global latents have factors, ready to run.

    The state's parameters hold the values of ``pyro.param``, the factors' hyperparameters (``"weights.concentration"``)
    and, under the latents' own names, posterior means.
    """

    def _build(self) -> None:
        refuse_settings(self.settings)
        self.network = Network(self.plan)
        self.watched, self.lowered, self.updaters = (), {}, []
        for update in self.plan.updates:
            try:
                updater = self._updater(update)
            except Refused as error:
                self._demote(update, str(error))
                return
            if updater is not None:
                self.updaters.append(updater)

    def _updater(self, update: Update) -> Updater | None:
        if update.by == "variational":
            return Conjugate(self.network, update)
        return make_updater(self.plan, update, self.settings)

    def __post_init__(self) -> None:
        self.floors = {}  # factors are proper: nothing is held from a boundary
        self._build()

    def hold(self, parameters: Parameters) -> Parameters:
        """Factors at a start that is given as values: those that follow from the posterior of the latents there."""
        if self.network.read(parameters) is not None:
            return parameters
        return self._begin(parameters, e_step(self.plan, parameters))

    def maximise(self, parameters: Parameters, e: EStep) -> Parameters:
        """Every factor in turn, each the optimum given the others; then the parameters that have none."""
        if self.network.read(parameters) is not None:
            return super().maximise(parameters, e)
        # Clusters of the data: their numbers mean nothing yet.
        return self._begin(parameters, self._largest_first(e))

    def _begin(self, parameters: Parameters, e: EStep) -> Parameters:
        """Factors from their priors and the expected weights of a start."""
        priors = self.network.priors(parameters)
        parameters = {**parameters, **self.network.write(priors), **self.network.means(self.network.beliefs(priors))}
        for _ in range(SETTLE):
            parameters = super().maximise(parameters, e)
        return parameters

    def _largest_first(self, e: EStep) -> EStep:
        """A start's weights with the values of latents whose probabilities are pieces of a stick in falling order.

        Under a stick-breaking prior the order of the components counts: the first piece is the largest a priori.
        """
        weights = dict(e.weights)
        broken = {c.site.name for v in self.network.nodes.values() for c in v.children if c.link.transform.longer}
        for entry in self.plan.blocks:
            latent = entry.block.latents[0].name
            if entry.engine.name != "mixture" or latent not in broken:
                continue
            own = weights[latent].factor
            total = own.sum([d for d in own.dims if d != latent]).align((latent,))
            order = total.argsort(descending=True, stable=True)
            for site in entry.block.sites:
                factor, summed = weights[site.name].factor, weights[site.name].summed
                if factor.sizes.get(latent, 1) == len(order):
                    moved = factor.tensor.index_select(factor.dims.index(latent), order)
                    weights[site.name] = Weights(Factor(moved, factor.dims), summed)
        return replace(e, weights=weights)

    @torch.no_grad()
    def evaluate(self, parameters: Parameters) -> EStep:
        """Expected weights, and the bound in its two parts: of the data, and of the factors' divergence."""
        return bound(self.plan, self.network, parameters)

    def space(self, parameters: Parameters) -> Space:
        """Coordinates of extrapolations: the hyperparameters' in the place of the latents'."""
        nodes = self.network.nodes
        found = {n: p.constraint for n, p in self.plan.program.parameters.items() if n not in nodes and not p.frozen}
        for name, node in nodes.items():
            found.update({f"{name}.{h}": c for h, c in self.network.hyperparameters(node).items()})
        return Space(found, self._completed)

    def _completed(self, values: Parameters) -> Parameters:
        """The latents' posterior means, brought up to the hyperparameters."""
        factors = self.network.read(values)
        assert factors is not None
        return {**values, **self.network.means(self.network.beliefs(factors))}


def bound(plan: Plan, network: Network, parameters: Mapping[str, Tensor]) -> EStep:
    """The bound with the optimal posterior of the summed latents, and that posterior's expected weights.

    Args:
        plan: the plan.
        network: its factors.
        parameters: their hyperparameters, and values of parameters that have none.
    """
    factors = network.read(parameters)
    assert factors is not None
    plain = [s for s in plan.plain if s.point not in network.nodes]
    logs = network.log_factors([s for b in plan.blocks for s in b.block.sites] + plain, factors, parameters)
    likelihood, prior = 0.0, network.gain(factors, parameters)
    weights: dict[str, Weights] = {}
    for entry in plan.blocks:
        expected = entry.engine.expected(entry.block, logs)
        likelihood += float(scaled_total(entry, expected.log_z))
        weights.update(expected.weights)
    for site in plan.plain:
        weights[site.name] = Weights(site.scale or Factor(torch.ones(()), ()))
    for site in plain:
        total = float(plain_total(plan, site, logs[site.name]))
        likelihood, prior = (likelihood + total, prior) if site.point is None else (likelihood, prior + total)
    return EStep(likelihood, prior, weights)


def make_machine(plan: Plan, settings: EM, generator: torch.Generator) -> Machine:
    """What runs a plan: EM, or its variational Bayes form."""
    kind = VariationalMachine if settings.globals == "variational" else Machine
    return kind(plan, settings, generator)
