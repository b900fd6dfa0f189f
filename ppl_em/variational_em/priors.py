"""Priors of global latents: hyperparameters, the posterior factor, and E_q[log p(θ)] − E_q[log q(θ)]."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_em.ir import Factor, Site
from ppl_em.mstep.conjugate import Message
from ppl_em.variational_em.arguments import (
    Beliefs,
    Location,
    Precision,
    Values,
    location,
    matrix_precision,
    precision,
    rate,
    vector_location,
)
from ppl_em.variational_em.factors import Hyper, divergence, entropy
from ppl_em.variational_em.nodes import Node
from ppl_em.variational_em.statistics import rows_of_value


def prior_hyperparameters(node: Node, beliefs: Beliefs, values: Values) -> dict[str, Tensor]:
    """The prior as a member of the factor's family; arguments made of other latents at their expectations.

    Args:
        node: the latent.
        beliefs: expectations of the others.
        values: parameters, posterior means of those that have a factor.

    Returns:
        Hyperparameters as :data:`~ppl_em.variational_em.factors.HYPERPARAMETERS` names them, float64.
    """
    site, family = node.site, node.family
    batch = node.shape[: len(node.shape) - len(_event(node))]
    if family in ("Normal", "MultivariateNormal"):
        found = _location(node, beliefs, values)
    elif family == "Wishart":
        found = {"df": _wide(site, "df", values), "inverse_scale": _inverse_scale(site, values)}
    elif family in ("Gamma", "InverseGamma"):
        concentration, expected = _gamma(site, beliefs, values)
        found = {"concentration": concentration, "rate": expected}
    elif site.family is not None and site.family.__name__ == "Uniform":
        one = torch.ones(batch, dtype=torch.float64)
        found = {"concentration1": one, "concentration0": one.clone()}
    else:
        names = ("concentration",) if family == "Dirichlet" else ("concentration1", "concentration0")
        found = {n: _wide(site, n, values) for n in names}
    shapes = {"df": batch, "relative_precision": batch}
    shapes["precision"] = (*node.shape, node.shape[-1]) if family == "MultivariateNormal" else node.shape
    return {n: t.double().reshape(shapes.get(n, node.shape)).clone() for n, t in found.items()}


def posterior(node: Node, prior: Hyper, message: Message) -> dict[str, Tensor]:
    """The prior with what the sites add to its natural parameters.

    Args:
        node: the latent.
        prior: its hyperparameters.
        message: additions by name, one entry for each element (vector, matrix) of the latent.
    """
    family = node.family
    if family == "Dirichlet":
        return {"concentration": prior["concentration"] + message["counts"].reshape(node.shape)}
    if family == "Beta":
        won, lost = (message[n].reshape(node.shape) for n in ("successes", "failures"))
        return {"concentration1": prior["concentration1"] + won, "concentration0": prior["concentration0"] + lost}
    if family in ("Gamma", "InverseGamma"):
        return {n: prior[n] + message[n].reshape(node.shape) for n in ("concentration", "rate")}
    if family == "Wishart":
        scatter = prior["inverse_scale"] + message["scatter"].reshape(prior["inverse_scale"].shape)
        return {
            "df": prior["df"] + message["df"].reshape(prior["df"].shape),
            "inverse_scale": (scatter + scatter.mT) / 2,
        }
    return _posterior_location(node, prior, message)


def _posterior_location(node: Node, prior: Hyper, message: Message) -> dict[str, Tensor]:
    shift = message["shift"].reshape(node.shape)
    if node.joint is not None:
        own = prior["relative_precision"]
        added = message["precision"]
        added = added[:, 0, 0] if node.family == "MultivariateNormal" else added
        total = own + added.reshape(own.shape)
        wide = (own[..., None], total[..., None]) if node.family == "MultivariateNormal" else (own, total)
        return {"loc": (wide[0] * prior["loc"] + shift) / wide[1], "relative_precision": total}
    own = prior["precision"]
    total = own + message["precision"].reshape(own.shape)
    if node.family == "Normal":
        return {"loc": (own * prior["loc"] + shift) / total, "precision": total}
    pull = (own @ prior["loc"][..., None])[..., 0] + shift
    loc = torch.cholesky_solve(pull[..., None], torch.linalg.cholesky(total))[..., 0]
    return {"loc": loc, "precision": (total + total.mT) / 2}


def gain(node: Node, hyper: Hyper, beliefs: Beliefs, values: Values) -> Tensor:
    """E_q[log p(θ)] − E_q[log q(θ)] of one latent, summed over its elements: minus its divergence, nats.

    Args:
        node, hyper: the latent and its factor.
        beliefs: expectations under all factors.
        values: parameters, posterior means of those that have a factor.
    """
    if node.family in ("Normal", "MultivariateNormal"):
        return _location_gain(node, hyper, beliefs, values)
    prior = prior_hyperparameters(node, beliefs, values)
    if node.family not in ("Gamma", "InverseGamma"):
        return -divergence(node.family, hyper, prior).sum()
    own = beliefs[node.name]
    assert own.log is not None and own.precision is not None
    a = prior["concentration"]
    log_rate = rows_of_value(node.site, rate(node.site, beliefs, values).log).reshape(node.shape)
    if node.site.family is not None and node.site.family.__name__ == "Chi2":
        log_rate = prior["rate"].log()
    expected = a * log_rate - torch.lgamma(a) + (a - 1) * own.log - prior["rate"] * own.precision
    return (expected + entropy(node.family, hyper)).sum()


def _location_gain(node: Node, hyper: Hyper, beliefs: Beliefs, values: Values) -> Tensor:
    vector = node.family == "MultivariateNormal"
    above, p = _prior_moments(node, beliefs, values)
    own = beliefs[node.name]
    assert own.variance is not None and own.relative is not None
    size = node.shape[-1] if vector else 1
    mean, spread, relative = (
        rows_of_value(node.site, f).double() for f in (above.mean, above.variance, above.relative)
    )
    tau, log, multiple = (rows_of_value(node.site, f).double() for f in (p.mean, p.log, p.multiple))
    shift = own.mean.reshape(mean.shape) - mean
    if vector:
        second = shift[..., :, None] * shift[..., None, :] + own.variance.reshape(spread.shape) + spread
        square = (tau * second).sum((-2, -1))
    else:
        square = tau * (shift.square() + own.variance.reshape(-1) + spread)
    square = square + size * multiple * (own.relative.reshape(-1) + relative)
    expected = 0.5 * (log - square - size * math.log(2 * math.pi))
    shared = None
    if node.joint is not None:
        partner = beliefs[node.joint.partner].log
        assert partner is not None
        shared = partner.reshape(-1)[node.joint.owner].reshape(hyper["relative_precision"].shape)
    return expected.sum() + entropy(node.family, hyper, shared).sum()


def _prior_moments(node: Node, beliefs: Beliefs, values: Values) -> tuple[Location, Precision]:
    others = {n: b for n, b in beliefs.items() if n != node.name}
    if node.family == "MultivariateNormal":
        return vector_location(node.site, others, values), matrix_precision(node.site, others, values)
    return location(node.site, others, values), precision(node.site, others, values)


def _location(node: Node, beliefs: Beliefs, values: Values) -> dict[str, Tensor]:
    above, p = _prior_moments(node, beliefs, values)
    loc = rows_of_value(node.site, above.mean)
    if node.joint is not None:
        return {"loc": loc, "relative_precision": node.joint.ratio}
    return {"loc": loc, "precision": rows_of_value(node.site, p.mean)}


def _gamma(site: Site, beliefs: Beliefs, values: Values) -> tuple[Tensor, Tensor]:
    assert site.family is not None
    name = site.family.__name__
    if name == "Chi2":
        half = _wide(site, "df", values) / 2
        return half, torch.full_like(half, 0.5)
    expected = rows_of_value(site, rate(site, beliefs, values).mean)
    if name == "Exponential":
        return torch.ones_like(expected), expected
    return _wide(site, "concentration", values), expected


def _inverse_scale(site: Site, values: Values) -> Tensor:
    name = next(n for n in ("precision_matrix", "covariance_matrix", "scale_tril") if n in site.arguments)
    given = _wide(site, name, values)
    if name == "precision_matrix":
        return given
    return torch.cholesky_inverse(given if name == "scale_tril" else torch.linalg.cholesky(given))


def _wide(site: Site, name: str, values: Mapping[str, Tensor]) -> Tensor:
    """An argument of a prior for every element of its value."""
    if name not in site.arguments:
        return rows_of_value(site, Factor(torch.tensor(float(site.options[name]), dtype=torch.float64), ()))
    argument = site.arguments[name]
    return rows_of_value(site, Factor(argument.evaluate(values).detach().double(), argument.value.dims))


def _event(node: Node) -> tuple[int, ...]:
    return node.shape[len(node.shape) - {"Dirichlet": 1, "MultivariateNormal": 1, "Wishart": 2}.get(node.family, 0) :]
