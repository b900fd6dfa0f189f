"""Agreement with SciPy, statsmodels and scikit-learn: whole-number weights against repeated data."""

import numpy as np
import pyro.distributions as dist
import pytest
import scipy.optimize
import scipy.stats
import statsmodels.api as sm
import torch
from sklearn.decomposition import FactorAnalysis
from statsmodels.discrete.count_model import ZeroInflatedPoisson

from ppl_em.mstep import Argument, Block, WeightedSample, weighted_mle


def fit(family, x, repeats, fixed=(), event_dim=0, **start):
    """Our fit of one row to data x with whole-number weights."""
    arguments = {}
    for name, value in start.items():
        value = torch.as_tensor(value, dtype=torch.float64)[None]
        arguments[name] = Argument(value, None if name in fixed else torch.tensor([0]))
    block = Block(torch.as_tensor(repeats, dtype=torch.float64)[None], torch.as_tensor(x), torch.tensor([0]))
    sample = WeightedSample(arguments, (block,), 1, event_dim)
    weighted_mle[family](sample)
    return {name: value[0].numpy() for name, value in sample.proposals.items()}


def scipy_gamma(x):
    a, _, scale = scipy.stats.gamma.fit(x, floc=0)
    return {"concentration": a, "rate": 1 / scale}


def scipy_inverse_gamma(x):
    a, _, scale = scipy.stats.invgamma.fit(x, floc=0)
    return {"concentration": a, "rate": scale}


def scipy_weibull(x):
    c, _, scale = scipy.stats.weibull_min.fit(x, floc=0)
    return {"scale": scale, "concentration": c}


def scipy_pareto(x):
    b, _, scale = scipy.stats.pareto.fit(x, floc=0)
    return {"scale": scale, "alpha": b}


def scipy_log_normal(x):
    s, _, scale = scipy.stats.lognorm.fit(x, floc=0)
    return {"loc": np.log(scale), "scale": s}


def scipy_beta(x):
    a, b, _, _ = scipy.stats.beta.fit(x, floc=0, fscale=1)
    return {"concentration1": a, "concentration0": b}


def scipy_student(x):
    df, loc, scale = scipy.stats.t.fit(x)
    return {"df": df, "loc": loc, "scale": scale}


def scipy_von_mises(x):
    kappa, loc, _ = scipy.stats.vonmises.fit(x, fscale=1)
    return {"loc": loc, "concentration": kappa}


def location_scale(family):
    return lambda x: dict(zip(("loc", "scale"), family.fit(x), strict=True))


def positive(g, size):
    return g.gamma(2.5, 1.5, size)


def real(g, size):
    return g.standard_t(3, size) + 1


SCIPY = {
    "gamma": (dist.Gamma, positive, scipy_gamma, {"concentration": 1.0, "rate": 1.0}),
    "inverse-gamma": (dist.InverseGamma, positive, scipy_inverse_gamma, {"concentration": 1.0, "rate": 1.0}),
    "weibull": (dist.Weibull, positive, scipy_weibull, {"scale": 1.0, "concentration": 1.0}),
    "pareto": (dist.Pareto, positive, scipy_pareto, {"scale": 1e-3, "alpha": 1.0}),
    "log-normal": (dist.LogNormal, positive, scipy_log_normal, {"loc": 0.0, "scale": 1.0}),
    "half-normal": (
        dist.HalfNormal, positive, lambda x: {"scale": scipy.stats.halfnorm.fit(x, floc=0)[1]}, {"scale": 1.0}
    ),
    "exponential": (
        dist.Exponential, positive, lambda x: {"rate": 1 / scipy.stats.expon.fit(x, floc=0)[1]}, {"rate": 1.0}
    ),
    "beta": (
        dist.Beta, lambda g, n: g.beta(2, 3, n), scipy_beta, {"concentration1": 1.0, "concentration0": 1.0}
    ),
    "normal": (dist.Normal, real, location_scale(scipy.stats.norm), {"loc": 0.0, "scale": 1.0}),
    "laplace": (dist.Laplace, real, location_scale(scipy.stats.laplace), {"loc": 0.0, "scale": 1.0}),
    "cauchy": (dist.Cauchy, real, location_scale(scipy.stats.cauchy), {"loc": 0.0, "scale": 1.0}),
    "logistic": (dist.Logistic, real, location_scale(scipy.stats.logistic), {"loc": 0.0, "scale": 1.0}),
    "gumbel": (dist.Gumbel, real, location_scale(scipy.stats.gumbel_r), {"loc": 0.0, "scale": 1.0}),
    "student": (dist.StudentT, real, scipy_student, {"df": 5.0, "loc": 0.0, "scale": 1.0}),
    "von mises": (
        dist.VonMises, lambda g, n: g.vonmises(1.0, 2.0, n), scipy_von_mises,
        {"loc": 0.0, "concentration": 1.0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCIPY)
def test_scipy(name):
    family, draw, peer, start = SCIPY[name]
    g = np.random.default_rng(4)
    x, repeats = draw(g, 301), g.integers(1, 4, 301)
    if name == "laplace":
        repeats[0] += 1 - repeats.sum() % 2  # an odd number of data has one median
    ours, theirs = fit(family, x, repeats, **start), peer(np.repeat(x, repeats))
    for argument, value in theirs.items():
        # SciPy's optimiser stops early.
        assert ours[argument] == pytest.approx(value, rel=5e-4, abs=5e-4)


def maximum(negative, x0):
    return scipy.optimize.minimize(negative, x0, method="BFGS", options={"gtol": 1e-9})


def test_beta_binomial_against_scipy():
    g = np.random.default_rng(5)
    x, repeats = g.binomial(10, g.beta(2, 3, 200)), g.integers(1, 4, 200)
    theirs = maximum(lambda u: -np.sum(repeats * scipy.stats.betabinom.logpmf(x, 10, *np.exp(u))), np.zeros(2))
    ours = fit(
        dist.BetaBinomial, x, repeats, ("total_count",),
        concentration1=1.0, concentration0=1.0, total_count=10.0,
    )  # fmt: skip
    np.testing.assert_allclose([ours["concentration1"], ours["concentration0"]], np.exp(theirs.x), rtol=1e-5)


def test_dirichlet_against_scipy():
    g = np.random.default_rng(6)
    x, repeats = g.dirichlet([1.0, 2.0, 4.0], 150), g.integers(1, 4, 150)
    theirs = maximum(
        lambda u: -sum(r * scipy.stats.dirichlet.logpdf(p, np.exp(u)) for r, p in zip(repeats, x, strict=True)),
        np.zeros(3),
    )
    ours = fit(dist.Dirichlet, x, repeats, event_dim=1, concentration=np.ones(3))
    np.testing.assert_allclose(ours["concentration"], np.exp(theirs.x), rtol=1e-5)


def test_dirichlet_multinomial_against_scipy():
    g = np.random.default_rng(7)
    x = np.stack([g.multinomial(12, p) for p in g.dirichlet([1.0, 2.0, 4.0], 150)])
    theirs = maximum(lambda u: -np.sum(scipy.stats.dirichlet_multinomial.logpmf(x, np.exp(u), 12)), np.zeros(3))
    ours = fit(
        dist.DirichletMultinomial, x.astype(float), np.ones(150), ("total_count",), 1,
        concentration=np.ones(3), total_count=12.0,
    )  # fmt: skip
    np.testing.assert_allclose(ours["concentration"], np.exp(theirs.x), rtol=1e-5)


def test_negative_binomial_against_statsmodels():
    g = np.random.default_rng(8)
    x, repeats = g.negative_binomial(2.5, 0.4, 300), g.integers(1, 4, 300)
    data = np.repeat(x, repeats)
    peer = sm.NegativeBinomial(data, np.ones(len(data))).fit(disp=0, method="newton", maxiter=200, tol=1e-12)
    ours = fit(dist.NegativeBinomial, x, repeats, total_count=1.0, logits=0.0)
    assert ours["total_count"] == pytest.approx(1 / peer.params[1], rel=1e-5)
    assert ours["total_count"] * np.exp(ours["logits"]) == pytest.approx(np.exp(peer.params[0]), rel=1e-8)


def test_zero_inflated_poisson_against_statsmodels():
    g = np.random.default_rng(9)
    x, repeats = g.poisson(2.5, 300) * (g.random(300) > 0.3), g.integers(1, 4, 300)
    data = np.repeat(x, repeats)
    peer = ZeroInflatedPoisson(data, np.ones((len(data), 1))).fit(disp=0, method="newton", maxiter=200)
    ours = fit(dist.ZeroInflatedPoisson, x, repeats, rate=1.0, gate_logits=0.0)
    assert ours["gate_logits"] == pytest.approx(peer.params[0], abs=1e-6)
    assert ours["rate"] == pytest.approx(np.exp(peer.params[1]), rel=1e-6)


def test_low_rank_normal_against_factor_analysis():
    g = np.random.default_rng(10)
    factor = g.standard_normal((6, 2))
    x = g.standard_normal((400, 2)) @ factor.T + g.standard_normal((400, 6)) * np.linspace(0.5, 1.5, 6) + 3
    peer = FactorAnalysis(2, tol=1e-12, max_iter=20_000, svd_method="lapack").fit(x)
    start = {"loc": np.zeros(6), "cov_factor": g.standard_normal((6, 2)), "cov_diag": np.ones(6)}
    values = []
    for _ in range(40):
        ours = fit(dist.LowRankMultivariateNormal, x, np.ones(400), event_dim=1, **start)
        start = ours
        covariance = ours["cov_factor"] @ ours["cov_factor"].T + np.diag(ours["cov_diag"])
        values.append(scipy.stats.multivariate_normal(ours["loc"], covariance).logpdf(x).mean())
    assert bool((np.diff(values) >= -1e-12).all())
    assert values[-1] == pytest.approx(peer.score(x), abs=1e-9)
    np.testing.assert_allclose(covariance, peer.get_covariance(), atol=1e-4)
