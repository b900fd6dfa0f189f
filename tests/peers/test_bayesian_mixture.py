"""scikit-learn's ``BayesianGaussianMixture`` beside `fit`: the same factors, responsibilities and bound at every step.

scikit-learn leaves constants out of its bound. They are worked out here from the prior's normalisers and the number of
data; what is compared is the sum, so that a constant that changed from step to step would show.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import betaln, digamma, gammaln
from sklearn.mixture import BayesianGaussianMixture
from torch import Tensor

import ppl_em
from models.bayesian_mixture import pieces
from tests.tolerances import TRAJECTORY

STEPS = 15
COMPONENTS = 4
#: Hyperparameters: relative precision of the means, degrees of freedom, weight concentration.
RELATIVE, DF, CONCENTRATION = 0.3, 6.0, 0.7


def data(columns: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return np.concatenate([generator.normal(size=(40, columns)) * s + m for s, m in ((1, 0), (0.6, 2.5), (1.5, 4))])


def full(x: Tensor, scatter: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(x.new_full((COMPONENTS,), CONCENTRATION)))
    with pyro.plate("component", COMPONENTS):
        precision = pyro.sample("precision", dist.Wishart(x.new_tensor(DF), precision_matrix=scatter))
        loc = pyro.sample("loc", dist.MultivariateNormal(x.mean(0), precision_matrix=RELATIVE * precision))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.MultivariateNormal(loc[z], precision_matrix=precision[z]), obs=x)


def diagonal(x: Tensor, scatter: Tensor) -> None:
    weights = pyro.sample("weights", dist.Dirichlet(x.new_full((COMPONENTS,), CONCENTRATION)))
    with pyro.plate("component", COMPONENTS):
        half = x.new_full((x.shape[1],), DF / 2)
        precision = pyro.sample("precision", dist.Gamma(half, scatter / 2).to_event(1))
        loc = pyro.sample("loc", dist.Normal(x.mean(0), (RELATIVE * precision).rsqrt()).to_event(1))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], precision[z].rsqrt()).to_event(1), obs=x)


def process(x: Tensor, scatter: Tensor) -> None:
    """scikit-learn breaks a last piece off too: what is left belongs to a component from which no datum can come."""
    far = x.new_full((1, x.shape[1]), 1e4)
    with pyro.plate("break", COMPONENTS):
        breaks = pyro.sample("breaks", dist.Beta(1.0, CONCENTRATION))
    with pyro.plate("component", COMPONENTS):
        precision = pyro.sample("precision", dist.Wishart(x.new_tensor(DF), precision_matrix=scatter))
        loc = pyro.sample("loc", dist.MultivariateNormal(x.mean(0), precision_matrix=RELATIVE * precision))
    every_loc, every_precision = torch.cat([loc, far]), torch.cat([precision, torch.eye(x.shape[1])[None]])
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(pieces(breaks)))
        pyro.sample("x", dist.MultivariateNormal(every_loc[z], precision_matrix=every_precision[z]), obs=x)


class IndependentColumns(BayesianGaussianMixture):
    """``"diag"`` with the expectation of log τ under a gamma factor for each column.

    scikit-learn takes Σ_d ψ((ν − d) / 2), which belongs to a full Wishart matrix, for diagonal ones too; the columns of a
    diagonal precision are independent and have ψ(ν / 2) each. With one column the two are the same.
    """

    def _estimate_log_prob(self, X: np.ndarray, **options: object) -> np.ndarray:
        columns = X.shape[1]
        of_wishart = digamma(0.5 * (self.degrees_of_freedom_ - np.arange(columns)[:, None])).sum(0)
        own = super()._estimate_log_prob(X, **options)
        return own + 0.5 * (columns * digamma(0.5 * self.degrees_of_freedom_) - of_wishart)


def peer(
    kind: type, covariance: str, weights: str, x: np.ndarray, scatter: np.ndarray, steps: int
) -> BayesianGaussianMixture:
    return kind(
        n_components=COMPONENTS,
        covariance_type=covariance,
        weight_concentration_prior_type=weights,
        weight_concentration_prior=CONCENTRATION,
        mean_precision_prior=RELATIVE,
        mean_prior=x.mean(0),
        degrees_of_freedom_prior=DF,
        covariance_prior=scatter,
        max_iter=steps,
        tol=0.0,
        reg_covar=0.0,
        init_params="random",
        random_state=3,
    ).fit(x)


def factors(found: BayesianGaussianMixture, covariance: str) -> dict[str, Tensor]:
    """scikit-learn's attributes as hyperparameters of our factors."""
    df, concentration = found.degrees_of_freedom_, found.weight_concentration_
    inverse = found.covariances_ * df.reshape(-1, *[1] * (found.covariances_.ndim - 1))
    values = {"loc.loc": found.means_}
    if isinstance(concentration, tuple):
        values |= {"breaks.concentration1": concentration[0], "breaks.concentration0": concentration[1]}
    else:
        values["weights.concentration"] = concentration
    if covariance == "full":
        values |= {
            "precision.df": df,
            "precision.inverse_scale": inverse,
            "loc.relative_precision": found.mean_precision_,
        }
    else:
        wide = np.ones((1, found.means_.shape[1]))
        values |= {"precision.concentration": df[:, None] / 2 * wide, "precision.rate": inverse / 2}
        values["loc.relative_precision"] = found.mean_precision_[:, None] * wide
    return {n: torch.from_numpy(np.ascontiguousarray(v)) for n, v in values.items()}


def log_normaliser(df: float, columns: int, log_det_scale: float) -> float:
    """Of a Wishart density, as scikit-learn writes it (powers of π cancel against the posterior's)."""
    steps = gammaln((df - np.arange(columns)) / 2).sum()
    return df * columns / 2 * math.log(2) + df / 2 * log_det_scale + float(steps)


def constant(weights: str, num_data: int, scatter: np.ndarray) -> float:
    """What scikit-learn leaves out: the prior's normalisers and powers of 2π, by hyperparameters and sizes alone."""
    columns = len(scatter)
    prior = -columns / 2 * math.log(RELATIVE) + log_normaliser(DF, columns, -np.linalg.slogdet(scatter)[1])
    if weights == "dirichlet_process":
        of_weights = COMPONENTS * betaln(1, CONCENTRATION)
    else:
        of_weights = COMPONENTS * gammaln(CONCENTRATION) - gammaln(COMPONENTS * CONCENTRATION)
    return -float(of_weights) - COMPONENTS * prior - num_data * columns / 2 * math.log(2 * math.pi)


def bound_at(state: object, responsibilities: np.ndarray) -> float:
    """Our bound at given responsibilities and a step's factors: scikit-learn's are those of the step before."""
    posterior = state.posterior()  # type: ignore[attr-defined]
    own = posterior.marginal("z").probs.numpy()[:, :COMPONENTS]
    r = responsibilities
    with np.errstate(divide="ignore"):
        lost = np.where(r > 0, r * (np.log(r) - np.log(own)), 0.0).sum()
    return state.objective - float(lost)  # type: ignore[attr-defined]


def plain(steps: int) -> ppl_em.EM:
    return ppl_em.EM(globals="variational", max_steps=steps, tol=0, accelerate=False)


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("model", "covariance", "weights", "columns"),
    [
        (full, "full", "dirichlet_distribution", 2),
        (process, "full", "dirichlet_process", 2),
        (diagonal, "diag", "dirichlet_distribution", 1),
    ],
)
def test_every_step_is_scikit_learns(model: object, covariance: str, weights: str, columns: int, seed: int) -> None:
    x = data(columns, seed)
    scatter = np.atleast_2d(np.cov(x.T))
    given = scatter if covariance == "full" else scatter.diagonal().copy()
    start = peer(BayesianGaussianMixture, covariance, weights, x, given, 0)
    states = list(ppl_em.iterate(model, x, given, method=plain(STEPS), init=factors(start, covariance)))
    before = start.predict_proba(x)
    np.testing.assert_allclose(states[0].posterior().marginal("z").probs[:, :COMPONENTS], before, atol=TRAJECTORY)
    with pytest.warns(UserWarning, match="did not converge"):
        for steps in range(1, STEPS + 1):
            found = peer(BayesianGaussianMixture, covariance, weights, x, given, steps)
            for name, value in factors(found, covariance).items():
                np.testing.assert_allclose(states[steps].params[name], value, rtol=1e-8, atol=1e-9, err_msg=name)
            now = found.predict_proba(x)
            ours = states[steps].posterior().marginal("z").probs[:, :COMPONENTS]
            np.testing.assert_allclose(ours, now, atol=TRAJECTORY)
            expected = found.lower_bound_ + constant(weights, len(x), scatter)
            assert bound_at(states[steps], before) == pytest.approx(expected, abs=TRAJECTORY * len(x))
            before = now


@pytest.mark.parametrize("seed", [0, 1])
def test_independent_columns_step_as_scikit_learns_with_their_own_expectation(seed: int) -> None:
    x = data(3, seed)
    scatter = x.var(0)
    start = peer(IndependentColumns, "diag", "dirichlet_distribution", x, scatter, 0)
    states = list(ppl_em.iterate(diagonal, x, scatter, method=plain(STEPS), init=factors(start, "diag")))
    with pytest.warns(UserWarning, match="did not converge"):
        for steps in range(1, STEPS + 1):
            found = peer(IndependentColumns, "diag", "dirichlet_distribution", x, scatter, steps)
            for name, value in factors(found, "diag").items():
                np.testing.assert_allclose(states[steps].params[name], value, rtol=1e-8, atol=1e-9, err_msg=name)
            ours = states[steps].posterior().marginal("z").probs
            np.testing.assert_allclose(ours, found.predict_proba(x), atol=TRAJECTORY)
