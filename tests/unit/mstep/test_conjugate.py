"""Conjugate pairs: posteriors against Bayes' rule through the families' own densities, modes against direct maximisation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.distributions import biject_to

from ppl_em.ir.transform import ELEMENTWISE
from ppl_em.mstep import Argument, Block, NoClosedForm, WeightedSample
from ppl_em.mstep.conjugate import ENTRIES, Pair, find_pair, register_pair, registered_pairs
from ppl_em.mstep.conjugate_posterior import as_vectors, canonical, mode, posterior


def number(value: Any) -> Tensor:
    """Double precision, whatever the default is while this module is read."""
    return torch.tensor(value, dtype=torch.float64)


TRANSFORMS = {t.name: t for t in ELEMENTWISE}
VECTOR = number([[2.0, 0.3], [0.3, 1.0]])
PRIORS: dict[str, Any] = {
    "Beta": dist.Beta(number(1.3), number(0.7)),
    "Dirichlet": dist.Dirichlet(number([0.4, 1.5, 2.0])),
    "Gamma": dist.Gamma(number(0.8), number(1.7)),
    "InverseGamma": dist.InverseGamma(number(2.5), number(1.2)),
    "Normal": dist.Normal(number(-0.5), number(1.4)),
    "MultivariateNormal": dist.MultivariateNormal(number([0.3, -1.0]), VECTOR),
    "Wishart": dist.Wishart(number(4.5), covariance_matrix=VECTOR),
}
#: The arguments of each likelihood besides the one in question.
OTHERS: dict[str, dict[str, Tensor]] = {
    "Binomial": {"total_count": number(6.0)},
    "NegativeBinomial": {"total_count": number(2.5)},
    "Gamma": {"concentration": number(1.9)},
    "InverseGamma": {"concentration": number(1.9)},
    "Normal": {"loc": number(0.8), "scale": number(0.6)},
    "LogNormal": {"loc": number(0.8), "scale": number(0.6)},
    "MultivariateNormal": {"loc": number([0.2, 0.4]), "precision_matrix": torch.linalg.inv(VECTOR)},
}


def values_of(name: str, seed: int, count: int = 5) -> list[Tensor]:
    """Values in the support of a prior."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name == "Wishart":  # torch's own sampler warns of singular draws that are not
            factors = torch.randn(count, 2, 2, dtype=torch.float64)
            return list(factors @ factors.mT + 0.3 * torch.eye(2))
        return list(PRIORS[name].sample((count,)))


def argument_of(pair: Pair, parameter: Tensor) -> dict[str, Tensor]:
    """All arguments of a pair's likelihood at a value of the parameter."""
    name = pair.argument
    own = parameter.log() if name == "logits" else TRANSFORMS[pair.transform].forward(parameter)
    return {**OTHERS.get(pair.likelihood, {}), name: own}


def draws(pair: Pair, generator: torch.Generator, count: int = 7) -> tuple[Tensor, Tensor]:
    """Data in the support of a pair's likelihood, and positive weights."""
    parameter = values_of(pair.prior, 0, 1)[0]
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(10_000, (1,), generator=generator)))
        x = getattr(dist, pair.likelihood)(**argument_of(pair, parameter), validate_args=False).sample((count,))
    return x, torch.rand(count, generator=generator) + 0.1


def sample_of(pair: Pair, x: Tensor, weights: Tensor, parameter: Tensor) -> WeightedSample:
    """One row that holds all data."""
    arguments = argument_of(pair, parameter)
    args = {n: Argument(a[None], torch.zeros(1, dtype=torch.int64)) for n, a in arguments.items()}
    event = getattr(dist, pair.likelihood)(**arguments, validate_args=False).event_shape
    block = Block(weights[None], x, torch.zeros(1, dtype=torch.int64))
    return WeightedSample(args, (block,), 1, len(event))


def message_of(pair: Pair, x: Tensor, weights: Tensor, parameter: Tensor) -> dict[str, Tensor]:
    return {n: m[0] for n, m in pair.message(sample_of(pair, x, weights, parameter), None).items()}


@pytest.mark.parametrize("pair", registered_pairs(), ids=lambda p: f"{p}-{p.argument}-{p.transform}")
def test_posteriors_are_prior_times_likelihood(pair: Pair) -> None:
    """log posterior − log prior − Σ w log p(x | θ) is one and the same constant, whatever θ."""
    generator = torch.Generator().manual_seed(3)
    x, weights = draws(pair, generator)
    prior = canonical(PRIORS[pair.prior])
    values = values_of(pair.prior, 1)
    message = message_of(pair, x, weights, values[0])
    assert set(message) == set(ENTRIES[pair.prior])
    found = posterior(prior, message)
    assert type(found) is type(prior)
    constants = []
    for value in values:
        likelihood = getattr(dist, pair.likelihood)(**argument_of(pair, value), validate_args=False).log_prob(x)
        constants.append(found.log_prob(value) - prior.log_prob(value) - (weights * likelihood).sum())
    spread = torch.stack(constants)
    torch.testing.assert_close(spread, spread[0].expand(5), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("pair", "slope", "offset"),
    [
        (find_pair("Gamma", "Poisson", "rate"), 2.5, 0.0),
        (find_pair("Gamma", "Exponential", "rate"), 2.5, 0.0),
        (find_pair("InverseGamma", "Exponential", "rate", "reciprocal"), 2.5, 0.0),
        (find_pair("Normal", "Normal", "loc"), -1.5, 0.7),
        (find_pair("InverseGamma", "Normal", "scale", "sqrt"), 3.0, 0.0),
        (find_pair("Gamma", "Normal", "scale", "rsqrt"), 3.0, 0.0),
        (find_pair("Beta", "Bernoulli", "probs"), -1.0, 1.0),
        (find_pair("Beta", "Geometric", "probs"), -1.0, 1.0),
    ],
    ids=str,
)
def test_known_multiples_and_shifts(pair: Pair, slope: float, offset: float) -> None:
    generator = torch.Generator().manual_seed(5)
    x, weights = draws(pair, generator)
    prior = canonical(PRIORS[pair.prior])
    values = values_of(pair.prior, 2)

    def arguments(value: Tensor) -> dict[str, Tensor]:
        image = slope * TRANSFORMS[pair.transform].forward(value) + offset
        return {**OTHERS.get(pair.likelihood, {}), pair.argument: image}

    args = {n: Argument(a[None], torch.zeros(1, dtype=torch.int64)) for n, a in arguments(values[0]).items()}
    block = Block(weights[None], x, torch.zeros(1, dtype=torch.int64))
    by_row = pair.message(WeightedSample(args, (block,), 1), None)
    assert pair.affine is not None
    moved = pair.affine(by_row, torch.tensor([slope]), torch.tensor([offset]))
    found = posterior(prior, {n: m[0] for n, m in moved.items()})
    constants = []
    for value in values:
        likelihood = getattr(dist, pair.likelihood)(**arguments(value), validate_args=False).log_prob(x)
        constants.append(found.log_prob(value) - prior.log_prob(value) - (weights * likelihood).sum())
    spread = torch.stack(constants)
    torch.testing.assert_close(spread, spread[0].expand(5), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "offset"), [("Poisson", 1.0), ("Bernoulli", 0.5)])
def test_other_multiples_are_refused(name: str, offset: float) -> None:
    pair = find_pair("Gamma", name, "rate") or find_pair("Beta", name, "probs")
    assert pair is not None and pair.affine is not None
    one = torch.ones(1)
    message = dict.fromkeys(ENTRIES[pair.prior], one)
    with pytest.raises(NoClosedForm):
        pair.affine(message, one, offset * one)


# Modes


def chart(constraint: Any, free: Tensor) -> tuple[Tensor, Tensor]:
    """A value from unconstrained coordinates, and its own free elements (a simplex has one less than it shows)."""
    if constraint is torch.distributions.constraints.positive_definite:
        factor = torch.zeros(2, 2).index_put((torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1])), free)
        factor = factor.tril(-1) + torch.diag_embed(factor.diagonal().exp())
        value = factor @ factor.mT
        return value, value[[0, 1, 1], [0, 0, 1]]
    value = biject_to(constraint)(free)
    return value, value[..., :-1] if constraint is torch.distributions.constraints.simplex else value


def direct(density: Any, *, jacobian: bool) -> Tensor:
    """Maximise a density by BFGS in unconstrained coordinates; the Jacobian is a determinant by differentiation."""
    constraint = density.support
    size = {"Dirichlet": 2, "MultivariateNormal": 2, "Wishart": 3}.get(type(density).__name__, 0)
    shape = (size,) if size else ()

    def loss(free: np.ndarray) -> tuple[float, np.ndarray]:
        u = torch.tensor(free, requires_grad=True)
        value, elements = chart(constraint, u.reshape(shape))
        total = density.log_prob(value)
        if jacobian:
            rows = [torch.autograd.grad(e, u, create_graph=True)[0] for e in elements.reshape(-1)]
            total = total + torch.stack(rows).det().abs().log()
        (slope,) = torch.autograd.grad(-total, u)
        return -float(total.detach()), slope.numpy()

    found = minimize(loss, np.zeros(max(1, size)), jac=True, method="BFGS", options={"gtol": 1e-9})
    return chart(constraint, torch.tensor(found.x).reshape(shape))[0]


INTERIOR: dict[str, Any] = {
    "Beta": dist.Beta(number(3.2), number(1.7)),
    "Dirichlet": dist.Dirichlet(number([1.4, 2.5, 6.0])),
    "Gamma": dist.Gamma(number(3.1), number(2.0)),
    "InverseGamma": dist.InverseGamma(number(3.1), number(2.0)),
    "Normal": dist.Normal(number(1.5), number(2.0)),
    "MultivariateNormal": dist.MultivariateNormal(number([1.0, 2.0]), VECTOR),
    "Wishart": dist.Wishart(number(7.5), covariance_matrix=VECTOR),
}


@pytest.mark.parametrize("space", ["constrained", "unconstrained"])
@pytest.mark.parametrize("name", INTERIOR)
def test_interior_modes_against_direct_maximisation(name: str, space: Any) -> None:
    density = INTERIOR[name]
    expected = direct(density, jacobian=space == "unconstrained")
    torch.testing.assert_close(mode(density, space=space), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    "concentration",
    [[0.5, 5.5, 2.0], [0.5, 0.6, 4.0], [0.1, 0.2, 0.3], [1.0, 1.0, 3.0], [1.0000001, 3.0, 2.0], [0.9, 0.9, 1.0]],
)
def test_held_dirichlet_modes_against_direct_maximisation(concentration: list[float]) -> None:
    floor = 0.01
    density = dist.Dirichlet(torch.tensor(concentration), validate_args=False)
    powers = np.array(concentration) - 1

    def loss(p: np.ndarray) -> float:
        return -float((powers * np.log(p)).sum())

    best = min(
        (
            minimize(
                loss,
                start,
                bounds=[(floor, 1.0)] * 3,
                constraints={"type": "eq", "fun": lambda p: p.sum() - 1},
                options={"ftol": 1e-14, "maxiter": 500},
            )
            for start in np.array([[0.4, 0.3, 0.3], [0.02, 0.02, 0.96], [0.02, 0.96, 0.02], [0.96, 0.02, 0.02]])
        ),
        key=lambda found: found.fun,
    )
    value = mode(density, floor)
    assert float(value.sum()) == pytest.approx(1.0) and bool((value >= floor).all())
    assert loss(value.numpy()) <= best.fun + 1e-7


@pytest.mark.parametrize(
    ("won", "lost", "expected"),
    [
        (0.4, 3.0, 0.01),
        (3.0, 0.4, 0.99),
        (0.4, 0.5, 0.01),
        (0.5, 0.4, 0.99),
        (1.3, 0.5, 0.99),
        (0.5, 1.3, 0.01),
        (1.0, 0.5, 0.99),
        (3.0, 2.0, 2 / 3),
        (1.0, 1.0, 0.5),
    ],
)
def test_held_beta_modes(won: float, lost: float, expected: float) -> None:
    density = dist.Beta(torch.tensor(won), torch.tensor(lost))
    assert float(mode(density, 0.01)) == pytest.approx(expected)
    grid = torch.linspace(0.01, 0.99, 9801)
    assert float(density.log_prob(grid).max()) == pytest.approx(float(density.log_prob(mode(density, 0.01))), abs=1e-6)


def test_bounded_densities_may_be_largest_on_the_boundary() -> None:
    assert mode(dist.Dirichlet(torch.tensor([1.0, 3.0, 2.0]))).tolist() == pytest.approx([0.0, 2 / 3, 1 / 3])
    assert float(mode(dist.Gamma(torch.tensor(1.0), torch.tensor(4.0)))) == 0.0
    assert float(mode(dist.Beta(torch.tensor(1.0), torch.tensor(4.0)))) == 0.0


def test_a_wishart_density_without_a_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="no mode"):
        mode(dist.Wishart(torch.tensor(2.5), covariance_matrix=torch.eye(2)))


@pytest.mark.parametrize(
    ("prior", "expected"),
    [
        (dist.Exponential(number(2.0)), dist.Gamma(number(1.0), number(2.0))),
        (dist.Chi2(number(3.0)), dist.Gamma(number(1.5), number(0.5))),
        (dist.Uniform(number(0.0), number(1.0)), dist.Beta(number(1.0), number(1.0))),
    ],
)
def test_other_names_of_conjugate_priors(prior: Any, expected: Any) -> None:
    x = torch.tensor([0.2, 0.7])
    torch.testing.assert_close(canonical(prior).log_prob(x), expected.log_prob(x))
    torch.testing.assert_close(prior.log_prob(x), expected.log_prob(x))
    assert canonical(dist.Uniform(torch.tensor(0.0), torch.tensor(2.0))) is None
    assert canonical(dist.HalfCauchy(torch.tensor(1.0))) is None


def test_independent_normals_as_one_vector() -> None:
    prior = dist.Normal(torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0]))
    x = torch.tensor([0.3, 0.4])
    torch.testing.assert_close(as_vectors(prior).log_prob(x), prior.log_prob(x).sum())


def test_an_uncertain_location_widens_squares_and_scatter() -> None:
    """E over an independent location of the log-likelihood is that of the mean plus the variance's share."""
    x, weights = torch.tensor([0.4, -1.0, 2.2]), torch.tensor([1.0, 0.5, 2.0])
    pair = find_pair("Gamma", "Normal", "scale", "rsqrt")
    assert pair is not None
    sample = sample_of(pair, x, weights, torch.tensor(1.0))
    variance = torch.tensor([0.3])
    at_mean, uncertain = pair.message(sample, None), pair.message(sample, variance)
    loc = OTHERS["Normal"]["loc"] + 0.3**0.5 * torch.tensor([1.0, -1.0])  # two points of this mean and variance
    expected = ((x[:, None] - loc) ** 2).mean(1) @ weights / 2
    assert float(uncertain["rate"]) == pytest.approx(float(expected))
    assert float(uncertain["rate"]) > float(at_mean["rate"])


def test_a_pair_of_ones_own() -> None:
    """A half-normal datum under a gamma prior of its precision: registered in three lines, found by name."""

    def squares(sample: WeightedSample, _: Tensor | None) -> dict[str, Tensor]:
        return {"concentration": sample.count() / 2, "rate": sample.sum("x²", torch.square) / 2}

    pair = register_pair(Pair("Gamma", "HalfNormal", "scale", "rsqrt", squares))
    try:
        assert find_pair("Gamma", "HalfNormal", "scale", "rsqrt") is pair
        test_posteriors_are_prior_times_likelihood(pair)
    finally:
        from ppl_em.mstep import conjugate

        del conjugate._PAIRS["Gamma", "HalfNormal", "scale", "rsqrt"]
