"""The M-step of tables of probabilities that an observed index is looked up in: expected counts by cell of the table."""

from __future__ import annotations

from typing import Any

import torch

from ppl_em.em.closed_form import ClosedForm, Parameters
from ppl_em.em.e_step import EStep
from ppl_em.ir import Site
from ppl_em.lower.lookup import Lookup, look_up
from ppl_em.lower.posterior import DatumLatent
from ppl_em.mstep import WeightedSample
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update


class LookupForm(ClosedForm):
    """A closed form whose rows are the cells of the table, not one for each datum.

    Args:
        plan: the plan.
        update: its entry, of one site.
        lookup: the table.
    """

    def __init__(self, plan: Plan, update: Update, lookup: Lookup) -> None:
        self.lookup = lookup
        super().__init__(plan, update)

    def _members(self) -> list[Site]:
        return [self.lookup.site]

    def sample(self, parameters: Parameters, e: EStep) -> WeightedSample:
        """Expected counts by cell and state."""
        name = self.update.sites[0]
        given: Any = e.moments.get(name)
        if given is None:
            responsibilities = e.weights[name].factor.align((*self.lookup.data, self.lookup.state))
            given = self.lookup.moments(responsibilities.flatten(0, -2))
        if not self.verified:
            rows, symbols = given.histogram.shape
            generator = torch.Generator().manual_seed(1)
            # The conditions hold for any weights: random ones prove the rule as well as the posterior's.
            weights = torch.rand(rows, symbols, generator=generator, dtype=torch.float64)
            self.verify(self.assembly.chosen([weights], torch.arange(symbols), parameters))
        return self.assembly.sample_of([given], parameters)


def lookup_of(plan: Plan, update: Update) -> Lookup | None:
    """The table behind a group of parameters that feed one site of a mixture; None where there is none."""
    if len(update.sites) != 1:
        return None
    for entry in plan.blocks:
        site = next((s for s in entry.block.sites if s.name == update.sites[0]), None)
        if site is not None and entry.engine.name == "mixture" and DatumLatent.of(entry.block):
            latent = entry.block.latents[0]
            return look_up(site, latent.name, latent.plates, entry.block.sizes)
    return None
