"""The evidence lower bound of a program: sampled latents from a guide, discrete ones summed by the exact engines.

For sampled latents u ~ q(u | x), summed latents s and data x the bound is

    E_q [ log Σ_s p(x, s, u) − log q(u | x) ]  ≤  log p(x),

one draw of which is estimated here. Where log p(u | …) − log q(u | x) has a closed-form expectation that is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ppl_em.errors import ModelError, PlanError, message
from ppl_em.ir import Factor
from ppl_em.plan.plan import Plan
from ppl_em.svi.batch import Batch
from ppl_em.svi.kl import analytic_kl
from ppl_em.svi.naming import Naming
from ppl_em.svi.score import Scored, run_scored

Parameters = Mapping[str, Tensor]
#: Summands of the bound: site name and value; log q and closed-form divergences under the latent's name.
Terms = list[tuple[str, Tensor]]


@dataclass(frozen=True)
class NamedTerm:
    """One summand of the bound by plates.

    Args:
        name: site name.
        factor: over plates (and latents that a guide enumerates).
        site: the model's or guide's site that it comes from; gives scale and mask.
    """

    name: str
    factor: Factor
    site: Scored


@dataclass
class Snapshot:
    """What the last evaluation by name saw, for statistics of closed forms.

    Args:
        sites: the model's sites by name.
        factors: detached log-factors of sites in blocks of summed latents.
        sizes: size of each plate.
    """

    sites: Mapping[str, Scored]
    factors: Mapping[str, Factor]
    sizes: Mapping[str, int]


class Bound:
    """Evaluates the bound of a plan.

    Args:
        plan: the plan; its program runs on any data.
        model: the program.
        mean_field: the guide's draws of different sites do not depend on each other unless their plates are nested.
    """

    def __init__(self, plan: Plan, model: Any, mean_field: bool) -> None:
        self.plan, self.model, self.mean_field = plan, model, mean_field
        self.program = plan.program
        self.runner = self.program.runner
        self.plate = self.program.data_plate
        discrete = {n for n, z in self.program.latents.items() if z.kind == "discrete" and z.support is not None}
        #: Discrete latents of which a guide runs through all values.
        self.guided = {n for n in plan.approximated if n in discrete}
        self.enumerated = {
            n: self.runner.layout.enumerated(n, z.support) for n, z in self.program.latents.items() if n in discrete
        }
        self.naming = Naming(plan, self.guided)
        self.simple = not self.enumerated
        self._closed: dict[str, bool] = {}
        #: Whether `terms` keeps what it saw, and what that was.
        self.watched = False
        self.seen: Snapshot | None = None

    # running -------------------------------------------------------------------------------------------------

    def run(self, batch: Batch, parameters: Parameters, values: Mapping[str, Tensor]) -> list[Scored]:
        """Run the program on a batch with sampled latents given and the others enumerated."""

        def draw(name: str, fn: Any) -> Tensor:
            if name in values:
                return values[name]
            if name in parameters:
                return parameters[name]
            if name in self.enumerated:
                return self.enumerated[name]
            raise ModelError(
                message(
                    "a latent has appeared that was not there when the program was traced",
                    site=name,
                    hint="a fixed set of sites, or a guide that draws this one",
                )
            )

        return run_scored(self.model, batch.args, batch.kwargs, draw, parameters, batch.indices, batch.keep_subsamples)

    def closed_form(self, model: Scored, guide: Scored, order: Sequence[str]) -> Tensor | None:
        """KL(q ‖ p) of one latent by batch element, where that is a valid and known closed form.

        The divergence may take the place of its one-draw estimate only if the prior's parents are drawn before (or
        independently), and not where the prior depends on a latent that is summed.
        """
        known = self._closed.get(model.name)
        if known is False or guide.twin is not None:
            return None
        if known is None and not self._admits(model.name, order):
            self._closed[model.name] = False
            return None
        divergence = analytic_kl(guide.fn, model.fn)
        self._closed[model.name] = divergence is not None
        return divergence

    def _admits(self, name: str, order: Sequence[str]) -> bool:
        latent = self.program.latents[name]
        if latent.kind == "discrete" or self.runner.scopes[name]:
            return False
        if self.mean_field:
            return True
        before = set(order[: list(order).index(name)])
        return all(p in before or p in self.program.parameters for p in latent.parents)

    # totals --------------------------------------------------------------------------------------------------

    def scale(self, site: Scored, batch: Batch) -> Any:
        """What a site's log-density counts: a number, or a tensor along the data plate."""
        scale = site.scale
        if not site.inside(self.plate):
            return scale
        if batch.scale != 1.0:
            scale = scale * batch.scale
        if batch.weights is not None:
            dim = next(f.dim for f in site.frames if f.name == self.plate)
            scale = scale * batch.weights.reshape((-1,) + (1,) * (-dim - 1))
        return scale

    def weight(self, site: Scored, batch: Batch) -> Factor:
        """What each element of a site counts in statistics of all data, by plates: the scale as a factor."""
        scale = torch.as_tensor(self.scale(site, batch))
        return self.naming.scale(site, scale) if scale.dim() else Factor(scale, ())

    def total(self, site: Scored, batch: Batch, log_prob: Tensor) -> Tensor:
        """Masked, scaled sum of elementwise log-densities."""
        if site.mask is not None:
            log_prob = torch.where(torch.as_tensor(site.mask, device=log_prob.device), log_prob, 0.0)
        scale = self.scale(site, batch)
        if isinstance(scale, Tensor):
            return (log_prob * scale).sum()
        return log_prob.sum() if scale == 1.0 else log_prob.sum() * scale

    def terms(self, batch: Batch, parameters: Parameters, draws: Sequence[Scored]) -> Terms:
        """Scaled summands of the bound at one draw, nats; their sum estimates the bound on all data.

        Args:
            batch: data.
            parameters: constrained values.
            draws: the guide's sites.
        """
        if not self.simple:
            return [(t.name, self._scaled(t, batch)) for t in self.named(batch, parameters, draws)]
        values = {s.name: s.value for s in draws}
        sites = {s.name: s for s in self.run(batch, parameters, values)}
        if self.watched:
            self.seen = Snapshot(sites, {}, plate_sizes(sites.values()))
        order = list(values)
        terms: Terms = []
        closed = set()
        for site in sites.values():
            own = next((q for q in draws if q.name == site.name), None) if not site.observed else None
            divergence = None if own is None else self.closed_form(site, own, order)
            if divergence is not None:
                closed.add(site.name)
                terms.append((site.name, self.total(site, batch, -divergence)))
            else:
                terms.append((site.name, self.total(site, batch, site.log_prob())))
        for q in draws:
            if q.name not in closed:
                terms.append((q.name, self.total(home_of(q, sites), batch, -q.log_prob())))
        return terms

    # by name -------------------------------------------------------------------------------------------------

    def named(
        self, batch: Batch, parameters: Parameters, draws: Sequence[Scored], closed_forms: bool = True
    ) -> list[NamedTerm]:
        """Summands by plates, mask applied, scale not.

        Args:
            batch: data.
            parameters: constrained values.
            draws: the guide's sites.
            closed_forms: use closed-form divergences; False gives log-density ratios of the draw itself.
        """
        values = {s.name: s.value for s in draws}
        sites = {s.name: s for s in self.run(batch, parameters, values)}
        drawn = {q.name: q for q in draws}
        order = list(values)
        sizes = plate_sizes(sites.values())
        terms: list[NamedTerm] = []
        closed = set()
        factors: dict[str, Factor] = {}
        for name, site in sites.items():
            own = drawn.get(name) if closed_forms and not site.observed else None
            divergence = None if own is None or name in self.naming.blocks else self.closed_form(site, own, order)
            if divergence is not None:
                closed.add(name)
                factor = self.naming.factor(site, -divergence)
            else:
                factor = self.naming.factor(site, site.log_prob())
            if name in self.naming.blocks:
                factors[name] = factor
            else:
                terms.append(NamedTerm(name, factor, site))
        if self.watched:
            detached = {n: Factor(f.tensor.detach(), f.dims) for n, f in factors.items()}
            self.seen = Snapshot(sites, detached, sizes)
        for entry in self.plan.blocks:
            log_z = self.naming.log_z(entry, factors, sizes)
            terms.append(NamedTerm(entry.block.latents[0].name, log_z, sites[entry.block.latents[0].name]))
        log_q = {}
        for name, q in drawn.items():
            if name not in closed:
                home = home_of(q, sites)
                density = q.log_prob()
                if name in self.guided:
                    log_q[name] = self.naming.factor(home, density, masked=False)
                terms.append(NamedTerm(name, self.naming.factor(home, -density), home))
        if not self.guided:
            return terms
        return [NamedTerm(t.name, self.naming.expectation(t.factor, log_q, t.name), t.site) for t in terms]

    def scaled(self, term: NamedTerm, batch: Batch) -> Factor:
        """A summand by plates with what it counts."""
        scale = self.scale(term.site, batch)
        by = (
            self.naming.scale(term.site, scale) if isinstance(scale, Tensor) else Factor(torch.tensor(float(scale)), ())
        )
        return term.factor * by

    def _scaled(self, term: NamedTerm, batch: Batch) -> Tensor:
        return self.scaled(term, batch).tensor.sum()

    def data_scale(self, batch: Batch) -> Tensor:
        """What each datum of a batch counts, (size,) or a scalar; the program's own subsampling included."""
        scale = torch.as_tensor(batch.scale)
        assert self.plate is not None
        entry = self.program.plates[self.plate]
        if batch.keep_subsamples:
            scale = scale * entry.full_size / entry.size
        elif batch.indices:
            scale = scale * entry.full_size / batch.size
        return scale if batch.weights is None else scale * batch.weights

    def parts(
        self,
        batch: Batch,
        parameters: Parameters,
        draws: Sequence[Scored],
        closed_forms: bool = True,
        priors: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """The bound by element of the data plate, scales left out, and the scaled sum of what lies outside it.

        Args:
            batch: data.
            parameters: constrained values.
            draws: the guide's sites.
            closed_forms: use closed-form divergences.
            priors: count the priors of point estimates.

        Returns:
            (size,) in float64 (a scalar 0 where there is no plate around all data) and a scalar.
        """
        inside = torch.zeros(batch.size if self.plate is not None else (), dtype=torch.float64)
        outside = torch.zeros((), dtype=torch.float64)
        points = () if priors else self.plan.points
        for term in self.named(batch, parameters, draws, closed_forms):
            if self.plate is not None and (term.site.inside(self.plate) or self.plate in term.factor.dims):
                factor = term.factor.sum([d for d in term.factor.dims if d != self.plate])
                inside = inside + factor.align((self.plate,)).double().to(inside.device)
            elif term.name not in points:
                outside = outside + self._scaled(term, batch).double()
        return inside, outside

    def block_factors(
        self, batch: Batch, parameters: Parameters, draws: Sequence[Scored]
    ) -> tuple[dict[str, Factor], dict[str, int]]:
        """Log-factors of all sites in blocks of summed latents, as the program has them, and the sizes of plates."""
        sites = self.run(batch, parameters, {s.name: s.value for s in draws})
        sizes = plate_sizes(sites)
        return {s.name: self.naming.factor(s, s.log_prob()) for s in sites if s.name in self.naming.blocks}, sizes


def plate_sizes(sites: Iterable[Scored]) -> dict[str, int]:
    """Size of each plate in a run."""
    return {f.name: f.size for s in sites for f in s.frames if f.dim is not None}


def home_of(q: Scored, sites: Mapping[str, Scored]) -> Scored:
    """The model's site of a guide's draw: its scale and mask are the draw's."""
    beside = q.infer.get("with")
    if beside is None and q.name not in sites:
        if q.infer.get("is_auxiliary"):
            return q
        raise PlanError(message("the guide draws a latent that the model does not have on these data", site=q.name))
    return sites[beside or q.name]
