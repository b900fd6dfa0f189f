"""Law 3 end to end: one gradient step of EM follows the gradient of the log-likelihood itself."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import TraceEnum_ELBO, config_enumerate
from torch import Tensor, nn
from torch.distributions import transform_to

import ppl_em
from ppl_em.em.e_step import objective

RATE = 1e-4


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        self.mean = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))

    def forward(self, x: Tensor, y: Tensor) -> None:
        pyro.module("net", self)
        scale = pyro.param("scale", torch.tensor([0.7, 1.3]), constraint=constraints.positive)
        mean = self.mean(x)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(logits=self.gate(x)))
            pyro.sample("y", dist.StudentT(4.0, torch.where(z == 0, mean[:, 0], mean[:, 1]), scale[z]), obs=y)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emit = nn.Linear(3, 2)
        self.move = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))

    def forward(self, x: Tensor, y: Tensor) -> None:
        pyro.module("net", self)
        eye = torch.eye(3)
        trans, loc = self.move(eye).softmax(-1), self.emit(eye)
        z = torch.tensor(0)
        for t in pyro.markov(range(5)):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
            pyro.sample(f"y_{t}", dist.Normal(loc[z], 1.0).to_event(1), obs=torch.stack([y[t], x[t, 0]]))


def problem(kind: type) -> tuple[Any, Tensor, Tensor]:
    x = torch.randn(12, 2)
    return kind(), x, torch.randn(12)


def frozen(kind: type) -> list[str]:
    return ["scale"] if kind is Experts else []


@pytest.mark.parametrize("kind", [Experts, Chain])
def test_one_step_is_the_gradient_of_the_log_likelihood(kind: type) -> None:
    model, x, y = problem(kind)
    start = {f"net$$${n}": p.detach().clone() for n, p in model.named_parameters()}
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(config_enumerate(model), lambda *args: None, x, y)
    expected = torch.autograd.grad(-loss, list(model.parameters()))
    method = ppl_em.EM(
        max_steps=1,
        tol=0,
        m_step_steps=1,
        m_step_optim=lambda ps: torch.optim.SGD(ps, lr=RATE),
        accelerate=False,
    )
    result = ppl_em.fit(model, x, y, init="params", method=method, freeze=frozen(kind))
    assert float(result.history[0]) == pytest.approx(-float(loss.detach()), abs=1e-10)
    size = max(float(g.abs().max()) for g in expected)
    for name, gradient in zip(start, expected, strict=True):
        assert result.plan.rule_of(name) in ("gradient", "newton", "least squares")
        if result.plan.rule_of(name) == "gradient":
            step = (result.params[name] - start[name]) / RATE
            assert float((step - gradient).abs().max()) < 1e-10 * max(1.0, size)


def test_the_gradient_of_q_in_every_parameter() -> None:
    """Constrained parameters too: the gradient of Q at the current values is that of log Z."""
    from ppl_em.em.e_step import e_step, expected_log_joint

    model, x, y = problem(Experts)
    plan = ppl_em.explain(model, x, y)
    values = {n: p.init for n, p in plan.program.parameters.items()}
    e = e_step(plan, values)
    leaves = plan.program.leaves(values)
    free = transform_to(constraints.positive).inv(values["scale"]).requires_grad_()
    leaves["scale"] = transform_to(constraints.positive)(free)
    wanted = [free, *(leaves[n] for n in leaves if n != "scale")]
    of_q = torch.autograd.grad(expected_log_joint(plan, plan.sites(), e.weights, leaves), wanted)
    leaves["scale"] = transform_to(constraints.positive)(free)
    of_z = torch.autograd.grad(objective(plan, leaves), wanted)
    for mine, theirs in zip(of_q, of_z, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-10, rtol=1e-10)
