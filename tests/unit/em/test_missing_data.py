"""Data with holes: NaN in an observed tensor is integrated out exactly, and the likelihood of the rest is maximised."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.distributions import constraints

import ppl_em
from ppl_em.em.e_step import e_step, expected_log_joint, objective

DATA = Path(__file__).parents[3] / "models" / "data"
STATES = 2


def holes(x: Tensor, share: float, seed: int) -> Tensor:
    """The data with a share of the entries missing, completely at random; one datum is missing altogether."""
    generator = torch.Generator().manual_seed(seed)
    x = x.clone()
    x[torch.rand(x.shape, generator=generator) < share] = torch.nan
    x[7] = torch.nan
    return x


def simulated(count: int = 150, seed: int = 3) -> Tensor:
    """Two correlated clouds in four dimensions."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.rand(count, generator=generator) < 0.4
    mixing = torch.randn(2, 4, 4, generator=generator) * 0.5 + torch.eye(4)
    noise = torch.randn(count, 4, generator=generator)
    loc = torch.tensor([[0.0, 0.0, 1.0, -1.0], [3.0, -2.0, 0.0, 2.0]])
    return loc[z.long()] + torch.einsum("nde,ne->nd", mixing[z.long()], noise)


def faithful() -> Tensor:
    return torch.tensor(pd.read_csv(DATA / "faithful.csv").to_numpy(float))


def diagonal(x: Tensor) -> None:
    size = x.shape[-1]
    weights = pyro.param("weights", torch.ones(STATES) / STATES, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.zeros(STATES, size))
    scale = pyro.param("scale", torch.ones(STATES, size), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], scale[z]).to_event(1), obs=x)


def full(argument: str, tied: bool = False) -> Callable[[Tensor], None]:
    """A mixture of multivariate normals in one of the three parametrisations, the matrix tied or not."""
    constraint = constraints.lower_cholesky if argument == "scale_tril" else constraints.positive_definite

    def model(x: Tensor) -> None:
        size = x.shape[-1]
        weights = pyro.param("weights", torch.ones(STATES) / STATES, constraint=constraints.simplex)
        loc = pyro.param("loc", torch.zeros(STATES, size))
        start = torch.eye(size) if tied else torch.eye(size).repeat(STATES, 1, 1)
        matrix = pyro.param("matrix", start, constraint=constraint)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            chosen = matrix if tied else matrix[z]
            pyro.sample("x", dist.MultivariateNormal(loc[z], **{argument: chosen}), obs=x)

    return model


# The likelihood of what is observed, written out datum by datum, pattern by pattern.


def observed_log_likelihood(x: Tensor, weights: Tensor, loc: Tensor, covariance: Tensor) -> Tensor:
    """Σ_i log Σ_k w_k N(x_i,o | μ_k,o, Σ_k,oo), summed over patterns of observed entries."""
    total = torch.zeros(())
    seen = ~x.isnan()
    for pattern in torch.unique(seen, dim=0):
        if not bool(pattern.any()):
            continue
        rows = x[(seen == pattern).all(1)][:, pattern]
        terms = []
        for k in range(len(weights)):
            part = covariance[k][pattern][:, pattern]
            deviation = rows - loc[k][pattern]
            square = (deviation @ torch.linalg.inv(part) * deviation).sum(1)
            terms.append(weights[k].log() - 0.5 * (square + torch.logdet(2 * math.pi * part)))
        total = total + torch.stack(terms).logsumexp(0).sum()
    return total


def direct_maximum(x: Tensor, start: dict[str, Tensor], kind: str) -> tuple[float, dict[str, Tensor]]:
    """L-BFGS on the hand-written likelihood from a start."""
    free = {
        "weights": start["weights"].log(),
        "loc": start["loc"].clone(),
        "factor": torch.linalg.cholesky(start["covariance"]),
    }
    free = {n: v.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for n, v in free.items()}

    def values() -> dict[str, Tensor]:
        factor = free["factor"].tril()
        if kind == "diagonal":
            factor = torch.diag_embed(factor.diagonal(dim1=-2, dim2=-1))
        if kind == "tied":
            factor = factor[:1].expand_as(factor)
        return {
            "weights": free["weights"].softmax(0),
            "loc": free["loc"],
            "covariance": factor @ factor.mT,
        }

    optimiser = torch.optim.LBFGS(
        free.values(), max_iter=2000, tolerance_grad=1e-10, tolerance_change=1e-15, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = -observed_log_likelihood(x, **values())
        loss.backward()
        return loss

    optimiser.step(closure)
    found = {n: v.detach() for n, v in values().items()}
    return float(observed_log_likelihood(x, **found)), found


def covariance_of(result: ppl_em.FitResult, argument: str) -> Tensor:
    if argument == "scale":
        return torch.diag_embed(result.params["scale"].square())
    matrix = result.params["matrix"]
    if argument == "scale_tril":
        matrix = matrix @ matrix.mT
    elif argument == "precision_matrix":
        matrix = torch.linalg.inv(matrix)
    return matrix if matrix.dim() == 3 else matrix.expand(STATES, *matrix.shape)


CASES = {
    "diagonal": (diagonal, "scale", "diagonal"),
    "covariance_matrix": (full("covariance_matrix"), "covariance_matrix", "full"),
    "scale_tril": (full("scale_tril"), "scale_tril", "full"),
    "precision_matrix": (full("precision_matrix"), "precision_matrix", "full"),
    "tied": (full("covariance_matrix", tied=True), "covariance_matrix", "tied"),
}


@pytest.mark.parametrize("data", ["faithful", "simulated"])
@pytest.mark.parametrize("case", CASES)
def test_a_mixture_with_holes_reaches_the_direct_maximum(case: str, data: str) -> None:
    model, argument, kind = CASES[case]
    x = holes(faithful() if data == "faithful" else simulated(), 0.2, seed=1)
    result = ppl_em.fit(model, x, restarts=3, method=ppl_em.EM(tol=1e-10, max_steps=3000), seed=0)
    assert result.converged and result.exact
    estimates = {**{n: result.params[n] for n in ("weights", "loc")}, "covariance": covariance_of(result, argument)}
    assert result.log_likelihood == pytest.approx(float(observed_log_likelihood(x, **estimates)), abs=1e-8)
    best, found = direct_maximum(x, estimates, kind)
    assert result.log_likelihood == pytest.approx(best, abs=1e-6)
    for name, value in found.items():
        size = value.abs().max()
        assert torch.allclose(estimates[name], value, atol=2e-4 * float(size)), name


@pytest.mark.parametrize("case", CASES)
def test_law_4_plain_em_ascends_and_law_3_its_gradient_is_that_of_q(case: str) -> None:
    model = CASES[case][0]
    x = holes(simulated(60), 0.2, seed=2)
    result = ppl_em.fit(
        model, x, restarts=1, method=ppl_em.EM(accelerate=False, tol=0, max_steps=25), init="data", seed=1
    )
    assert bool((result.history.diff() > -1e-9).all())
    plan = result.plan
    early = ppl_em.fit(
        model, x, restarts=1, method=ppl_em.EM(accelerate=False, tol=0, max_steps=2), init="data", seed=1
    )
    leaves = {n: v.clone().requires_grad_() for n, v in early.params.items()}
    slope = torch.autograd.grad(objective(plan, leaves), list(leaves.values()))
    weights = e_step(plan, early.params).weights
    q = expected_log_joint(plan, plan.sites(), weights, leaves)
    for left, right in zip(slope, torch.autograd.grad(q, list(leaves.values())), strict=True):
        assert torch.allclose(left, right, rtol=1e-7, atol=1e-7 * float(left.abs().max()))


@pytest.mark.parametrize("case", ["diagonal", "covariance_matrix"])
def test_a_datum_that_is_missing_altogether_counts_nothing(case: str) -> None:
    model = CASES[case][0]
    x = holes(simulated(60), 0.2, seed=2)
    there = ~x.isnan().all(1)
    start = {"loc": torch.stack([x[0].nan_to_num(), x[1].nan_to_num() + 1])}
    options = {"method": ppl_em.EM(tol=0, max_steps=20), "init": start, "restarts": 1}
    whole, rest = ppl_em.fit(model, x, **options), ppl_em.fit(model, x[there], **options)
    assert abs(float(whole.log_prob()[7])) < 1e-12
    assert whole.log_likelihood == pytest.approx(rest.log_likelihood, abs=1e-9)
    for name in whole.params:
        assert torch.allclose(whole.params[name], rest.params[name], atol=1e-10), name


def test_no_holes_gives_the_program_without_them() -> None:
    """A hole far away leaves the rest of the arithmetic as it was: the closed form of complete data."""
    x = simulated(80)
    more = torch.cat([x, torch.full((1, 4), torch.nan)])
    method = ppl_em.EM(tol=0, max_steps=15, accelerate=False)
    start = {"loc": x[:2]}
    a = ppl_em.fit(full("covariance_matrix"), x, method=method, init=start, restarts=1)
    b = ppl_em.fit(full("covariance_matrix"), more, method=method, init=start, restarts=1)
    assert torch.allclose(a.history, b.history, atol=1e-9)


# chains


def hmm(x: Tensor) -> None:
    initial = pyro.param("initial", torch.tensor([0.6, 0.4]), constraint=constraints.simplex)
    table = pyro.param("table", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 1.5]))
    z = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(initial if z is None else table[z]))
        pyro.sample(f"x_{t}", dist.Normal(loc[z], 0.8), obs=x[t])


def fast_hmm(x: Tensor) -> None:
    initial = pyro.param("initial", torch.tensor([0.6, 0.4]), constraint=constraints.simplex)
    table = pyro.param("table", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 1.5]))
    z = None
    for t in ppl_em.markov(len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(initial if z is None else table[z]))
        pyro.sample(f"x_{t}", dist.Normal(loc[z], 0.8), obs=x[t])


def vector_hmm(x: Tensor) -> None:
    table = pyro.param("table", torch.tensor([[0.8, 0.2], [0.3, 0.7]]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([[-1.0, 0.0], [1.5, 1.0]]))
    covariance = pyro.param("covariance", torch.eye(2).repeat(2, 1, 1), constraint=constraints.positive_definite)
    z = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(torch.ones(2) / 2 if z is None else table[z]))
        pyro.sample(f"x_{t}", dist.MultivariateNormal(loc[z], covariance[z]), obs=x[t])


def enumerated(x: Tensor, params: dict[str, Tensor]) -> float:
    """log p(x) by summing over every path; missing steps have no density."""
    total = []
    for path in itertools.product(range(2), repeat=len(x)):
        score = params["initial"][path[0]].log() if "initial" in params else torch.tensor(0.5).log()
        for t, z in enumerate(path):
            if t:
                score = score + params["table"][path[t - 1], z].log()
            seen = ~x[t].isnan()
            if x.dim() == 1 and bool(seen):
                score = score + dist.Normal(params["loc"][z], 0.8).log_prob(x[t])
            elif x.dim() == 2 and bool(seen.any()):
                part = params["covariance"][z][seen][:, seen]
                score = score + dist.MultivariateNormal(params["loc"][z][seen], part).log_prob(x[t][seen])
        total.append(score)
    return float(torch.stack(total).logsumexp(0))


@pytest.mark.parametrize("model", [hmm, fast_hmm])
def test_missing_steps_of_a_chain_are_skipped(model: Callable[[Tensor], None]) -> None:
    x = torch.tensor([-1.2, torch.nan, 0.3, 1.8, torch.nan, torch.nan, -0.4, 1.1, torch.nan])
    method = ppl_em.EM(tol=0, max_steps=30, accelerate=False)
    result = ppl_em.fit(model, x, init="params", method=method)
    assert bool((result.history.diff() > -1e-10).all()) and len(result.history) > 5
    assert result.log_likelihood == pytest.approx(enumerated(x, result.params), abs=1e-9)
    first = ppl_em.fit(model, x, init="params", method=ppl_em.EM(max_steps=0))
    assert first.log_likelihood == pytest.approx(enumerated(x, first.params), abs=1e-9)


def test_steps_with_partly_missing_vectors() -> None:
    x = torch.tensor([[-1.2, 0.1], [torch.nan, 0.4], [1.3, 1.8], [torch.nan, torch.nan], [2.0, torch.nan], [1.1, 0.6]])
    first = ppl_em.fit(vector_hmm, x, init="params", method=ppl_em.EM(max_steps=0))
    assert first.log_likelihood == pytest.approx(enumerated(x, first.params), abs=1e-9)
    generator = torch.Generator().manual_seed(0)
    longer = torch.randn(40, 2, generator=generator) + 2.0 * (torch.arange(40)[:, None] // 5 % 2)
    longer = holes(longer, 0.2, seed=5)
    result = ppl_em.fit(vector_hmm, longer, init="params", method=ppl_em.EM(tol=0, max_steps=20, accelerate=False))
    assert bool((result.history.diff() > -1e-9).all())
    assert "closed form" in str(result.plan)


# other families


def counts(x: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    rate = pyro.param("rate", torch.tensor([[1.0, 2.0], [5.0, 7.0]]), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Poisson(rate[z]).to_event(1), obs=x)


def switches(x: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    probs = pyro.param("probs", torch.tensor([[0.2, 0.3], [0.6, 0.8]]), constraint=constraints.unit_interval)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Bernoulli(probs[z]).to_event(1), obs=x)


def categories(x: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    start = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    probs = pyro.param("probs", start, constraint=constraints.simplex)
    other = pyro.param("other", start.flip(1), constraint=constraints.simplex)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("a", dist.Categorical(probs[z]), obs=x[:, 0])
        pyro.sample("b", dist.Categorical(other[z]), obs=x[:, 1])


def by_hand(x: Tensor, weights: Tensor, log_prob: Callable[[int, int, Tensor], Tensor]) -> float:
    """Σ_i log Σ_k w_k Π_j p(x_ij | k) over the entries that are there."""
    total = 0.0
    for row in x:
        terms = []
        for k in range(len(weights)):
            seen = [log_prob(k, j, v) for j, v in enumerate(row) if not bool(v.isnan())]
            terms.append(weights[k].log() + sum(seen, torch.zeros(())))
        total += float(torch.stack(terms).logsumexp(0))
    return total


@pytest.mark.parametrize("kind", ["counts", "switches", "categories"])
@pytest.mark.parametrize("source", ["tensor", "numpy", "pandas"])
def test_whole_numbers_with_holes(kind: str, source: str) -> None:
    generator = torch.Generator().manual_seed(4)
    upper = {"counts": 9.0, "switches": 2.0, "categories": 3.0}[kind]
    x = holes((torch.rand(50, 2, generator=generator) * upper).floor(), 0.25, seed=6)
    model = {"counts": counts, "switches": switches, "categories": categories}[kind]
    if source == "pandas" and kind == "categories":
        pytest.skip("the program slices columns")
    data = {"tensor": x, "numpy": x.numpy(), "pandas": pd.DataFrame(x.numpy(), columns=["a", "b"])}[source]
    pyro.enable_validation(True)
    result = ppl_em.fit(model, data, init="params", method=ppl_em.EM(tol=1e-9, accelerate=False))
    assert bool((result.history.diff() > -1e-10).all())
    p = result.params

    def score(k: int, j: int, v: Tensor) -> Tensor:
        if kind == "counts":
            return dist.Poisson(p["rate"][k, j]).log_prob(v)
        if kind == "switches":
            return dist.Bernoulli(p["probs"][k, j]).log_prob(v)
        return p["probs" if j == 0 else "other"][k, int(v)].log()

    assert result.log_likelihood == pytest.approx(by_hand(x, p["weights"], score), abs=1e-8)


def test_float32_data_with_holes() -> None:
    x = holes(simulated(100), 0.2, seed=1)
    reference = ppl_em.fit(diagonal, x, restarts=2, seed=0)
    torch.set_default_dtype(torch.float32)
    try:
        single = ppl_em.fit(diagonal, x.float(), restarts=2, seed=0)
    finally:
        torch.set_default_dtype(torch.float64)
    assert single.params["loc"].dtype == torch.float32
    assert single.log_likelihood == pytest.approx(reference.log_likelihood, rel=1e-5)


def inner_mixture(x: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.0, -1.0, 0.5, 1.0]]))
    scale = pyro.param("scale", torch.ones(2, 4), constraint=constraints.positive)
    parts = dist.Normal(loc, scale).to_event(1)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=x)


def inner_full_mixture(x: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.5, 0.5]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([[0.0, 0.0, 0.0, 0.0], [2.0, -1.0, 0.5, 1.0]]))
    covariance = pyro.param("covariance", torch.eye(4).repeat(2, 1, 1), constraint=constraints.positive_definite)
    parts = dist.MultivariateNormal(loc, covariance)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), parts), obs=x)


@pytest.mark.parametrize("model", [inner_mixture, inner_full_mixture])
def test_mixtures_summed_inside_a_distribution(model: Callable[[Tensor], None]) -> None:
    x = holes(simulated(70), 0.2, seed=1)
    result = ppl_em.fit(model, x, init="params", method=ppl_em.EM(tol=1e-9))
    p = result.params
    covariance = p["covariance"] if "covariance" in p else torch.diag_embed(p["scale"].square())
    by_formula = float(observed_log_likelihood(x, p["weights"], p["loc"], covariance))
    assert result.log_likelihood == pytest.approx(by_formula, abs=1e-8)
    estimates = {"weights": p["weights"], "loc": p["loc"], "covariance": covariance}
    best, _ = direct_maximum(x, estimates, "full" if "covariance" in p else "diagonal")
    assert result.log_likelihood == pytest.approx(best, abs=1e-5)


def test_regression_leaves_missing_responses_out() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(60, 2, generator=generator)
    y = x @ torch.tensor([1.0, -2.0]) + 0.3 * torch.randn(60, generator=generator)
    y[torch.rand(60, generator=generator) < 0.2] = torch.nan

    def regression(x: Tensor, y: Tensor) -> None:
        slope = pyro.param("slope", torch.zeros(2))
        scale = pyro.param("scale", torch.ones(()), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ slope, scale), obs=y)

    result = ppl_em.fit(regression, x, y)
    there = ~y.isnan()
    expected = np.linalg.lstsq(x[there].numpy(), y[there].numpy(), rcond=None)[0]
    assert np.allclose(result.params["slope"].numpy(), expected, atol=1e-8)
    residual = y[there] - x[there] @ result.params["slope"]
    assert float(result.params["scale"]) == pytest.approx(float(residual.square().mean().sqrt()), abs=1e-7)


def plain_full(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(4))
    covariance = pyro.param("covariance", torch.eye(4), constraint=constraints.positive_definite)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.MultivariateNormal(loc, covariance), obs=x)


def plain_diagonal(x: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(4))
    scale = pyro.param("scale", torch.ones(4), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, scale).to_event(1), obs=x)


@pytest.mark.parametrize("model", [plain_full, plain_diagonal])
def test_variational_inference_scores_what_is_there(model: Callable[[Tensor], None]) -> None:
    x = holes(simulated(60), 0.2, seed=1)
    exact = ppl_em.fit(model, x)
    found = ppl_em.fit(model, x, method=ppl_em.SVI(max_steps=300), seed=0)
    p = found.params
    covariance = p["covariance"] if "covariance" in p else torch.diag(p["scale"].square())
    bound = float(observed_log_likelihood(x, torch.ones(1), p["loc"][None], covariance[None]))
    assert found.objective == pytest.approx(bound, abs=1e-6)  # no latents: the bound is the likelihood
    assert found.objective <= float(exact.log_likelihood or 0.0) + 1e-6
    assert found.objective > float(exact.log_likelihood or 0.0) - 0.5


@pytest.mark.slow
def test_an_encoder_reads_data_with_holes() -> None:
    """One factor behind four columns: the bound stays below the exact likelihood of what is there, and near it."""
    x = holes(simulated(60), 0.2, seed=1)

    def factor(x: Tensor) -> None:
        loadings = pyro.param("loadings", torch.tensor([0.5, -0.5, 0.2, 0.5]))
        loc = pyro.param("loc", torch.tensor([1.0, -1.0, 0.5, 0.0]))
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(loc + loadings * u[:, None], 1.5).to_event(1), obs=x)

    found = ppl_em.fit(factor, x, method=ppl_em.SVI(max_steps=400), seed=0)
    p = found.params
    covariance = torch.outer(p["loadings"], p["loadings"]) + 2.25 * torch.eye(4)
    exact = float(observed_log_likelihood(x, torch.ones(1), p["loc"][None], covariance[None]))
    bound = float(found.log_prob(num_particles=300).sum())
    assert exact - 15.0 < bound < exact + 0.2  # the mean of 300 draws
