"""Random weighted samples of every family: parameters, ties, weights and data drawn from one seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import AffineTransform, ExpTransform, constraints

from ppl_em.distributions.compound import MixtureOf, TransformedOf, compound_family
from ppl_em.mstep import Argument, Block, WeightedSample

Draw = Callable[[torch.Generator, int], Tensor]


def uniform(low: float, high: float, *event: int) -> Draw:
    """Values by cell, uniform on [low, high]."""
    return lambda g, cells: low + (high - low) * torch.rand(cells, *event, generator=g, dtype=torch.float64)


def simplex(size: int) -> Draw:
    def draw(g: torch.Generator, cells: int) -> Tensor:
        p = 0.1 + torch.rand(cells, size, generator=g, dtype=torch.float64)
        return p / p.sum(-1, keepdim=True)

    return draw


def cholesky(size: int) -> Draw:
    def draw(g: torch.Generator, cells: int) -> Tensor:
        a = torch.randn(cells, size, size, generator=g, dtype=torch.float64)
        return torch.linalg.cholesky(a @ a.mT + torch.eye(size, dtype=torch.float64))

    return draw


def covariance(size: int) -> Draw:
    def draw(g: torch.Generator, cells: int) -> Tensor:
        factor = cholesky(size)(g, cells)
        return factor @ factor.mT

    return draw


def per_component(draw: Draw, size: int, apart: float) -> Draw:
    """Values by cell and component."""
    return lambda g, cells: torch.stack([draw(g, cells) + apart * k for k in range(size)], 1)


def mixture_of(component: type, constraint: Any, rows: str = "probs") -> type:
    """The family of mixtures of one family with one argument, as it is read from a program."""
    name = next(iter(component.arg_constraints))
    weights = constraints.simplex if rows == "probs" else constraints.real_vector
    declared = ((f"component_{name}", constraints.independent(constraint, 1)), (f"mixture_{rows}", weights))
    parts = (("component", component), ("mixture", dist.Categorical))
    return compound_family(MixtureOf, "MixtureSameFamily", parts, declared)


POSITIVE = constraints.positive
GAUSSIANS = compound_family(
    MixtureOf, "MixtureSameFamily", (("component", dist.Normal), ("mixture", dist.Categorical)),
    (
        ("component_loc", constraints.independent(constraints.real, 1)),
        ("component_scale", constraints.independent(POSITIVE, 1)),
        ("mixture_probs", constraints.simplex),
    ),
)  # fmt: skip
EXPONENTIATED = compound_family(
    TransformedOf, "TransformedDistribution", (("base", dist.Normal),),
    (("base_loc", constraints.real), ("base_scale", POSITIVE)), 0, (ExpTransform, AffineTransform),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One family in one parametrisation."""

    label: str
    family: type
    free: dict[str, Draw]
    fixed: dict[str, float] = field(default_factory=dict)
    event_dim: int = 0
    start: dict[str, Draw] = field(default_factory=dict)
    """Where the start is not drawn as the truth is."""
    off: float = 1.01
    """Factor that spoils a fitted value."""

    def __str__(self) -> str:
        return self.label


CASES: list[Case] = [
    Case("categorical probs", dist.Categorical, {"probs": simplex(4)}),
    Case("categorical logits", dist.Categorical, {"logits": uniform(-1, 1, 4)}),
    Case("one-hot probs", dist.OneHotCategorical, {"probs": simplex(3)}, event_dim=1),
    Case("one-hot logits", dist.OneHotCategorical, {"logits": uniform(-1, 1, 3)}, event_dim=1),
    Case("multinomial", dist.Multinomial, {"probs": simplex(3)}, {"total_count": 7}, event_dim=1),
    Case("bernoulli probs", dist.Bernoulli, {"probs": uniform(0.2, 0.8)}),
    Case("bernoulli logits", dist.Bernoulli, {"logits": uniform(-1, 1)}),
    Case("binomial probs", dist.Binomial, {"probs": uniform(0.2, 0.8)}, {"total_count": 6}),
    Case("binomial logits", dist.Binomial, {"logits": uniform(-1, 1)}, {"total_count": 6}),
    Case("geometric probs", dist.Geometric, {"probs": uniform(0.2, 0.8)}),
    Case("geometric logits", dist.Geometric, {"logits": uniform(-1, 1)}),
    Case("poisson", dist.Poisson, {"rate": uniform(0.5, 6)}),
    Case("normal", dist.Normal, {"loc": uniform(-2, 2), "scale": uniform(0.5, 2)}),
    Case("half-normal", dist.HalfNormal, {"scale": uniform(0.5, 2)}),
    Case("log-normal", dist.LogNormal, {"loc": uniform(-1, 1), "scale": uniform(0.3, 1)}),
    Case(
        "normal, covariance", dist.MultivariateNormal,
        {"loc": uniform(-2, 2, 3), "covariance_matrix": covariance(3)}, event_dim=1,
    ),
    Case(
        "normal, precision", dist.MultivariateNormal,
        {"loc": uniform(-2, 2, 3), "precision_matrix": covariance(3)}, event_dim=1,
    ),
    Case(
        "normal, scale_tril", dist.MultivariateNormal, {"loc": uniform(-2, 2, 3), "scale_tril": cholesky(3)},
        event_dim=1,
    ),
    Case(
        "normal, low rank", dist.LowRankMultivariateNormal,
        {"loc": uniform(-1, 1, 5), "cov_factor": uniform(1, 2, 5, 1), "cov_diag": uniform(1, 2, 5)}, event_dim=1,
    ),
    Case("exponential", dist.Exponential, {"rate": uniform(0.5, 3)}),
    Case("gamma", dist.Gamma, {"concentration": uniform(0.5, 4), "rate": uniform(0.5, 2)}),
    Case("inverse-gamma", dist.InverseGamma, {"concentration": uniform(2, 4), "rate": uniform(0.5, 2)}),
    Case("weibull", dist.Weibull, {"scale": uniform(0.5, 2), "concentration": uniform(0.7, 3)}),
    Case(
        "pareto", dist.Pareto, {"scale": uniform(0.1, 0.3), "alpha": uniform(1, 3)},
        start={"scale": uniform(0.01, 0.1)}, off=0.99,
    ),
    Case("beta", dist.Beta, {"concentration1": uniform(0.5, 3), "concentration0": uniform(0.5, 3)}),
    Case("dirichlet", dist.Dirichlet, {"concentration": uniform(0.5, 3, 3)}, event_dim=1),
    Case(
        "negative binomial, dispersion", dist.NegativeBinomial,
        {"total_count": uniform(1, 4), "probs": uniform(0.3, 0.6)},
    ),
    Case("negative binomial probs", dist.NegativeBinomial, {"probs": uniform(0.2, 0.7)}, {"total_count": 3}),
    Case("negative binomial logits", dist.NegativeBinomial, {"logits": uniform(-1, 1)}, {"total_count": 3}),
    Case(
        "beta-binomial", dist.BetaBinomial,
        {"concentration1": uniform(0.5, 2), "concentration0": uniform(0.5, 2)}, {"total_count": 8},
    ),
    Case(
        "dirichlet-multinomial", dist.DirichletMultinomial, {"concentration": uniform(0.5, 2, 3)},
        {"total_count": 9}, event_dim=1,
    ),
    Case(
        "zero-inflated poisson", dist.ZeroInflatedPoisson, {"rate": uniform(2, 5), "gate": uniform(0.2, 0.5)}
    ),
    Case(
        "zero-inflated poisson, logits", dist.ZeroInflatedPoisson,
        {"rate": uniform(2, 5), "gate_logits": uniform(-1, 0.5)},
    ),
    Case(
        "zero-inflated negative binomial", dist.ZeroInflatedNegativeBinomial,
        {"total_count": uniform(3, 5), "probs": uniform(0.4, 0.6), "gate": uniform(0.2, 0.5)},
    ),
    Case("laplace", dist.Laplace, {"loc": uniform(-2, 2), "scale": uniform(0.5, 2)}),
    Case("student", dist.StudentT, {"df": uniform(2, 5), "loc": uniform(-1, 1), "scale": uniform(0.5, 2)}),
    Case("cauchy", dist.Cauchy, {"loc": uniform(-1, 1), "scale": uniform(0.5, 2)}),
    Case("half-cauchy", dist.HalfCauchy, {"scale": uniform(0.5, 2)}),
    Case("logistic", dist.Logistic, {"loc": uniform(-1, 1), "scale": uniform(0.5, 2)}),
    Case("soft laplace", dist.SoftLaplace, {"loc": uniform(-1, 1), "scale": uniform(0.5, 2)}),
    Case("gumbel", dist.Gumbel, {"loc": uniform(-1, 1), "scale": uniform(0.5, 2)}),
    Case(
        "mixture of poissons", mixture_of(dist.Poisson, POSITIVE),
        {"component_rate": per_component(uniform(1, 2), 2, 12), "mixture_probs": simplex(2)},
    ),
    Case(
        "mixture of poissons, logits", mixture_of(dist.Poisson, POSITIVE, "logits"),
        {"component_rate": per_component(uniform(1, 2), 2, 12), "mixture_logits": uniform(-1, 1, 2)},
    ),
    Case(
        "mixture of normals of one scale", GAUSSIANS,
        {
            "component_loc": per_component(uniform(-2, 0), 2, 6), "component_scale": uniform(0.5, 1, 1),
            "mixture_probs": simplex(2),
        },
    ),
    Case(
        "transformed normal", EXPONENTIATED, {"base_loc": uniform(-1, 1), "base_scale": uniform(0.3, 1)},
        {"transform1_loc": 2.0, "transform1_scale": 3.0},
    ),
    Case("von mises", dist.VonMises, {"loc": uniform(-2, 2), "concentration": uniform(0.5, 4)}),
]  # fmt: skip


def random_sample(
    case: Case, seed: int, rows: int = 4, size: int = 60, ties: str = "random", per_row: bool = False
) -> WeightedSample:
    """Data from the family at random parameters, random weights, and arguments at other random values.

    Args:
        case: the family.
        seed: seed of everything.
        rows: number of rows R.
        size: number of data I of each of two blocks.
        ties: ``"none"`` (a cell for each row), ``"random"`` (each argument its own partition of the rows).
        per_row: whether each row has its own data.
    """
    g = torch.Generator().manual_seed(seed)
    arguments, truth = {}, {}
    for name, draw in case.free.items():
        cells = _cells(g, rows, ties)
        count = int(cells.max()) + 1
        arguments[name] = Argument(case.start.get(name, draw)(g, count)[cells], cells)
        truth[name] = draw(g, count)[cells]
    for name, value in case.fixed.items():
        truth[name] = torch.full((rows,), value, dtype=torch.float64)
        arguments[name] = Argument(truth[name])
    blocks = (
        _block(case, g, truth, torch.arange(rows), size, per_row),
        _block(case, g, truth, torch.arange(1, rows), size, per_row),
    )
    return WeightedSample(arguments, blocks, rows, case.event_dim)


def _cells(g: torch.Generator, rows: int, ties: str) -> Tensor:
    if ties == "none":
        return torch.arange(rows)
    return torch.unique(torch.randint(0, rows, (rows,), generator=g), return_inverse=True)[1]


def _block(case: Case, g: torch.Generator, truth: dict[str, Tensor], rows: Tensor, size: int, per_row: bool) -> Block:
    given = {name: value[rows] for name, value in truth.items()}
    if case.family is dist.Multinomial:
        given["total_count"] = int(given["total_count"][0])
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(1 << 30, (1,), generator=g)))
        draws = case.family(**given).sample((size,)).transpose(0, 1)
    weights = torch.rand(len(rows), size, generator=g, dtype=torch.float64)
    weights = weights * (torch.rand(len(rows), size, generator=g) > 0.2)
    if per_row:
        return Block(weights, draws, rows)
    which = torch.randint(0, len(rows), (size,), generator=g)
    return Block(weights, draws[which, torch.arange(size)], rows)
