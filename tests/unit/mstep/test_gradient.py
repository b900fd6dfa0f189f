"""Gradient ascent of networks: monotone whatever the optimiser, and one step is the gradient itself."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ppl_em.mstep import gradient_ascent


def classifier(seed):
    g = torch.Generator().manual_seed(seed)
    x, weights = torch.randn(80, 3, generator=g), torch.rand(80, generator=g)
    y = (x.prod(-1) > 0).long()
    torch.manual_seed(seed)
    net = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))

    def objective():
        return (weights * torch.distributions.Categorical(logits=net(x)).log_prob(y)).sum()

    return net, objective


OPTIMISERS = {
    "adam": lambda p: torch.optim.Adam(p, lr=0.05),
    "a reckless rate": lambda p: torch.optim.SGD(p, lr=100.0),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.5, momentum=0.99),
    "downhill": lambda p: torch.optim.SGD(p, lr=0.1, maximize=True),
}


@pytest.mark.parametrize("name", OPTIMISERS)
@settings(max_examples=3)
@given(seed=st.integers(0, 10**6))
def test_it_never_goes_down(name, seed):
    net, objective = classifier(seed)
    optimiser = OPTIMISERS[name](list(net.parameters()))
    value = float(objective().detach())
    for _ in range(5):
        ascent = gradient_ascent(objective, list(net.parameters()), 2, optimiser)
        assert ascent.before == pytest.approx(value)
        assert ascent.value >= value
        value = ascent.value
        assert float(objective().detach()) == pytest.approx(value)
    assert value > float(classifier(seed)[1]().detach())


def test_one_plain_step_moves_along_the_gradient():
    net, objective = classifier(0)
    parameters = list(net.parameters())
    old = [p.detach().clone() for p in parameters]
    slopes = torch.autograd.grad(objective(), parameters)
    gradient_ascent(objective, parameters, 1, lambda p: torch.optim.SGD(p, lr=1e-3))
    for parameter, start, slope in zip(parameters, old, slopes, strict=True):
        torch.testing.assert_close(parameter.detach(), start + 1e-3 * slope, rtol=1e-12, atol=1e-14)


def test_a_maximum_stays_where_it_is():
    x = torch.tensor([1.0], requires_grad=True)
    ascent = gradient_ascent(lambda: -(x - 1).square().sum(), [x], 5, lambda p: torch.optim.SGD(p, lr=0.1))
    assert ascent.value == 0.0
    assert x.tolist() == [1.0]


def test_many_steps_reach_the_maximum_of_a_logistic_regression():
    g = torch.Generator().manual_seed(1)
    x = torch.randn(100, 2, generator=g)
    y = (torch.rand(100, generator=g) < (x[:, 0]).sigmoid()).double()
    b = torch.zeros(2, requires_grad=True)

    def objective():
        return torch.distributions.Bernoulli(logits=x @ b).log_prob(y).sum()

    gradient_ascent(objective, [b], 300, lambda p: torch.optim.SGD(p, lr=0.03))
    (slope,) = torch.autograd.grad(objective(), [b])
    assert float(slope.abs().max()) < 1e-6


def test_an_impossible_start_is_named():
    x = torch.tensor([-1.0], requires_grad=True)
    with pytest.raises(ValueError, match="at the start"):
        gradient_ascent(lambda: x.log().sum(), [x])
