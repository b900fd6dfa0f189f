"""A hidden Markov model with conjugate priors against coordinate ascent written out in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.special import digamma, gammaln, logsumexp
from torch import Tensor

import ppl_em

STATES, STEPS = 3, 12


def chain(x: Tensor) -> None:
    """Counts whose rate follows a hidden state; rows of the transition matrix are drawn together."""
    initial = pyro.sample("initial", dist.Dirichlet(torch.ones(STATES)))
    with pyro.plate("state", STATES):
        moves = pyro.sample("moves", dist.Dirichlet(torch.full((STATES,), 0.8)))
        rates = pyro.sample("rates", dist.Gamma(2.0, 0.5))
    z = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(initial if z is None else moves[z]))
        pyro.sample(f"x_{t}", dist.Poisson(rates[z]), obs=x[t])


def gaussian_chains(x: Tensor) -> None:
    """Several series at once, with a mean and a precision for each state under a joint prior."""
    initial = pyro.sample("initial", dist.Dirichlet(torch.ones(STATES)))
    with pyro.plate("state", STATES):
        moves = pyro.sample("moves", dist.Dirichlet(torch.full((STATES,), 0.8)))
        tau = pyro.sample("tau", dist.Gamma(2.0, 1.0))
        mu = pyro.sample("mu", dist.Normal(0.0, (0.2 * tau).rsqrt()))
    with pyro.plate("series", len(x)):
        z = None
        for t in pyro.markov(range(x.shape[1])):
            z = pyro.sample(f"z_{t}", dist.Categorical(initial if z is None else moves[z]))
            pyro.sample(f"x_{t}", dist.Normal(mu[z], tau[z].rsqrt()), obs=x[:, t])


def forward_backward(
    first: np.ndarray, moves: np.ndarray, emission: np.ndarray
) -> tuple[float, np.ndarray, np.ndarray]:
    """log Z, state and pair probabilities of one series from unnormalised log-potentials."""
    steps, states = emission.shape
    ahead, back = np.zeros((steps, states)), np.zeros((steps, states))
    ahead[0] = first + emission[0]
    for t in range(1, steps):
        ahead[t] = logsumexp(ahead[t - 1][:, None] + moves, 0) + emission[t]
    for t in range(steps - 2, -1, -1):
        back[t] = logsumexp(moves + emission[t + 1] + back[t + 1], 1)
    total = logsumexp(ahead[-1])
    pairs = np.zeros((states, states))
    for t in range(1, steps):
        pairs += np.exp(ahead[t - 1][:, None] + moves + emission[t] + back[t] - total)
    return float(total), np.exp(ahead + back - total), pairs


def log_dirichlet(a: np.ndarray) -> np.ndarray:
    return digamma(a) - digamma(a.sum(-1, keepdims=True))


def dirichlet_divergence(a: np.ndarray, b: np.ndarray) -> float:
    normalisers = gammaln(a.sum(-1)) - gammaln(a).sum(-1) - gammaln(b.sum(-1)) + gammaln(b).sum(-1)
    return float((normalisers + ((a - b) * log_dirichlet(a)).sum(-1)).sum())


def gamma_divergence(a: np.ndarray, b: np.ndarray, a0: float, b0: float) -> float:
    terms = (a - a0) * digamma(a) - gammaln(a) + gammaln(a0) + a0 * (np.log(b) - np.log(b0)) + a * (b0 - b) / b
    return float(terms.sum())


def counts() -> np.ndarray:
    generator = np.random.default_rng(4)
    states = np.repeat([0, 1, 2, 0, 2, 1], 8)
    return generator.poisson(np.array([1.0, 6.0, 15.0])[states]).astype(float)


def options(steps: int) -> ppl_em.EM:
    return ppl_em.EM(globals="variational", max_steps=steps, tol=0, accelerate=False)


def test_a_poisson_chain_steps_as_coordinate_ascent() -> None:
    x = counts()
    initial, moves = np.array([1.5, 1.2, 1.3]), 0.8 + np.array([[5.0, 1, 2], [1, 4, 1], [2, 1, 6]])
    a, b = np.array([8.0, 20.0, 40.0]), np.array([5.0, 4.0, 3.5])
    start = {"initial.concentration": initial, "moves.concentration": moves, "rates.concentration": a, "rates.rate": b}
    given = {n: torch.from_numpy(v) for n, v in start.items()}
    states = list(ppl_em.iterate(chain, torch.from_numpy(x), method=options(STEPS), init=given))
    assert len(states) == STEPS + 1
    for state in states:
        emission = x[:, None] * (digamma(a) - np.log(b)) - a / b - gammaln(x + 1)[:, None]
        total, single, pairs = forward_backward(log_dirichlet(initial), log_dirichlet(moves), emission)
        lost = dirichlet_divergence(initial, np.ones(STATES)) + dirichlet_divergence(
            moves, np.full((STATES, STATES), 0.8)
        )
        assert state.objective == pytest.approx(total - lost - gamma_divergence(a, b, 2.0, 0.5), abs=1e-9)
        for name, value in (("moves.concentration", moves), ("rates.concentration", a), ("rates.rate", b)):
            np.testing.assert_allclose(state.params[name], value, rtol=1e-9)
        np.testing.assert_allclose(state.posterior().marginal("z_7").probs, single[7], atol=1e-9)
        initial, moves = 1.0 + single[0], 0.8 + pairs
        a, b = 2.0 + single.T @ x, 0.5 + single.sum(0)


def test_gaussian_chains_step_as_coordinate_ascent() -> None:
    generator = np.random.default_rng(2)
    x = generator.normal(np.array([-2.0, 0.5, 3.0])[np.repeat([0, 1, 2, 1], 4)], 0.7, size=(5, 16))
    initial, moves = np.full(STATES, 2.0), 0.8 + np.array([[5.0, 1, 2], [1, 4, 1], [2, 1, 6]])
    m, beta, a, b = (
        np.array([-1.0, 0.0, 2.0]),
        np.array([3.0, 4.0, 5.0]),
        np.array([4.0, 5.0, 6.0]),
        np.array([2.0, 3, 4]),
    )
    start = {"initial.concentration": initial, "moves.concentration": moves, "tau.concentration": a, "tau.rate": b}
    start |= {"mu.loc": m, "mu.relative_precision": beta}
    given = {n: torch.from_numpy(v) for n, v in start.items()}
    for state in ppl_em.iterate(gaussian_chains, torch.from_numpy(x), method=options(STEPS), init=given):
        log_tau, tau = digamma(a) - np.log(b), a / b
        square = tau * (x[..., None] - m) ** 2 + 1 / beta
        emission = 0.5 * (log_tau - np.log(2 * np.pi) - square)
        parts = [forward_backward(log_dirichlet(initial), log_dirichlet(moves), e) for e in emission]
        total, single = sum(p[0] for p in parts), np.stack([p[1] for p in parts])
        lost = dirichlet_divergence(initial, np.ones(STATES)) + dirichlet_divergence(
            moves, np.full((STATES, STATES), 0.8)
        )
        # KL of the normal part given τ, in expectation, and of the gamma part.
        lost += 0.5 * float((np.log(beta / 0.2) + 0.2 / beta - 1 + 0.2 * tau * m**2).sum())
        lost += gamma_divergence(a, b, 2.0, 1.0)
        assert state.objective == pytest.approx(total - lost, abs=1e-9)
        np.testing.assert_allclose(state.params["mu.loc"], m, rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(state.params["tau.rate"], b, rtol=1e-8)
        initial, moves = 1.0 + single[:, 0].sum(0), 0.8 + sum(p[2] for p in parts)
        weight = single.reshape(-1, STATES)
        count, value = weight.sum(0), x.reshape(-1)
        mean = weight.T @ value / count
        scatter = (weight * (value[:, None] - mean) ** 2).sum(0)
        beta = 0.2 + count
        m = count * mean / beta
        a, b = 2.0 + count / 2, 1.0 + 0.5 * (scatter + 0.2 * count / beta * mean**2)


def vectorised(x: Tensor) -> None:
    """The chain of counts, its steps run at once."""
    initial = pyro.sample("initial", dist.Dirichlet(torch.ones(STATES)))
    with pyro.plate("state", STATES):
        moves = pyro.sample("moves", dist.Dirichlet(torch.full((STATES,), 0.8)))
        rates = pyro.sample("rates", dist.Gamma(2.0, 0.5))
    z: Any = None
    for t in ppl_em.markov(len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(initial if z is None else moves[z]))
        pyro.sample(f"x_{t}", dist.Poisson(rates[z]), obs=x[t])


def test_a_chain_whose_steps_run_at_once_is_the_same() -> None:
    x = torch.from_numpy(counts())
    given = {"rates": torch.tensor([1.0, 5.0, 12.0]), "moves": torch.eye(3) * 0.7 + 0.1, "initial": torch.ones(3) / 3}
    one, other = (ppl_em.fit(m, x, method=options(STEPS), init=given) for m in (chain, vectorised))
    torch.testing.assert_close(one.history, other.history, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(one.posterior().path("z").probs, other.posterior().path("z").probs)
