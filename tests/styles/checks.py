"""What every style must satisfy: log Z, its gradient and all marginals equal the oracle's; a step of EM ascends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import transform_to

import ppl_em
from ppl_em.em.e_step import objective
from ppl_em.plan.plan import Plan
from ppl_em.posterior import Posterior
from tests.styles.oracle import Truth, enumerate_program

TOLERANCE = 1e-10


def random_values(plan: Plan, seed: int) -> dict[str, Tensor]:
    """Valid parameter values that have nothing to do with the program's own."""
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for name, parameter in plan.program.parameters.items():
        if parameter.module_tensor is not None:
            values[name] = parameter.module_tensor.detach().clone()
            continue
        transform = transform_to(parameter.constraint)
        free = transform.inv(parameter.init)
        values[name] = transform(0.8 * torch.randn(free.shape, generator=generator)).detach()
    return values


def check_at(
    plan: Plan,
    model: Callable[..., Any],
    args: tuple[Any, ...],
    values: dict[str, Tensor],
    scale: float,
    reference: Any,
) -> None:
    """Log Z, its gradient and every marginal at given parameter values."""
    leaves = plan.program.leaves(values)
    mine = objective(plan, leaves)
    given = {n: leaf for n, leaf in leaves.items() if plan.program.parameters[n].origin == "param"}
    truth = enumerate_program(reference or model, args, given)
    expected = scale * truth.log_z
    assert abs(float(mine.detach() - expected.detach())) <= TOLERANCE * (1 + abs(float(expected.detach()))), (
        f"log Z {float(mine.detach()):.12g}, brute force {float(expected.detach()):.12g}"
    )
    trained = {n: leaf for n, leaf in leaves.items() if expected.requires_grad}
    if trained:
        grads = torch.autograd.grad(mine, list(trained.values()), allow_unused=True)
        wanted = torch.autograd.grad(expected, list(trained.values()), allow_unused=True)
        for name, a, b in zip(trained, grads, wanted, strict=True):
            zero = torch.zeros_like(trained[name])
            a, b = zero if a is None else a, zero if b is None else b
            assert bool(torch.isclose(a, b, rtol=1e-8, atol=1e-9).all()), f"gradient of {name}: {a} is not {b}"
    check_marginals(plan, truth, values)


def check_marginals(plan: Plan, truth: Truth, values: dict[str, Tensor]) -> None:
    """Posterior marginals of all latents."""
    posterior = Posterior(plan, values)
    for name, latent in plan.program.latents.items():
        if latent.support is None:
            continue
        found = posterior.marginal(name)
        probs = found.probs
        if isinstance(found, dist.Bernoulli):
            probs = torch.stack([1 - probs, probs], -1)
        if latent.folded:  # of each element
            expected = truth.marginal(name, latent.values.unique(), 0)
        else:
            expected = truth.marginal(name, latent.values, len(latent.event_shape))
        probs, expected = probs.squeeze(), expected.squeeze()
        assert probs.shape == expected.shape, (
            f"marginal of {name} has shape {tuple(probs.shape)}, not {tuple(expected.shape)}"
        )
        difference = (probs - expected).abs().max()
        assert float(difference) <= TOLERANCE, f"marginal of {name} is off by {float(difference):.2e}"


def check_style(
    model: Callable[..., Any],
    *args: Any,
    scale: float = 1.0,
    exact: bool = True,
    reference: Callable[..., Any] | None = None,
) -> Plan:
    """A program equals the brute force of it (or of an equal program) at its own and at other parameter values."""
    plan = ppl_em.explain(model, *args, method="em")
    assert plan.exact == exact, str(plan)
    start = {n: p.init for n, p in plan.program.parameters.items()}
    check_at(plan, model, args, start, scale, reference)
    check_at(plan, model, args, random_values(plan, 5), scale, reference)
    return plan


def check_steps(
    model: Callable[..., Any], *args: Any, scale: float = 1.0, reference: Callable[..., Any] | None = None
) -> None:
    """Steps of EM do not descend, and the objective that is reported is that of the parameters returned."""
    plan = ppl_em.explain(model, *args, method="em")
    if not plan.program.parameters:
        return
    modules = {n: p.module_tensor for n, p in plan.program.parameters.items() if p.module_tensor is not None}
    saved = {n: t.detach().clone() for n, t in modules.items()}
    settings = ppl_em.EM(max_steps=3, tol=0, accelerate=False)
    result = ppl_em.fit(model, *args, init="params", restarts=1, method=settings)
    assert bool((result.history.diff() >= -1e-9 * (1 + result.history[:-1].abs())).all()), result.history
    fitted = enumerate_program(reference or model, args, result.params)
    assert abs(scale * float(fitted.log_z.detach()) - result.objective) <= 1e-9 * (1 + abs(result.objective))
    for name, value in saved.items():
        modules[name].data.copy_(value)
