"""The M-step of a point-estimated latent under a conjugate prior: the mode of its posterior given all others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ppl_em.em.boundary import inside
from ppl_em.em.closed_form import KKT_TOLERANCE, ClosedForm, Parameters, Refused
from ppl_em.em.e_step import EStep, e_step, expected_log_joint
from ppl_em.em.held import Floor
from ppl_em.em.prior import prior_of
from ppl_em.mstep import NoClosedForm, WeightedSample
from ppl_em.mstep.conjugate import ENTRIES, Message
from ppl_em.mstep.conjugate_posterior import Space, as_vectors, canonical, mode, posterior
from ppl_em.plan.conjugacy import EVENT_DIMS, Conjugacy, Evidence, recognise
from ppl_em.plan.plan import Plan
from ppl_em.plan.rules import Update
from ppl_em.variational_em.sticks import break_counts

#: Proposals of a float32 program are stationary to this residual.
SINGLE = 1e-2
#: Values are differentiated this far from the boundary at least.
NUDGE = 1e-15


class Conjugate:
    """One latent whose likelihoods are all conjugate to its prior.

    Each step is the joint mode of its elements at the newest values of all others (ECM).

    Args:
        plan: the plan.
        update: its entry.
        floors: least distances from boundaries where priors are unbounded.

    Reference:
        Meng, X.-L. & Rubin, D. (1993). Maximum likelihood estimation via the ECM algorithm. Biometrika 80(2).
    """

    def __init__(self, plan: Plan, update: Update, floors: Mapping[str, Floor]) -> None:
        self.plan, self.update = plan, update
        (self.name,) = update.parameters
        sites = {s.name: s for s in plan.sites()}
        self.sites = [sites[n] for n in update.sites]
        self.own = next(s for s in self.sites if s.point == self.name)
        found = recognise(self.name, plan.program, self.sites)
        if not isinstance(found, Conjugacy):
            raise Refused(found)
        self.conjugacy = found
        self.children = [_child(plan, e) for e in found.evidence]
        self.constraint = plan.program.parameters[self.name].constraint
        self.floor = floors.get(self.name)
        self.verified = False

    def step(self, parameters: Parameters, e: EStep) -> Parameters:
        """The mode of the latent's posterior.

        Raises:
            Refused: the posterior has no mode of this form, or the mode is not stationary.
        """
        if not self.verified:
            lowered = any(c.update.sites[0] in e.moments for c in self.children)
            self._verify(parameters, e_step(self.plan, parameters) if lowered else e)
            self.verified = True
        return {self.name: self.mode(self.posterior(parameters, e), parameters)}

    def prior(self, parameters: Mapping[str, Tensor]) -> Any:
        """The prior in its conjugate family, elements in the parameter's shape, float64."""
        found = canonical(prior_of(self.own, parameters, parameters[self.name].shape))
        if found is None:
            raise Refused(f"the prior of '{self.name}' is of no conjugate family")
        vectors = self.conjugacy.prior == "MultivariateNormal" and type(found).__name__ == "Normal"
        return as_vectors(found) if vectors else found

    def message(self, parameters: Parameters, e: EStep) -> Message:
        """What all sites add to the prior's hyperparameters, in the parameter's shape."""
        total: Message = {}
        for evidence, child in zip(self.conjugacy.evidence, self.children, strict=True):
            part = self._message(evidence, child, parameters, e)
            total = {n: total[n] + t if n in total else t for n, t in part.items()}
        return total

    def posterior(self, parameters: Parameters, e: EStep) -> Any:
        """The latent's posterior given the values of all others and expected weights of the data.

        Raises:
            Refused: a link or a statistic is not of the conjugate form after all.
        """
        try:
            return posterior(self.prior(parameters), self.message(parameters, e))
        except NoClosedForm as error:
            raise Refused(str(error)) from error

    def mode(self, found: Any, parameters: Parameters) -> Tensor:
        """The mode of a posterior, inside the constraint."""
        lower = 0.0 if self.floor is None else self.floor.lower
        upper = None if self.floor is None else self.floor.upper
        try:
            value = mode(found, lower, cast(Space, self.plan.map_space), upper)
        except ValueError as error:
            raise Refused(str(error)) from error
        old = parameters[self.name]
        return inside(self.constraint, value.reshape(old.shape).to(old.dtype))

    def _message(self, evidence: Evidence, child: ClosedForm, parameters: Parameters, e: EStep) -> Message:
        return self.message_of(evidence, child, child.sample(parameters, e), parameters)

    def message_of(
        self, evidence: Evidence, child: ClosedForm, sample: WeightedSample, parameters: Parameters
    ) -> Message:
        """What a weighted sample of one site adds to the prior's hyperparameters."""
        by_row = evidence.pair.message(sample, None)
        elements = child.assembly.maps[evidence.argument]
        (_, where, index, slope, offset) = elements.entries[0]
        assert elements.cells is not None and index is not None
        cells = int(elements.cells.max()) + 1
        summed = {n: t.new_zeros(cells, *t.shape[1:]).index_add(0, elements.cells, t) for n, t in by_row.items()}
        shape = torch.Size(evidence.link.transform.image_shape(parameters[self.name].shape))
        dims = EVENT_DIMS.get(evidence.pair.prior, 0)
        if dims == 0 or evidence.pair.prior == "Dirichlet":
            flat = {n: t.reshape(-1)[where] for n, t in summed.items()}
            if slope is not None and offset is not None and evidence.pair.affine is not None:
                flat = evidence.pair.affine(flat, slope, offset)
            pooled = {n: _pool(t, index, shape.numel()).reshape(shape) for n, t in flat.items()}
            if self.conjugacy.prior == "MultivariateNormal":
                pooled["precision"] = torch.diag_embed(pooled["precision"])
            if self.conjugacy.prior == "Beta" and "counts" in pooled:
                won, lost = break_counts(pooled["counts"])
                return {"successes": won, "failures": lost}
            return pooled
        size = shape[-dims:].numel()
        block = (index // size).reshape(cells, size)[:, 0]
        batch = shape[: len(shape) - dims]
        entries = ENTRIES[evidence.pair.prior]
        return {
            n: _pool(t, block, batch.numel()).reshape((*batch, *t.shape[t.dim() - entries[n] :]))
            for n, t in summed.items()
        }

    def _verify(self, parameters: Parameters, e: EStep) -> None:
        """Q with the log-prior is stationary at the mode: the derivative of the densities themselves says so."""
        found = self.posterior(parameters, e)
        value = self.mode(found, parameters)
        residual = self._residual(found, value, parameters, e)
        tolerance = KKT_TOLERANCE if value.dtype == torch.float64 else SINGLE
        if not residual <= tolerance:
            raise Refused(f"the posterior's mode is not stationary for '{self.name}' (residual {residual:.1e})")

    def _residual(self, found: Any, value: Tensor, parameters: Parameters, e: EStep) -> float:
        """Largest slope of Q at the mode over one posterior standard deviation; held elements may only slope outwards."""
        name = self.conjugacy.prior
        simplex = name == "Dirichlet"
        at = value.detach().clone()
        if name in ("Dirichlet", "Beta"):
            at = at.clamp(NUDGE, None if simplex else 1 - NUDGE)
        leaf = at.requires_grad_()
        with torch.enable_grad():
            q = expected_log_joint(self.plan, self.sites, e.weights, {**parameters, self.name: leaf})
            (slope,) = torch.autograd.grad(q, leaf)
        slope, point = slope.double(), leaf.detach().double()
        low, high = self._at_edge(value)
        if name == "Wishart":
            slope = (slope + slope.mT) / 2
        if simplex:
            inner = torch.where(low, 0.0, point)
            slope = slope - (inner * slope).sum(-1, keepdim=True) / inner.sum(-1, keepdim=True)
        slope = torch.where(low, slope.clamp(min=0.0), torch.where(high, slope.clamp(max=0.0), slope))
        deviation = found.variance.reshape(point.shape).sqrt()
        deviation = torch.where(deviation.isfinite() & (deviation > 0), deviation, point.abs())
        if name != "Normal" and name != "MultivariateNormal" and name != "Wishart":
            # At the edge of the support, complementarity: the room that is left counts.
            deviation = torch.minimum(deviation, point.abs() if name != "Beta" else torch.minimum(point, 1 - point))
        return float(torch.nan_to_num(slope * deviation, nan=torch.inf).abs().max())

    def _at_edge(self, value: Tensor) -> tuple[Tensor, Tensor]:
        none = torch.zeros(value.shape, dtype=torch.bool)
        return (none, none) if self.floor is None else self.floor.held(value)


def _child(plan: Plan, evidence: Evidence) -> ClosedForm:
    """Reads the weighted sample of one site (its own rule of maximum likelihood is not asked)."""
    child = ClosedForm(plan, Update("closed form", (evidence.link.parameter,), (evidence.site,), by="family"))
    child.verified = True
    return child


def _pool(values: Tensor, index: Tensor, size: int) -> Tensor:
    return values.new_zeros(size, *values.shape[1:]).index_add(0, index, values)
