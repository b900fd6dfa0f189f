"""Conjugate pairs: which priors a likelihood's expected statistics update in closed form, and how.

A pair turns the weighted sample of a likelihood site into a *message*: what its data add to the hyperparameters of the
prior of one argument, row by row. Messages of all sites that share the parameter are added up;
:func:`ppl_em.mstep.conjugate_posterior.posterior` adds them to the prior and
:func:`~ppl_em.mstep.conjugate_posterior.mode` takes the maximum.

Reference:
    Gelman, A. et al. (2013). Bayesian Data Analysis, 3rd edition, chapters 2 and 3.
    Diaconis, P. & Ylvisaker, D. (1979). Conjugate priors for exponential families. Annals of Statistics 7(2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.mstep.given import GivenSample, LostPrecision
from ppl_em.mstep.sample import NoClosedForm, WeightedSample

Message = dict[str, Tensor]
"""What data add to a prior's hyperparameters, by name."""

#: Hyperparameters of each prior in which data add up, with the number of dimensions of one entry.
ENTRIES: Mapping[str, Mapping[str, int]] = {
    "Beta": {"successes": 0, "failures": 0},
    "Dirichlet": {"counts": 1},
    "Gamma": {"concentration": 0, "rate": 0},
    "InverseGamma": {"concentration": 0, "rate": 0},
    "Normal": {"precision": 0, "shift": 0},
    "MultivariateNormal": {"precision": 2, "shift": 1},
    "Wishart": {"df": 0, "scatter": 2},
}


@dataclass(frozen=True)
class Pair:
    """A likelihood's argument under a conjugate prior of the parameter that it is made of.

    Attributes:
        prior: name of the prior's family, a key of :data:`ENTRIES`.
        likelihood: name of the likelihood's family.
        argument: the likelihood's argument.
        transform: how the argument comes from the parameter (``"identity"``, ``"sqrt"``, …; names of
            :mod:`ppl_em.ir.transform`).
        message: maps a sample to its message by row (R, *entry). Its second argument is the posterior variance of the
            location by row ((R, *event), or (R, D, D) for vectors) where the location is itself uncertain; None where
            it is a point.
        affine: maps messages by row about ``slope · transform(parameter) + offset`` to messages about the parameter;
            None where only slope one and offset zero are conjugate.
    """

    prior: str
    likelihood: str
    argument: str
    transform: str
    message: Callable[[WeightedSample, Tensor | None], Message]
    affine: Callable[[Message, Tensor, Tensor], Message] | None = None

    def __str__(self) -> str:
        return f"{self.prior}–{self.likelihood}"


_PAIRS: dict[tuple[str, str, str, str], Pair] = {}


def find_pair(prior: str, likelihood: str, argument: str, transform: str = "identity") -> Pair | None:
    """The conjugate pair of a prior's family and a likelihood's argument, None if they are not conjugate.

    Args:
        prior: name of the prior's family, as :func:`~ppl_em.mstep.conjugate_posterior.canonical` gives it.
        likelihood: name of the likelihood's family.
        argument: name of its argument.
        transform: name of the bijection from the parameter to the argument.

    Example:
        >>> str(find_pair("Gamma", "Poisson", "rate"))
        'Gamma–Poisson'
        >>> find_pair("Gamma", "Normal", "scale") is None  # of the precision, not of the scale
        True
        >>> str(find_pair("Gamma", "Normal", "scale", "rsqrt"))
        'Gamma–Normal'
    """
    return _PAIRS.get((prior, likelihood, argument, transform))


def register_pair(pair: Pair) -> Pair:
    """Add a conjugate pair, or replace it."""
    _PAIRS[pair.prior, pair.likelihood, pair.argument, pair.transform] = pair
    return pair


def _add(
    prior: str,
    likelihoods: str,
    arguments: str,
    transforms: str,
    message: Callable[[WeightedSample, Tensor | None], Message],
    affine: Callable[[Message, Tensor, Tensor], Message] | None = None,
) -> None:
    for likelihood in likelihoods.split():
        for argument in arguments.split():
            for transform in transforms.split():
                register_pair(Pair(prior, likelihood, argument, transform, message, affine))


# Probabilities


def _categories(sample: WeightedSample, _: Tensor | None = None) -> Message:
    name = "probs" if "probs" in sample.args else "logits"
    return {"counts": sample.histogram(sample.args[name].value.shape[-1])}


def _trials(sample: WeightedSample, _: Tensor | None = None) -> Message:
    return {"counts": sample.sum("x")}


def _bernoulli(sample: WeightedSample, _: Tensor | None = None) -> Message:
    won = sample.sum("x")
    return {"successes": won, "failures": (sample.count() - won).clamp(min=0.0)}


def _binomial(sample: WeightedSample, _: Tensor | None = None) -> Message:
    won = sample.sum("x")
    return {"successes": won, "failures": (sample.count() * sample.rows("total_count") - won).clamp(min=0.0)}


def _geometric(sample: WeightedSample, _: Tensor | None = None) -> Message:
    return {"successes": sample.count(), "failures": sample.sum("x")}


def _negative_binomial(sample: WeightedSample, _: Tensor | None = None) -> Message:
    return {"successes": sample.sum("x"), "failures": sample.count() * sample.rows("total_count")}


def _complement(message: Message, slope: Tensor, offset: Tensor) -> Message:
    """The argument is the parameter or one minus it."""
    swapped = (slope == -1) & (offset == 1)
    if not bool((swapped | ((slope == 1) & (offset == 0))).all()):
        raise NoClosedForm("a probability is neither the parameter nor one minus it")
    won, lost = message["successes"], message["failures"]
    return {"successes": torch.where(swapped, lost, won), "failures": torch.where(swapped, won, lost)}


_add("Dirichlet", "Categorical", "probs logits", "identity", _categories)
_add("Dirichlet", "Categorical", "logits", "log", _categories)
_add("Dirichlet", "OneHotCategorical OneHotCategoricalStraightThrough Multinomial", "probs", "identity", _trials)
_add("Dirichlet", "OneHotCategorical OneHotCategoricalStraightThrough Multinomial", "logits", "log", _trials)
_add("Beta", "Bernoulli", "probs", "identity", _bernoulli, _complement)
_add("Beta", "Binomial", "probs", "identity", _binomial, _complement)
_add("Beta", "Geometric", "probs", "identity", _geometric, _complement)
_add("Beta", "NegativeBinomial", "probs", "identity", _negative_binomial, _complement)


# Rates


def _poisson(sample: WeightedSample, _: Tensor | None = None) -> Message:
    return {"concentration": sample.sum("x"), "rate": sample.count()}


def _exponential(sample: WeightedSample, _: Tensor | None = None) -> Message:
    return {"concentration": sample.count(), "rate": sample.sum("x")}


def _gamma(sample: WeightedSample, _: Tensor | None = None) -> Message:
    return {"concentration": sample.count() * sample.rows("concentration"), "rate": sample.sum("x")}


def _inverse_gamma(sample: WeightedSample, _: Tensor | None = None) -> Message:
    total = sample.sum("1/x", torch.reciprocal)
    return {"concentration": sample.count() * sample.rows("concentration"), "rate": total}


def _multiple(message: Message, slope: Tensor, offset: Tensor) -> Message:
    """A rate that is the parameter times a known exposure."""
    if not bool((offset == 0).all()) or not bool((slope > 0).all()):
        raise NoClosedForm("a rate is not a positive multiple of the parameter")
    return {**message, "rate": message["rate"] * slope}


_add("Gamma", "Poisson", "rate", "identity", _poisson, _multiple)
for _prior, _transform in (("Gamma", "identity"), ("InverseGamma", "reciprocal")):
    _add(_prior, "Exponential", "rate", _transform, _exponential, _multiple)
    _add(_prior, "Gamma", "rate", _transform, _gamma, _multiple)
    _add(_prior, "InverseGamma", "rate", _transform, _inverse_gamma, _multiple)


# Normal location, variance and precision


def _location(sample: WeightedSample, _: Tensor | None = None) -> Message:
    loc, precision = sample.rows("loc"), sample.rows("scale").pow(-2)
    count = sample.count()
    # Residuals about the current location, so that data far from zero lose no digits.
    return {"precision": count * precision, "shift": precision * (sample.residual(loc) + count * loc)}


def _squares(sample: WeightedSample, variance: Tensor | None = None) -> Message:
    squares, count = sample.deviation(sample.rows("loc")).clamp(min=0.0), sample.count()
    return {"concentration": count / 2, "rate": (squares if variance is None else squares + count * variance) / 2}


def _vector_location(sample: WeightedSample, _: Tensor | None = None) -> Message:
    loc, count = sample.rows("loc"), sample.count()
    precision = _precision(sample)
    pull = sample.residual(loc) + count[:, None] * loc
    return {
        "precision": count[:, None, None] * precision,
        "shift": torch.einsum("rde,re->rd", precision, pull),
    }


def _scatter(sample: WeightedSample, covariance: Tensor | None = None) -> Message:
    scatter, count = sample.outer(sample.rows("loc")), sample.count()
    if covariance is not None:
        scatter = scatter + count[:, None, None] * covariance
    return {"df": count, "scatter": (scatter + scatter.mT) / 2}


def _precision(sample: WeightedSample) -> Tensor:
    """Precision matrices by row, from whichever matrix the program gave."""
    if "precision_matrix" in sample.args:
        return sample.rows("precision_matrix")
    if "scale_tril" in sample.args:
        return torch.cholesky_inverse(sample.rows("scale_tril"))
    return torch.cholesky_inverse(torch.linalg.cholesky(sample.rows("covariance_matrix")))


def _on_logs(
    message: Callable[[WeightedSample, Tensor | None], Message],
) -> Callable[[WeightedSample, Tensor | None], Message]:
    def of_logs(sample: WeightedSample, variance: Tensor | None = None) -> Message:
        if isinstance(sample, GivenSample):
            raise LostPrecision("statistics of logarithms were not computed")
        blocks = tuple(type(b)(b.weights, b.values.double().log(), b.rows) for b in sample.blocks)
        return message(WeightedSample(sample.args, blocks, sample.num_rows), variance)

    return of_logs


def _shifted(message: Message, slope: Tensor, offset: Tensor) -> Message:
    """A location that is a known affine function of the parameter."""
    precision = message["precision"]
    return {"precision": precision * slope.square(), "shift": slope * (message["shift"] - precision * offset)}


def _unscaled(message: Message, slope: Tensor, offset: Tensor) -> Message:
    """A scale that is a known multiple of the root of the parameter (of its inverse)."""
    if not bool((offset == 0).all()):
        raise NoClosedForm("a scale has a fixed part besides the parameter's")
    return {**message, "rate": message["rate"] / slope.square()}


for _likelihood, _read in (("Normal", lambda m: m), ("LogNormal", _on_logs)):
    _add("Normal", _likelihood, "loc", "identity", _read(_location), _shifted)
    _add("InverseGamma", _likelihood, "scale", "sqrt", _read(_squares), _unscaled)
    _add("Gamma", _likelihood, "scale", "rsqrt", _read(_squares), _unscaled)
_add("MultivariateNormal", "MultivariateNormal", "loc", "identity", _vector_location)
_add("Wishart", "MultivariateNormal", "precision_matrix", "identity", _scatter)


def registered_pairs() -> tuple[Pair, ...]:
    """All conjugate pairs that are known."""
    return tuple(_PAIRS.values())
