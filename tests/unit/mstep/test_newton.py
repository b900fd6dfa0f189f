"""Newton's method against statsmodels' generalised linear models with weights, and where it is hard."""

import numpy as np
import pytest
import scipy.optimize
import statsmodels.api as sm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_em.mstep import newton
from ppl_em.mstep.newton import newton_batch


def design(seed, size=150):
    g = np.random.default_rng(seed)
    x = np.column_stack([np.ones(size), g.standard_normal((size, 2))])
    return g, x, g.integers(0, 4, size).astype(float)


def tensor(a):
    return torch.as_tensor(np.asarray(a), dtype=torch.float64)


def test_logistic_regression():
    g, x, w = design(0)
    y = g.random(150) < 1 / (1 + np.exp(-x @ [0.3, 1.0, -2.0]))
    peer = sm.GLM(y.astype(float), x, sm.families.Binomial(), freq_weights=w).fit(tol=1e-14)
    fit = newton(
        lambda b: (tensor(w) * torch.distributions.Bernoulli(logits=tensor(x) @ b).log_prob(tensor(y))).sum(),
        torch.zeros(3),
    )
    assert fit.converged
    np.testing.assert_allclose(fit.x.numpy(), peer.params, rtol=1e-8)
    assert float(fit.value) == pytest.approx(peer.llf, rel=1e-12)
    assert float(fit.gradient.abs().max()) < 1e-9


def test_poisson_regression():
    g, x, w = design(1)
    y = g.poisson(np.exp(x @ [1.0, 0.5, -0.7])).astype(float)
    peer = sm.GLM(y, x, sm.families.Poisson(), freq_weights=w).fit(tol=1e-14)
    fit = newton(
        lambda b: (tensor(w) * torch.distributions.Poisson((tensor(x) @ b).exp()).log_prob(tensor(y))).sum(),
        torch.zeros(3),
    )
    np.testing.assert_allclose(fit.x.numpy(), peer.params, rtol=1e-8)


def test_gamma_regression():
    g, x, w = design(2)
    y = g.gamma(3.0, np.exp(x @ [0.2, 0.5, -0.7]) / 3)
    peer = sm.GLM(y, x, sm.families.Gamma(sm.families.links.Log()), freq_weights=w).fit(tol=1e-14)

    def log_likelihood(b):
        shape = b[3].exp()
        return (
            tensor(w) * torch.distributions.Gamma(shape, shape / (tensor(x) @ b[:3]).exp()).log_prob(tensor(y))
        ).sum()

    fit = newton(log_likelihood, torch.zeros(4))
    np.testing.assert_allclose(fit.x[:3].numpy(), peer.params, rtol=1e-7)


def test_multinomial_regression():
    g, x, w = design(3)
    scores = x @ g.standard_normal((3, 3))
    y = (scores + g.gumbel(size=scores.shape)).argmax(1)
    repeated = np.repeat(np.arange(150), w.astype(int))
    peer = sm.MNLogit(y[repeated], x[repeated]).fit(disp=0, method="newton", tol=1e-14)

    def log_likelihood(b):
        logits = torch.cat([torch.zeros(150, 1), tensor(x) @ b], -1)
        return (tensor(w) * torch.distributions.Categorical(logits=logits).log_prob(torch.as_tensor(y))).sum()

    fit = newton(log_likelihood, torch.zeros(3, 2))
    np.testing.assert_allclose(fit.x.numpy(), peer.params, rtol=1e-7, atol=1e-9)


def test_an_overparametrised_gate_converges_along_its_flat_direction():
    g, x, _ = design(4)
    y = torch.as_tensor(g.integers(0, 3, 150))
    fit = newton(lambda b: torch.distributions.Categorical(logits=tensor(x) @ b).log_prob(y).sum(), torch.zeros(3, 3))
    assert fit.converged
    assert float(fit.gradient.abs().max()) < 1e-9


def test_separable_classes_ascend_without_failing():
    x = torch.tensor([-2.0, -1.0, 1.0, 2.0])
    y = (x > 0).double()
    fit = newton(lambda b: torch.distributions.Bernoulli(logits=x * b).log_prob(y).sum(), torch.zeros(1))
    assert bool(fit.x.isfinite().all())
    assert float(fit.value) > -1e-6


@settings(max_examples=5)
@given(seed=st.integers(0, 10**6))
def test_it_ascends_where_the_function_is_not_concave(seed):
    g = torch.Generator().manual_seed(seed)
    start = 3 * torch.randn(2, generator=g)

    def rosenbrock(b):
        return -((1 - b[0]) ** 2 + 100 * (b[1] - b[0] ** 2) ** 2)

    fit = newton(rosenbrock, start)
    assert float(fit.value) >= float(rosenbrock(start))
    torch.testing.assert_close(fit.x, torch.ones(2), rtol=1e-6, atol=1e-6)
    peer = scipy.optimize.rosen_der(fit.x.numpy())
    assert np.abs(peer).max() < 1e-5


def test_a_batch_equals_its_members():
    centres = torch.tensor([[1.0, 2.0], [-3.0, 0.5]])

    def objective(x):
        return (centres * x - x.exp() - x.square() / 3).sum(-1)

    batch = newton_batch(objective, torch.zeros(2, 2))
    for row in range(2):
        alone = newton(lambda x, c=centres[row]: (c * x - x.exp() - x.square() / 3).sum(), torch.zeros(2))
        torch.testing.assert_close(batch.x[row], alone.x, rtol=1e-10, atol=1e-10)


def test_an_upper_bound_is_respected_and_the_others_are_optimal_given_it():
    def objective(x):
        return -(x[:, 0] - 3).square() - (x[:, 1] - x[:, 0]).square()

    fit = newton_batch(objective, torch.zeros(1, 2), torch.tensor([[1.0, torch.inf]]))
    torch.testing.assert_close(fit.x, torch.tensor([[1.0, 1.0]]))


def test_running_out_of_steps_is_not_convergence():
    fit = newton(lambda b: -(b - 1e3).square().square().sum(), torch.zeros(1), max_steps=3)
    assert fit.num_steps == 3
    assert not fit.converged


def test_an_impossible_start_is_named():
    with pytest.raises(ValueError, match="at the start"):
        newton(lambda b: b.log().sum(), torch.tensor([-1.0]))
