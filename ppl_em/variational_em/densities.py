"""Expected log-densities: E_q[log p(x | θ)] as the family's own log-density at other arguments, plus a correction.

For an exponential family E_q[log p(x | θ)] = T(x)·E[η] − E[A(η)] + h(x) is again a member of the family at the arguments
whose natural parameters are E[η], up to a term that depends on no datum. What E-steps on log-factors can do, they can do
on these: they are sub-normalised.

Reference:
    Winn, J. & Bishop, C. (2005). Variational message passing. JMLR 6.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ppl_em.ir import Factor, Site
from ppl_em.variational_em.arguments import (
    Beliefs,
    Values,
    location,
    log_probabilities,
    log_weights,
    matrix_precision,
    precision,
    rate,
    vector_location,
)


@dataclass(frozen=True)
class Surrogate:
    """Where a family's log-density is E_q[log p(x | θ)], up to a correction.

    Args:
        arguments: the family's arguments.
        correction: to be added, by dimensions of the site.
    """

    arguments: Mapping[str, Factor]
    correction: Factor


def expected_log_factor(site: Site, beliefs: Beliefs, values: Values) -> Factor:
    """E_q[log p] of a site by its dimensions, mask applied, scale not.

    Args:
        site: a site whose family is in :data:`SURROGATES`.
        beliefs: expectations under q.
        values: parameters, posterior means of those that have a factor.
    """
    assert site.family is not None
    found = SURROGATES[site.family.__name__](site, beliefs, values)
    order = (*site.dims, *site.inner)
    arguments = {n: f.align(order) for n, f in found.arguments.items()}
    distribution = site.family(**arguments, **site.options, validate_args=False)
    log_prob = distribution.log_prob(site.value.align(order))
    wide = log_prob.reshape((1,) * (len(order) - log_prob.dim()) + tuple(log_prob.shape))
    return site.finish(Factor(wide, order) + found.correction)


def _constants(site: Site, values: Values, *without: str) -> dict[str, Factor]:
    return {n: Factor(a.evaluate(values).detach(), a.value.dims) for n, a in site.arguments.items() if n not in without}


def _normal(site: Site, beliefs: Beliefs, values: Values) -> Surrogate:
    m, p = location(site, beliefs, values), precision(site, beliefs, values)
    spread = p.mean * m.variance + p.multiple * m.relative
    correction = (p.log + p.mean.map(lambda t: -t.log()) + spread.map(torch.neg)).map(lambda t: 0.5 * t)
    return Surrogate({"loc": m.mean, "scale": p.mean.map(torch.rsqrt)}, correction)


def _multivariate_normal(site: Site, beliefs: Beliefs, values: Values) -> Surrogate:
    m, p = vector_location(site, beliefs, values), matrix_precision(site, beliefs, values)
    size = m.mean.tensor.shape[-1]
    trace = (p.mean * m.variance).map(lambda t: t.sum((-2, -1)))
    joint = (p.multiple * m.relative).map(lambda t: size * t)
    lost = p.log + p.mean.map(lambda t: -torch.linalg.slogdet(t).logabsdet)
    correction = (lost + trace.map(torch.neg) + joint.map(torch.neg)).map(lambda t: 0.5 * t)
    return Surrogate({"loc": m.mean, "precision_matrix": p.mean}, correction)


def _categorical(site: Site, beliefs: Beliefs, values: Values) -> Surrogate:
    logs = log_weights(site, beliefs, values)
    arguments = {**_constants(site, values, "probs", "logits"), "logits": logs}
    mass = logs.map(lambda t: torch.logsumexp(t, -1))
    trials = Factor(site.value.tensor.sum(-1), site.value.dims) if site.value.event_dim else None
    return Surrogate(arguments, mass if trials is None else mass * trials)


def _bernoulli(site: Site, beliefs: Beliefs, values: Values) -> Surrogate:
    won, lost = log_probabilities(site, beliefs, values)
    logits = won + lost.map(torch.neg)
    correction = won + logits.map(lambda t: -logsigmoid(t))
    arguments = _constants(site, values, "probs", "logits")
    if "total_count" in arguments:
        correction = correction * arguments["total_count"]
    elif "total_count" in site.options:
        correction = correction.map(lambda t: t * site.options["total_count"])
    return Surrogate({**arguments, "logits": logits}, correction)


def _geometric(site: Site, beliefs: Beliefs, values: Values) -> Surrogate:
    won, lost = log_probabilities(site, beliefs, values)
    probs = lost.map(lambda t: -torch.expm1(t))
    return Surrogate({"probs": probs}, won + probs.map(lambda t: -t.log()))


def _negative_binomial(site: Site, beliefs: Beliefs, values: Values) -> Surrogate:
    won, lost = log_probabilities(site, beliefs, values)
    complement = won.map(lambda t: torch.log(-torch.expm1(t)))  # of the probability exp E[log p]
    constants = _constants(site, values, "probs", "logits")
    if "total_count" in constants:
        total = constants["total_count"]
    else:
        total = Factor(won.tensor.new_tensor(float(site.options["total_count"])), ())
    correction = (lost + complement.map(torch.neg)) * total
    return Surrogate({**constants, "logits": won + complement.map(torch.neg)}, correction)


def _poisson(site: Site, beliefs: Beliefs, values: Values) -> Surrogate:
    found = rate(site, beliefs, values)
    geometric = found.log.map(torch.exp)
    return Surrogate({"rate": geometric}, geometric + found.mean.map(torch.neg))


def _gamma_like(site: Site, beliefs: Beliefs, values: Values) -> Surrogate:
    found = rate(site, beliefs, values)
    correction = found.log + found.mean.map(lambda t: -t.log())
    constants = _constants(site, values, "rate")
    if "concentration" in constants:
        correction = correction * constants["concentration"]
    elif "concentration" in site.options:
        correction = correction.map(lambda t: t * site.options["concentration"])
    return Surrogate({**constants, "rate": found.mean}, correction)


#: By name of the family.
SURROGATES: Mapping[str, Callable[[Site, Beliefs, Values], Surrogate]] = {
    "Normal": _normal,
    "LogNormal": _normal,
    "MultivariateNormal": _multivariate_normal,
    "Categorical": _categorical,
    "OneHotCategorical": _categorical,
    "Multinomial": _categorical,
    "Bernoulli": _bernoulli,
    "Binomial": _bernoulli,
    "Geometric": _geometric,
    "NegativeBinomial": _negative_binomial,
    "Poisson": _poisson,
    "Exponential": _gamma_like,
    "Gamma": _gamma_like,
    "InverseGamma": _gamma_like,
}


def rows_of(factor: Factor, dims: tuple[str, ...], sizes: Mapping[str, int]) -> Tensor:
    """A factor's entries by row: (R, *event), rows in the order of ``dims``."""
    event = tuple(factor.tensor.shape[len(factor.dims) :])
    wide = factor.align(dims).expand([*(sizes[d] for d in dims), *event])
    return wide.reshape(-1, *event)
