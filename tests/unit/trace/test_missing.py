"""NaN in the data: where it means missing, where it is refused, and what each refusal says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

import ppl_em
from ppl_em.distributions.observed_normal import conditional, conditional_mean, observed_log_prob
from ppl_em.distributions.partly_observed import PartlyObservedNormal
from ppl_em.errors import DataError
from ppl_em.trace.missing import seen_part
from ppl_em.trace.reobserve import Reobserved

NAN = torch.nan


def marginal(loc: Tensor, covariance: Tensor, value: Tensor) -> Tensor:
    """Log-density of the observed sub-vector of one datum."""
    seen = ~value.isnan()
    if not bool(seen.any()):
        return torch.zeros(())
    return dist.MultivariateNormal(loc[seen], covariance[seen][:, seen]).log_prob(value[seen])


def random_normals(*batch: int, size: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    factor = torch.randn(*batch, size, size, generator=generator)
    return torch.randn(*batch, size, generator=generator), factor @ factor.mT + torch.eye(size)


@pytest.mark.parametrize("count", [5, 200])
def test_densities_of_vectors_with_gaps(count: int) -> None:
    """For few patterns (by pattern) and for few data (by datum), batch dimensions in any order."""
    loc, covariance = random_normals(2, 1)
    generator = torch.Generator().manual_seed(2)
    value = torch.randn(count, 3, generator=generator)
    value[torch.rand(count, 3, generator=generator) < 0.4] = NAN
    found = observed_log_prob(loc, covariance, value)
    expected = torch.stack([torch.stack([marginal(loc[k, 0], covariance[k, 0], v) for v in value]) for k in range(2)])
    assert torch.allclose(found, expected, atol=1e-10)
    other = observed_log_prob(loc.transpose(0, 1), covariance.transpose(0, 1), value[:, None])
    assert torch.allclose(other, expected.T, atol=1e-10)
    wide = observed_log_prob(loc.expand(2, count, 3), covariance.expand(2, count, 3, 3), value)
    assert torch.allclose(wide, expected, atol=1e-10)
    assert float(observed_log_prob(loc[0, 0], covariance[0, 0], torch.full((3,), NAN))) == 0.0


def test_conditional_moments_are_the_regression() -> None:
    loc, covariance = random_normals()
    value = torch.tensor([0.3, NAN, -1.0])
    seen = torch.tensor([0, 2])
    gain = covariance[1, seen] @ torch.linalg.inv(covariance[seen][:, seen])
    mean, rest = conditional(loc, covariance, value)
    assert float(mean[1]) == pytest.approx(float(loc[1] + gain @ (value[seen] - loc[seen])), abs=1e-12)
    assert float(rest[1, 1]) == pytest.approx(float(covariance[1, 1] - gain @ covariance[seen, 1]), abs=1e-12)
    assert float(rest.sum()) == float(rest[1, 1])
    assert torch.allclose(conditional_mean(loc, covariance, value), mean)


def test_gradients_twice() -> None:
    loc, covariance = random_normals()
    value = torch.tensor([[0.3, NAN, -1.0], [NAN, NAN, 0.4]])
    factor = torch.linalg.cholesky(covariance).requires_grad_()
    loc = loc.clone().requires_grad_()

    def score(m: Tensor, f: Tensor) -> Tensor:
        return observed_log_prob(m, f.tril() @ f.tril().mT, value).sum()

    assert torch.autograd.gradcheck(score, (loc, factor))
    assert torch.autograd.gradgradcheck(score, (loc, factor))


# what is seen of a value


def test_elements_of_independent_sites_are_masked() -> None:
    fn = dist.Normal(torch.zeros(3), 1.0).to_event(1).expand((4,))
    x = torch.tensor([[1.0, NAN, 2.0]] * 3 + [[NAN, NAN, NAN]])
    seen = seen_part("x", fn, x)
    expected = torch.where(x.isnan(), 0.0, dist.Normal(0.0, 1.0).log_prob(x.nan_to_num())).sum(1)
    assert torch.allclose(seen.fn.log_prob(seen.value), expected)
    assert seen.hidden is not None and torch.equal(seen.hidden, x.isnan())
    assert seen.fn.batch_shape == fn.batch_shape and seen.fn.event_shape == fn.event_shape


def test_what_a_mask_hides_anyway_is_not_missing() -> None:
    x = torch.tensor([1.0, NAN])
    seen = seen_part("x", dist.Normal(0.0, 1.0).expand((2,)), x, mask=torch.tensor([True, False]))
    assert seen.hidden is None and not bool(seen.value.isnan().any())


@pytest.mark.parametrize("family", ["Poisson", "Gamma", "Beta", "Categorical", "Bernoulli", "Uniform", "Binomial"])
def test_stand_ins_lie_inside_the_support(family: str) -> None:
    fn: Any = {
        "Poisson": dist.Poisson(2.0),
        "Gamma": dist.Gamma(2.0, 1.0),
        "Beta": dist.Beta(2.0, 1.0),
        "Categorical": dist.Categorical(torch.ones(3)),
        "Bernoulli": dist.Bernoulli(0.3),
        "Uniform": dist.Uniform(3.0, 5.0),
        "Binomial": dist.Binomial(4, 0.3),
    }[family].expand((3,))
    value = torch.tensor([NAN, NAN, NAN])
    seen = seen_part("x", fn, value)
    assert bool(fn.support.check(seen.value).all())
    assert torch.equal(seen.fn.log_prob(seen.value), torch.zeros(3))


def test_vectors_keep_their_gaps_and_lose_whole_rows() -> None:
    fn = dist.MultivariateNormal(torch.zeros(2), torch.eye(2)).expand((3,))
    x = torch.tensor([[1.0, NAN], [NAN, NAN], [0.5, 0.5]])
    seen = seen_part("x", fn, x)
    assert isinstance(seen.fn.base_dist, PartlyObservedNormal)
    expected = torch.stack([marginal(torch.zeros(2), torch.eye(2), v) for v in x])
    assert torch.allclose(seen.fn.log_prob(seen.value), expected)


# refusals


def refuse(match: str, model: Callable[..., Any], *args: Any) -> str:
    with pytest.raises(DataError, match=match) as caught:
        ppl_em.explain(model, *args)
    text = str(caught.value)
    assert text.endswith(".") and "Try" in text
    return text


def test_a_part_of_a_multinomial() -> None:
    def model(x: Tensor) -> None:
        probs = pyro.param("probs", torch.ones(3) / 3, constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Multinomial(10, probs), obs=x)

    x = torch.tensor([[5.0, 3.0, 2.0], [NAN, 4.0, 1.0]])
    text = refuse(r"NaN in a part of an observed event at site 'x'.*\(1, 0\)", model, x)
    assert "Multinomial" in text
    x[1] = NAN  # a whole event may be missing
    fitted = ppl_em.fit(model, x)
    assert torch.allclose(fitted.params["probs"], x[0] / 10) and abs(float(fitted.log_prob()[1])) < 1e-12


def test_a_covariate() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        slope = pyro.param("slope", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    x, y = torch.tensor([0.3, NAN, 1.0]), torch.tensor([1.0, 2.0, NAN])
    text = refuse("NaN reaches the argument 'loc' of a distribution at site 'y'", model, x, y)
    assert "index (1,)" in text and "covariate" in text


def test_a_value_that_the_next_one_is_computed_from() -> None:
    def from_the_sites(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        last = pyro.sample("x_0", dist.Normal(0.0, 1.0), obs=x[0])
        for t in range(1, len(x)):
            last = pyro.sample(f"x_{t}", dist.Normal(slope * last, 1.0), obs=x[t])

    def from_the_data(x: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        for t in range(1, len(x)):
            pyro.sample(f"x_{t}", dist.Normal(slope * x[t - 1], 1.0), obs=x[t])

    x = torch.tensor([0.2, NAN, 0.4, 0.1])
    assert "'x_2'" in refuse("a missing value on which another depends at site 'x_1'", from_the_sites, x)
    refuse("NaN reaches the argument 'loc' of a distribution at site 'x_2'", from_the_data, x)
    last = torch.tensor([0.2, 0.4, 0.1, NAN])  # nothing depends on the last one
    assert ppl_em.fit(from_the_sites, last).log_likelihood == pytest.approx(
        float(ppl_em.fit(from_the_sites, last[:3]).log_likelihood or 0.0)
    )


def test_a_factor() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.factor("score", -((x - loc) ** 2))

    refuse("NaN in a factor at site 'score'.*index", model, torch.tensor([1.0, NAN]))


def test_labels_used_past_their_site() -> None:
    def model(x: Tensor, labels: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(torch.ones(2)), obs=labels)
            pyro.sample("x", dist.Normal(loc[labels.long()], 1.0), obs=x)

    refuse("NaN reaches a place other than an observed value", model, torch.zeros(2), torch.tensor([0.0, NAN]))


# partly known labels

X = torch.tensor([-1.0, 0.2, 1.9, 0.7, -0.4, 2.2])
LABELS = torch.tensor([0.0, NAN, 1.0, NAN, NAN, 1.0])


def by_values(x: Tensor, labels: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.6, 0.4]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-0.5, 1.5]))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), obs=labels)
        pyro.sample("x", dist.Normal(loc[z.long()], 1.0), obs=x)


def by_mask(x: Tensor, labels: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.6, 0.4]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-0.5, 1.5]))
    known = ~labels.isnan()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights), obs=labels.nan_to_num().long(), obs_mask=known)
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def labelled_log_likelihood(x: Tensor, labels: Tensor, params: dict[str, Tensor]) -> Tensor:
    joint = params["weights"].log() + dist.Normal(params["loc"], 1.0).log_prob(x[:, None])
    known = joint.gather(1, labels.nan_to_num().long()[:, None])[:, 0]
    return torch.where(labels.isnan(), joint.logsumexp(1), known)


@pytest.mark.parametrize("model", [by_values, by_mask])
def test_partly_known_labels_are_exact(model: Callable[..., None]) -> None:
    result = ppl_em.fit(model, X, LABELS, init="params", method=ppl_em.EM(tol=1e-12, accelerate=False))
    assert result.exact and bool((result.history.diff() > -1e-12).all())
    expected = labelled_log_likelihood(X, LABELS, result.params)
    assert torch.allclose(result.log_prob(), expected, atol=1e-10)
    leaves = {n: v.clone().requires_grad_() for n, v in result.params.items()}
    (slope,) = torch.autograd.grad(labelled_log_likelihood(X, LABELS, leaves).sum(), [leaves["loc"]])
    assert float(slope.abs().max()) < 1e-4  # at a maximum
    completed = result.impute()["z"]
    joint = result.params["weights"].log() + dist.Normal(result.params["loc"], 1.0).log_prob(X[:, None])
    assert torch.equal(completed, torch.where(LABELS.isnan(), joint.argmax(1).double(), LABELS).to(completed.dtype))


def test_both_spellings_of_partly_known_labels_agree() -> None:
    method = ppl_em.EM(tol=0, max_steps=10)
    a, b = (ppl_em.fit(m, X, LABELS, init="params", method=method) for m in (by_values, by_mask))
    assert torch.allclose(a.history, b.history, atol=1e-12)
    assert str(a.plan) == str(b.plan)


def test_a_label_on_which_nothing_depends_is_left_out() -> None:
    def model(x: Tensor, labels: Tensor) -> None:
        weights = pyro.param("weights", torch.tensor([0.6, 0.4]), constraint=constraints.simplex)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(weights), obs=labels)
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    result = ppl_em.fit(model, X, LABELS)
    assert not result.plan.blocks
    assert torch.allclose(result.params["weights"], torch.tensor([1 / 3, 2 / 3]))


def test_the_hidden_part_of_partly_observed_data_integrates_to_one() -> None:
    known = torch.tensor([True, False, True, True, False, True])

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor([-0.5, 1.5]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.tensor([0.6, 0.4])))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x, obs_mask=known)

    result = ppl_em.fit(model, X, init="params", method="em")
    params = {"weights": torch.tensor([0.6, 0.4]), "loc": result.params["loc"]}
    expected = labelled_log_likelihood(X, torch.full((6,), NAN), params)[known].sum()
    assert result.log_likelihood == pytest.approx(float(expected), abs=1e-10)


# weights and scales


def scaled(x: Tensor, weights: Tensor) -> None:
    probs = pyro.param("probs", torch.tensor([0.6, 0.4]), constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([[-0.5, 0.0], [1.5, 1.0]]))
    covariance = pyro.param("covariance", torch.eye(2).repeat(2, 1, 1), constraint=constraints.positive_definite)
    with pyro.plate("data", len(x)), poutine.scale(scale=weights):
        z = pyro.sample("z", dist.Categorical(probs))
        pyro.sample("x", dist.MultivariateNormal(loc[z], covariance[z]), obs=x)


@pytest.mark.parametrize("how", ["weights", "scale"])
def test_weights_are_repeated_data(how: str) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(25, 2, generator=generator) + 2.0 * (torch.arange(25)[:, None] % 2)
    x[torch.rand(25, 2, generator=generator) < 0.2] = NAN
    counts = torch.randint(1, 4, (25,), generator=generator)
    one, method = torch.ones(25), ppl_em.EM(tol=0, max_steps=15)
    if how == "weights":
        a = ppl_em.fit(scaled, x, one, weights=counts.double(), init="params", method=method)
    else:
        a = ppl_em.fit(scaled, x, counts.double(), init="params", method=method)
    repeated = x.repeat_interleave(counts, 0)
    b = ppl_em.fit(scaled, repeated, torch.ones(len(repeated)), init="params", method=method)
    assert torch.allclose(a.history, b.history, atol=1e-8)
    for name in a.params:
        assert torch.allclose(a.params[name], b.params[name], atol=1e-8), name


def test_other_data_have_the_same_holes() -> None:
    """Refits to data drawn from the fit (the bootstrap) know as little as the fit did."""
    x = torch.tensor([0.4, NAN, 1.0, NAN])

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    again = Reobserved(model, {"x": torch.tensor([5.0, 6.0, 7.0, 8.0])})
    assert float(ppl_em.fit(again, x).params["loc"]) == pytest.approx(6.0)
