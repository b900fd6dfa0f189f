"""Global latents with conjugate factors and the sites between them: expectations, updates and divergence.

Each update is the exact optimum of the bound in one factor with all others held: the prior's natural parameters plus what
every site sends. A location that shares a factor with its precision is updated first, given the precision; the
precision's factor then has the location integrated out, so that both together are the optimum of the joint factor.

Reference:
    Attias, H. (2000). A variational Bayesian framework for graphical models. NeurIPS 12.
    Winn, J. & Bishop, C. (2005). Variational message passing. JMLR 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ppl_em.em.e_step import site_factors
from ppl_em.exact.engine import Weights
from ppl_em.ir import Factor, Site
from ppl_em.plan.plan import Plan
from ppl_em.variational_em.arguments import Beliefs, Values
from ppl_em.variational_em.densities import expected_log_factor
from ppl_em.variational_em.factors import HYPERPARAMETERS, RELATIVE, Belief, Hyper, belief
from ppl_em.variational_em.messages import Places, add, message, no_message
from ppl_em.variational_em.nodes import Node
from ppl_em.variational_em.priors import gain, posterior, prior_hyperparameters
from ppl_em.variational_em.recognition import find_nodes
from ppl_em.variational_em.statistics import Drawn, Observed
from ppl_em.variational_em.unobserved import unobserved_normalised

Factors = Mapping[str, Hyper]
"""Hyperparameters of every factor, by name of the latent."""


class Network:
    """The global latents of a plan, each with a conjugate factor.

    Args:
        plan: the plan, with these latents as parameters.

    Raises:
        PlanError: a latent is not conjugate.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.nodes: dict[str, Node] = {v.name: v for v in find_nodes(plan)}
        self.sites: dict[str, Site] = {c.site.name: c.site for v in self.nodes.values() for c in v.children}
        sizes = dict(plan.program.sizes())
        for entry in plan.blocks:
            sizes.update(entry.block.sizes)
        self.data: dict[str, Observed | Drawn] = {
            n: Drawn(s) if s.point in self.nodes else Observed(s, sizes) for n, s in self.sites.items()
        }
        self.places = {
            n: [Places.of(c, self.data[c.site.name].rows) for c in v.children] for n, v in self.nodes.items()
        }
        self._kept: dict[str, tuple[Hyper, Belief]] = {}
        self._priors: dict[str, Hyper] = {}

    # q as one dictionary -------------------------------------------------------------------------------------

    def hyperparameters(self, node: Node) -> dict[str, Any]:
        """Names and constraints of the hyperparameters of a latent's factor."""
        found: dict[str, Any] = dict(HYPERPARAMETERS[node.family])
        if node.joint is not None:
            del found["precision"]
            found.update(RELATIVE)
        return found

    def read(self, values: Mapping[str, Tensor]) -> dict[str, Hyper] | None:
        """The factors among named values (``"weights.concentration"``), None where some are missing."""
        names = {n: [*self.hyperparameters(v)] for n, v in self.nodes.items()}
        if any(f"{n}.{h}" not in values for n, hs in names.items() for h in hs):
            return None
        return {n: {h: values[f"{n}.{h}"] for h in hs} for n, hs in names.items()}

    @staticmethod
    def write(factors: Factors) -> dict[str, Tensor]:
        """The factors as named values."""
        return {f"{n}.{h}": t for n, hyper in factors.items() for h, t in hyper.items()}

    # expectations ----------------------------------------------------------------------------------------------

    def beliefs(self, factors: Factors) -> dict[str, Belief]:
        """Expectations under factors; those of a factor that has not changed are kept."""
        found = {}
        for name, h in factors.items():
            kept = self._kept.get(name)
            if kept is None or any(kept[0].get(k) is not t for k, t in h.items()):
                kept = self._kept[name] = (dict(h), belief(self.nodes[name].family, h))
            found[name] = kept[1]
        return found

    def means(self, beliefs: Beliefs) -> dict[str, Tensor]:
        """Posterior means in the program's own shapes and dtypes."""
        parameters = self.plan.program.parameters
        return {n: b.mean.reshape(self.nodes[n].shape).to(parameters[n].init.dtype) for n, b in beliefs.items()}

    def priors(self, values: Values) -> dict[str, Hyper]:
        """The prior of every latent as its first factor; arguments made of other latents at their expectations.

        Args:
            values: parameters that have no factor.
        """
        found: dict[str, Hyper] = {}
        for name in self.plan.program.latents:  # in program order: what a prior is made of comes first
            if name in self.nodes:
                beliefs = self.beliefs(found)
                found[name] = prior_hyperparameters(self.nodes[name], beliefs, {**values, **self.means(beliefs)})
        return found

    def log_factors(self, sites: list[Site], factors: Factors, values: Values) -> dict[str, Factor]:
        """E_q[log p] of every given site by its dimensions, scale not applied.

        Args:
            sites: sites of the plan that are no priors of these latents.
            factors: q.
            values: parameters that have no factor.
        """
        beliefs = self.beliefs(factors)
        values = {**values, **self.means(beliefs)}
        found = {s.name: expected_log_factor(s, beliefs, values) for s in sites if s.name in self.sites}
        found.update(site_factors(self.plan, values, [s for s in sites if s.name not in found]))
        return unobserved_normalised(self.plan, found)

    def gain(self, factors: Factors, values: Values) -> float:
        """−Σ KL(q(θ) ‖ p(θ)) of all factors, nats; conditional on the latents that the priors are made of."""
        beliefs = self.beliefs(factors)
        values = {**values, **self.means(beliefs)}
        total = torch.zeros((), dtype=torch.float64)
        for name, node in self.nodes.items():
            total = total + gain(node, factors[name], beliefs, values)
        return float(total)

    # the update ------------------------------------------------------------------------------------------------

    def update(self, name: str, factors: Factors, weights: Mapping[str, Weights], values: Values) -> Hyper:
        """The optimal factor of one latent, given the expected weights of the sites and all other factors.

        Args:
            name: the latent.
            factors: the current ones.
            weights: expected posterior weights by site.
            values: parameters that have no factor.
        """
        node, beliefs = self.nodes[name], self.beliefs(factors)
        values = {**values, **self.means(beliefs)}
        total = no_message(node)
        for child, places in zip(node.children, self.places[name], strict=True):
            site = child.site
            above = None if site.point is None else self.nodes.get(site.point)
            joint = above is not None and above.joint is not None and above.joint.partner == name
            data = self.data[site.name]
            sent = message(node, child, data, places, weights[site.name], beliefs, values, joint=joint)
            total = add(total, sent)
        return posterior(node, self._prior(node, beliefs, values), total)

    def _prior(self, node: Node, beliefs: Beliefs, values: Values) -> Hyper:
        """The prior's hyperparameters; worked out once where no argument is made of other latents."""
        if any(a.links or a.sources for a in node.site.arguments.values()):
            return prior_hyperparameters(node, beliefs, values)
        if node.name not in self._priors:
            self._priors[node.name] = prior_hyperparameters(node, beliefs, values)
        return self._priors[node.name]
