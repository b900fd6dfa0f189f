"""Expected values of a distribution's arguments under the factors of the global latents that they are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.ir import Argument, Factor, Link, Site
from ppl_em.variational_em.factors import Belief
from ppl_em.variational_em.sticks import expected_log_weights

Beliefs = Mapping[str, Belief]
"""Expectations under q by name of the global latent."""
Values = Mapping[str, Tensor]
"""Constrained values of all parameters: posterior means of those that have a factor."""


@dataclass(frozen=True)
class Location:
    """A normal distribution's mean under q.

    Args:
        mean: E[μ].
        variance: its variance (vectors: covariance), zero where known or where it is part of a joint factor.
        relative: its variance times the precision in a joint factor, zero elsewhere; by vector.
    """

    mean: Factor
    variance: Factor
    relative: Factor


@dataclass(frozen=True)
class Precision:
    """A normal distribution's precision under q, ``multiple`` times a global latent where it is one.

    Args:
        mean: E[τ] or E[Λ].
        log: E[log τ] or E[log |Λ|].
        multiple: the known multiple; one where the precision is known.
    """

    mean: Factor
    log: Factor
    multiple: Factor


@dataclass(frozen=True)
class Rate:
    """A rate, or another positive argument under a gamma factor.

    Args:
        mean: E[λ].
        log: E[log λ].
    """

    mean: Factor
    log: Factor


def linked(argument: Argument, beliefs: Beliefs) -> Iterator[tuple[Link, Belief, Tensor, Tensor]]:
    """Links of an argument to latents that have a factor: link, belief, where it holds, position of the element."""
    for link in argument.links:
        if link.parameter in beliefs:
            yield link, beliefs[link.parameter], link.index >= 0, link.index.clamp_min(0)


def slope_of(link: Link, like: Tensor) -> Tensor:
    """The link's slope, one where it has none."""
    return torch.ones_like(like) if link.slope is None else torch.where(link.index >= 0, link.slope.to(like), 1.0)


def location(site: Site, beliefs: Beliefs, values: Values) -> Location:
    """Mean of a normal distribution, element by element."""
    argument = site.arguments["loc"]
    mean = argument.evaluate(values).detach()
    variance, relative = torch.zeros_like(mean), torch.zeros_like(mean)
    for link, b, here, index in linked(argument, beliefs):
        assert b.variance is not None and b.relative is not None
        square = slope_of(link, mean).square()
        variance = torch.where(here, square * b.variance.reshape(-1)[index], variance)
        relative = torch.where(here, square * b.relative.reshape(-1)[index], relative)
    dims = argument.value.dims
    return Location(Factor(mean, dims), Factor(variance, dims), Factor(relative, dims))


def precision(site: Site, beliefs: Beliefs, values: Values) -> Precision:
    """Inverse variance of a normal distribution, element by element."""
    argument = site.arguments["scale"]
    scale = argument.evaluate(values).detach()
    mean, log, multiple = scale**-2, -2 * scale.log(), torch.ones_like(scale)
    for link, b, here, index in linked(argument, beliefs):
        assert b.precision is not None and b.log is not None
        times = slope_of(link, scale) ** -2
        mean = torch.where(here, times * b.precision.reshape(-1)[index], mean)
        log = torch.where(here, times.log() + b.log.reshape(-1)[index], log)
        multiple = torch.where(here, times, multiple)
    return Precision(*(Factor(t, argument.value.dims) for t in (mean, log, multiple)))


def vector_location(site: Site, beliefs: Beliefs, values: Values) -> Location:
    """Mean of a multivariate normal distribution."""
    argument = site.arguments["loc"]
    mean = argument.evaluate(values).detach()
    size = mean.shape[-1]
    covariance, relative = mean.new_zeros((*mean.shape, size)), mean.new_zeros(mean.shape[:-1])
    for _, b, here, index in linked(argument, beliefs):
        assert b.variance is not None and b.relative is not None
        here, vector = here[..., 0], index[..., 0] // size
        covariance = torch.where(here[..., None, None], b.variance.reshape(-1, size, size)[vector], covariance)
        relative = torch.where(here, b.relative.reshape(-1)[vector], relative)
    dims = argument.value.dims
    return Location(Factor(mean, dims), Factor(covariance, dims), Factor(relative, dims))


def matrix_precision(site: Site, beliefs: Beliefs, values: Values) -> Precision:
    """Precision matrix of a multivariate normal distribution, in whatever form the program gives it."""
    name = next(n for n in ("precision_matrix", "covariance_matrix", "scale_tril") if n in site.arguments)
    argument = site.arguments[name]
    given = argument.evaluate(values).detach()
    if any(k.parameter in beliefs and bool((k.index >= 0).all()) for k in argument.links):
        mean, log = given, given[..., 0, 0]  # nothing of it is known: all is replaced below
    else:
        root = given if name == "scale_tril" else torch.linalg.cholesky(given)
        half = root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        mean, log = (given, 2 * half) if name == "precision_matrix" else (torch.cholesky_inverse(root), -2 * half)
    size, multiple = given.shape[-1], torch.ones_like(log)
    for link, b, here, index in linked(argument, beliefs):
        assert b.precision is not None and b.log is not None
        here, matrix = here[..., 0, 0], index[..., 0, 0] // size**2
        times = slope_of(link, given)[..., 0, 0]
        matrices = times[..., None, None] * b.precision.reshape(-1, size, size)[matrix]
        mean = torch.where(here[..., None, None], matrices, mean)
        log = torch.where(here, size * times.log() + b.log.reshape(-1)[matrix], log)
        multiple = torch.where(here, times, multiple)
    return Precision(*(Factor(t, argument.value.dims) for t in (mean, log, multiple)))


def rate(site: Site, beliefs: Beliefs, values: Values) -> Rate:
    """Rate of a Poisson, exponential or gamma distribution."""
    argument = site.arguments["rate"]
    mean = argument.evaluate(values).detach()
    log = mean.log()
    for link, b, here, index in linked(argument, beliefs):
        assert b.precision is not None and b.log is not None  # of 1/θ for an inverse gamma, as the argument is
        slope = slope_of(link, mean)
        mean = torch.where(here, slope * b.precision.reshape(-1)[index], mean)
        log = torch.where(here, slope.log() + b.log.reshape(-1)[index], log)
    return Rate(Factor(mean, argument.value.dims), Factor(log, argument.value.dims))


def log_weights(site: Site, beliefs: Beliefs, values: Values) -> Factor:
    """E[log π] of a probability vector (the vector of expected logs does not sum to one)."""
    name = "probs" if "probs" in site.arguments else "logits"
    argument = site.arguments[name]
    given = argument.evaluate(values).detach()
    if name == "logits":
        log = torch.log_softmax(given, -1)
    else:
        log = (given / given.sum(-1, keepdim=True)).clamp_min(torch.finfo(given.dtype).eps).log()
    for link, b, here, index in linked(argument, beliefs):
        assert b.log is not None
        source = b.log
        if link.transform.longer:
            assert b.complement is not None
            source = expected_log_weights(b.log, b.complement)
        expected = source.reshape(-1)[index]
        if b.complement is not None and not link.transform.longer:  # a probability and its complement
            expected = torch.where(slope_of(link, given) < 0, b.complement.reshape(-1)[index], expected)
        log = torch.where(here, expected, log)
    return Factor(log, argument.value.dims)


def log_probabilities(site: Site, beliefs: Beliefs, values: Values) -> tuple[Factor, Factor]:
    """E[log p] and E[log (1 − p)] of a probability."""
    name = "probs" if "probs" in site.arguments else "logits"
    argument = site.arguments[name]
    given = argument.evaluate(values).detach()
    given = torch.sigmoid(given) if name == "logits" else given
    tiny = torch.finfo(given.dtype).eps
    log, complement = given.clamp_min(tiny).log(), (1 - given).clamp_min(tiny).log()
    for link, b, here, index in linked(argument, beliefs):
        assert b.log is not None and b.complement is not None
        own, other = b.log.reshape(-1)[index], b.complement.reshape(-1)[index]
        swapped = slope_of(link, given) < 0
        log = torch.where(here, torch.where(swapped, other, own), log)
        complement = torch.where(here, torch.where(swapped, own, other), complement)
    return Factor(log, argument.value.dims), Factor(complement, argument.value.dims)
