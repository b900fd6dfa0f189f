"""Completed data: what is missing, given what was observed of it, at the fitted parameters.

Reference:
    Little, R. & Rubin, D. (2002). Statistical Analysis with Missing Data, 2nd edition, chapter 10.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ppl_em.conditional_draws import conditional_draw
from ppl_em.distributions.observed_normal import conditional_mean
from ppl_em.distributions.partly_observed import PartlyObservedMixture
from ppl_em.errors import PplEmError, message
from ppl_em.ir import Factor
from ppl_em.plan.plan import Plan
from ppl_em.posterior import Posterior
from ppl_em.trace.footprint import isolated
from ppl_em.trace.layout import Layout
from ppl_em.trace.missing import innermost, reach, whole_numbers
from ppl_em.trace.record import Record, version_of
from ppl_em.trace.run import run_program
from ppl_em.trace.tracing import Source, trace_program

if TYPE_CHECKING:
    from ppl_em.result import FitResult

#: Largest whole number that is looked at for the mode of an unbounded count.
LARGEST_COUNT = 10_000


def impute(
    result: FitResult, args: tuple[Any, ...], kwargs: Mapping[str, Any], num_samples: int | None, seed: int | None
) -> dict[str, Tensor]:
    """See :meth:`ppl_em.FitResult.impute`."""
    if not args and not kwargs and getattr(result, "_loader", None) is not None:
        raise PplEmError(message("the training data came from a loader", hint="impute(batch), batch by batch"))
    source = replace(result._source_for(args, kwargs), time=None)
    values = result._values
    with isolated(source.seed), torch.no_grad():
        run = run_program(source.model, source.args, source.kwargs, parameters=values)
    found = {n: r for n, r in run.records.items() if r.role == "observed" and r.peeled is not None}
    observed = {n: _whole(r, run.records) for n, r in found.items()}
    if num_samples is not None:
        posterior = result.posterior(*args, **kwargs)
        completed = _drawn(source, values, posterior, observed, run.records, num_samples, seed)
    elif all(r.hidden is None for r in observed.values()):
        completed = {n: r.value.detach().clone() for n, r in observed.items()}
    else:
        completed = _expected(_unrolled(result, source, args, kwargs), values, observed)
    return {n.removesuffix("_observed") if _partner(n) in run.records else n: v for n, v in completed.items()}


def _partner(name: str) -> str:
    """Name of the latent part of a partly observed site (``obs_mask``), of which ``name`` may be the observed one."""
    return name.removesuffix("_observed") + "_unobserved" if name.endswith("_observed") else ""


def _whole(record: Record, records: Mapping[str, Record]) -> Record:
    """A partly observed site (``obs_mask``): what its mask hides is missing."""
    if _partner(record.name) not in records or not isinstance(record.mask, Tensor):
        return record
    hidden = ~reach(record.mask, record.value, len(record.fn.event_shape))
    return replace(record, hidden=hidden if bool(hidden.any()) else None)


def _unrolled(result: FitResult, source: Source, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Plan:
    """The plan with every step of a time axis as a site of its own."""
    if result.plan.method == "svi":
        why = "the posterior of what is latent is not exact, only draws of it can be had"
        raise PplEmError(message("conditional means are not available", why=why, hint="impute(num_samples=100)"))
    plan = result._plan_for(args, kwargs)
    if not plan.program.axes:
        return plan
    return result._plan_of(trace_program(source, values=result._values, freeze=result._frozen, witness=False))


# draws -----------------------------------------------------------------------------------------------------------


def _drawn(
    source: Source,
    values: Mapping[str, Tensor],
    posterior: Any,
    observed: Mapping[str, Record],
    everything: Mapping[str, Record],
    num_samples: int,
    seed: int | None,
) -> dict[str, Tensor]:
    """Joint draws of latents and of what is missing: latents from their posterior, then each site given them."""
    fresh = int(torch.Generator().seed() % 2**31) if seed is None else seed
    latents = posterior.sample(num_samples, fresh)
    split = {n for n in observed if _partner(n) in everything}
    found: dict[str, list[Tensor]] = {n: [] for n in observed}
    with isolated(fresh), torch.no_grad():
        for i in range(num_samples):
            given = posterior.by_step({n: v[i] for n, v in latents.items()})

            def assign(name: str, fn: Any, given: Mapping[str, Tensor] = given) -> Tensor:
                if name in given:
                    return given[name]
                if name in values:
                    return values[name]
                record = observed.get(name)
                if record is None:
                    return fn.sample()
                if record.hidden is None or name in split:
                    return record.value
                return conditional_draw(fn, record.value, record.hidden)

            run = run_program(
                source.model, source.args, source.kwargs, assign=assign, parameters=values, unobserve=True
            )
            for name, record in observed.items():
                value = run.records[name].value
                if record.hidden is not None and name in split:
                    value = torch.where(record.hidden, run.records[_partner(name)].value.to(value.dtype), value)
                found[name].append(value.detach().clone())
    return {n: torch.stack(v) for n, v in found.items()}


# conditional means -------------------------------------------------------------------------------------------------


@torch.no_grad()
def _expected(plan: Plan, values: Mapping[str, Tensor], observed: Mapping[str, Record]) -> dict[str, Tensor]:
    """Completed values: where there are holes, expectations over the posterior of the latents."""
    posterior = Posterior(plan, values)
    records = plan.program.runner.run(values)
    layout: Layout = plan.program.runner.layout
    completed = {}
    for name, record in observed.items():
        completed[name] = record.value.detach().clone()
        if record.hidden is None:
            continue
        if _partner(name) in plan.program.summed:
            found = _mode(posterior, _partner(name), record.value)
            completed[name] = torch.where(record.hidden, found, record.value)
            continue
        scope = plan.program.sites[name].scope
        enumerated = records[name]
        if enumerated.peeled is None:
            why = "execution paths differ in its distribution"
            raise _no_mean(name, why)
        weights = _weights(posterior, name, scope, plan)
        average = Averaging(layout, weights, scope, record, enumerated)
        found = average(_discrete_mode if whole_numbers(record.fn) else _mean)
        completed[name] = torch.where(record.hidden, found.to(record.value.dtype), record.value)
    return completed


def _mode(posterior: Posterior, latent: str, like: Tensor) -> Tensor:
    """The most probable value of each element of a summed latent, shaped as an observed value."""
    support = posterior.plan.program.latents[latent].values
    chosen = posterior.by_step({latent: support[posterior.probabilities(latent).argmax(-1)]})[latent]
    return chosen.to(like.dtype).expand(like.shape)


def _no_mean(name: str, why: str) -> PplEmError:
    return PplEmError(message("no conditional mean", site=name, why=why, hint="impute(num_samples=100) for draws"))


def _weights(posterior: Posterior, name: str, scope: tuple[str, ...], plan: Plan) -> Factor | None:
    """Joint posterior probabilities of the latents on which a site depends, plates and latents named."""
    if not scope:
        return None
    if len(scope) == 1:
        return posterior._block(scope[0]).marginal(scope[0])
    if len(scope) == 2:
        return posterior._block(scope[0]).pairwise(*scope)
    raise _no_mean(name, f"it depends on {len(scope)} latents at once")


class Averaging:
    """Averages what an enumerated run gives for each value of the latents, by position.

    Args:
        layout: registers of the latents.
        weights: posterior probabilities of the latents, or None where there are none.
        scope: these latents.
        record: the site as observed.
        enumerated: the site with its latents enumerated.
    """

    def __init__(
        self, layout: Layout, weights: Factor | None, scope: tuple[str, ...], record: Record, enumerated: Record
    ) -> None:
        self.record, self.enumerated = record, enumerated
        assert enumerated.peeled is not None
        self.base = enumerated.peeled.base
        self.event_dim = len(self.base.event_shape)
        self.registers = [layout.position(z) for z in scope]
        self.weights = None if weights is None else self._positional(layout, weights, scope)

    def _positional(self, layout: Layout, weights: Factor, scope: tuple[str, ...]) -> Tensor:
        """The probabilities with each dimension where an enumerated run has it; event dimensions of size 1 follow."""
        places = {f.name: f.dim for f in self.enumerated.frames if f.dim is not None}
        places |= {name: position for (_, position), name in layout.batches.items()}
        places |= {z: layout.position(z) for z in scope}
        positions = [places[d] for d in weights.dims]
        order = sorted(range(len(positions)), key=lambda i: positions[i])
        shape = [1] * -min(positions, default=0)
        for i in order:
            shape[positions[i]] = weights.tensor.shape[i]
        right = self.enumerated.inner + self.event_dim
        return weights.tensor.permute(order).reshape(*shape, *(1,) * right)

    def __call__(self, statistic: Any) -> Tensor:
        """A statistic of the site, shaped as its value."""
        return statistic(self)

    def over(self, tensor: Tensor) -> Tensor:
        """The expectation of (…, *batch, *event) over the latents, shaped as the value."""
        if self.weights is not None:
            width = max(tensor.dim(), self.weights.dim())
            tensor = tensor.reshape((1,) * (width - tensor.dim()) + tuple(tensor.shape)) * self.weights
            right = self.enumerated.inner + self.event_dim
            tensor = tensor.sum([p - right for p in self.registers], keepdim=True)
        shape = self.record.value.shape
        lead = tensor.dim() - len(shape)
        return (tensor.reshape(tensor.shape[lead:]) if lead > 0 else tensor).expand(shape)


def _mean(average: Averaging) -> Tensor:
    """Expected values given what was observed of the same event."""
    base, name, hidden = average.base, average.record.name, average.record.hidden
    assert hidden is not None
    value = torch.where(hidden, torch.nan, average.record.value)
    try:
        found = _conditional_mean(base, value)
    except NotImplementedError as error:
        raise _no_mean(name, f"{type(base).__name__} does not know its mean") from error
    found = average.over(found)
    if not bool(torch.isfinite(found[hidden]).all()):
        raise _no_mean(name, f"the mean of {type(base).__name__} is not finite")
    return found


def _conditional_mean(base: Any, value: Tensor) -> Tensor:
    """Means of all elements given those of the same event that are there, (*batch, *event)."""
    if isinstance(base, torch.distributions.MultivariateNormal):
        factor = base._unbroadcasted_scale_tril
        return conditional_mean(base.loc, factor @ factor.mT, value)
    if isinstance(base, PartlyObservedMixture):
        depth = len(base.event_shape)
        shares = base.log_joint(value).softmax(-1)
        part = _conditional_mean(base.part("component"), value.unsqueeze(-1 - depth))
        return (shares.reshape(shares.shape + (1,) * depth) * part).sum(-1 - depth)
    return base.mean


def _discrete_mode(average: Averaging) -> Tensor:
    """The most probable value of each element (of one-hot vectors and single numbers)."""
    base, record = average.base, average.enumerated
    if isinstance(innermost(base), torch.distributions.OneHotCategorical):
        probs = average.over(base.mean.expand((*base.batch_shape, *base.event_shape)))
        return torch.nn.functional.one_hot(probs.argmax(-1), probs.shape[-1])
    if average.event_dim:
        raise _no_mean(record.name, "it is made of whole numbers that depend on each other")
    shape = tuple(torch.broadcast_shapes(base.batch_shape, record.value.shape))
    best = torch.zeros(average.record.value.shape)
    highest = torch.full(average.record.value.shape, -1.0)
    for number in range(_largest(base) + 1):
        tried = record.value.new_full(shape, number)
        one = replace(record, value=tried, version=version_of(tried, record.peeled), elementwise=None)
        probs = average.over(one.log_prob().exp())
        better = probs > highest
        best, highest = torch.where(better, float(number), best), torch.where(better, probs, highest)
    return best


def _largest(base: Any) -> int:
    """The largest value of a family of whole numbers that may be the most probable one."""
    if base.has_enumerate_support:
        try:
            return int(base.enumerate_support(expand=False).max())
        except NotImplementedError:
            pass
    total = getattr(base, "total_count", None)
    if isinstance(total, Tensor) and getattr(base.support, "upper_bound", None) is not None:
        return int(total.max())
    reach = base.mean + 3 * base.variance.sqrt() + 1
    return int(min(float(reach.nan_to_num(0.0, LARGEST_COUNT).max()), LARGEST_COUNT))
