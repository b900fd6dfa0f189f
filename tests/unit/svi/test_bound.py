"""The bound of one draw against enumeration by hand, in value and gradient."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from torch import Tensor

from ppl_em.svi.batch import Batch
from ppl_em.svi.bound import Bound
from ppl_em.svi.kl import analytic_kl
from ppl_em.svi.score import Scored
from ppl_em.svi.trainer import sum_terms
from ppl_em.svi.user_guide import UserRun, trace_guide
from tests.tolerances import BRUTE_FORCE, GRADIENT
from tests.unit.svi.programs import plan_of

X = torch.tensor([[0.3, -1.0], [1.2, 0.4], [-0.7, 0.9]], dtype=torch.float64)


def cluster_codes(x: Tensor) -> None:
    """A discrete class beside a continuous code in one plate; the class feeds prior and output."""
    weights = pyro.param("weights", torch.tensor([0.2, 0.8]), constraint=dist.constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 0.7]))
    mix = pyro.param("mix", torch.tensor([[0.5, -0.3], [1.0, 0.2]]))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights))
        u = pyro.sample("u", dist.Normal(loc[k], 1.3))
        pyro.sample("x", dist.Normal((u.unsqueeze(-1) * mix[k]).tanh(), 0.6).to_event(1), obs=x)


def switching(x: Tensor) -> None:
    """A chain of classes whose steps scale a code that all steps share; one row of x per step."""
    start = pyro.param("start", torch.tensor([0.4, 0.6]), constraint=dist.constraints.simplex)
    move = pyro.param("move", torch.tensor([[0.9, 0.1], [0.3, 0.7]]), constraint=dist.constraints.simplex)
    gain = pyro.param("gain", torch.tensor([0.5, 2.0]), constraint=dist.constraints.positive)
    with pyro.plate("columns", x.shape[1]):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        z = None
        for t in range(len(x)):
            z = pyro.sample(f"z_{t}", dist.Categorical(start if z is None else move[z]))
            pyro.sample(f"x_{t}", dist.Normal(gain[z] * u, 0.8), obs=x[t])


def global_class(x: Tensor) -> None:
    """One class for all data, with a code for each, under a scale and a mask."""
    weights = pyro.param("weights", torch.tensor([0.3, 0.7]), constraint=dist.constraints.simplex)
    slope = pyro.param("slope", torch.tensor([0.5, -1.5]))
    k = pyro.sample("k", dist.Categorical(weights))
    with pyro.plate("data", len(x)), poutine.mask(mask=torch.tensor([True, True, False])):
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(slope[k] * u, 0.9), obs=x[:, 0])


LABELS, LABELLED = torch.tensor([1, 0, 0]), torch.tensor([True, False, False])


def partly_labelled(x: Tensor) -> None:
    """As `cluster_codes`, with the class of the first datum observed."""
    weights = pyro.param("weights", torch.tensor([0.2, 0.8]), constraint=dist.constraints.simplex)
    mix = pyro.param("mix", torch.tensor([[0.5, -0.3], [1.0, 0.2]]))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(weights), obs=LABELS, obs_mask=LABELLED)
        u = pyro.sample("u", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal((u.unsqueeze(-1) * mix[k]).tanh(), 0.6).to_event(1), obs=x)


def test_labels_of_some_data_count_and_the_others_are_summed() -> None:
    source, plan = plan_of(partly_labelled, X)
    bound = Bound(plan, partly_labelled, mean_field=True)
    leaves = {n: p.init.clone().requires_grad_(True) for n, p in plan.program.parameters.items()}
    loc = torch.randn(3, requires_grad=True)
    q = dist.Normal(loc, 0.7)
    u = loc + 0.7 * torch.randn(3)
    batch = Batch(source.args, source.kwargs, 3, plate="data")
    terms = bound.named(batch, leaves, [Scored("u", q, u, False)], closed_forms=False)
    mine = sum_terms([(t.name, bound._scaled(t, batch)) for t in terms])
    by_class = torch.stack(
        [dist.Normal((u[:, None] * leaves["mix"][k]).tanh(), 0.6).log_prob(X).sum(-1) for k in (0, 1)], -1
    )
    joint = (leaves["weights"] / leaves["weights"].sum()).log() + by_class
    known = torch.where(LABELLED, joint.gather(1, LABELS[:, None])[:, 0], joint.logsumexp(-1))
    theirs = (known + dist.Normal(0.0, 1.0).log_prob(u) - q.log_prob(u)).sum()
    assert float(mine.detach()) == pytest.approx(float(theirs.detach()), abs=BRUTE_FORCE)
    inputs = [*leaves.values(), loc]
    ours, expected = (torch.autograd.grad(v, inputs, retain_graph=True) for v in (mine, theirs))
    for a, b in zip(ours, expected, strict=True):
        assert torch.allclose(a, b, atol=GRADIENT, rtol=GRADIENT)


def brute_force(
    model: Callable, x: Tensor, parameters: Mapping[str, Tensor], u: Tensor, sizes: Mapping[str, int]
) -> Tensor:
    """log Σ p(x, classes, u) by running the program once for every assignment of all classes."""
    shapes: dict[str, torch.Size] = {}
    with pyro.get_param_store().scope(), torch.no_grad():
        for name, node in poutine.trace(model).get_trace(x).nodes.items():
            if name in sizes:
                shapes[name] = node["value"].shape
    totals = []
    ranges = [range(sizes[n]) for n, s in shapes.items() for _ in range(s.numel())]
    for assignment in product(*ranges):
        values, at = {"u": u}, 0
        for name, shape in shapes.items():
            values[name] = torch.tensor(assignment[at : at + shape.numel()]).reshape(shape)
            at += shape.numel()
        given = poutine.condition(poutine.substitute(model, dict(parameters)), values)
        totals.append(poutine.trace(given).get_trace(x).log_prob_sum())
    return torch.logsumexp(torch.stack(totals), 0)


@pytest.mark.parametrize(
    ("model", "sizes"),
    [(cluster_codes, {"k": 2}), (switching, {"z_0": 2, "z_1": 2, "z_2": 2}), (global_class, {"k": 2})],
    ids=["plate", "chain", "global"],
)
def test_hybrid_bound_and_gradient_equal_brute_force(model: Callable, sizes: Mapping[str, int]) -> None:
    source, plan = plan_of(model, X)
    bound = Bound(plan, model, mean_field=True)
    leaves = {n: p.init.clone().requires_grad_(True) for n, p in plan.program.parameters.items()}
    count = X.shape[1] if model is switching else len(X)
    loc, scale = torch.randn(count, requires_grad=True), torch.rand(count).add(0.5).requires_grad_(True)
    q = dist.Normal(loc, scale)
    noise = torch.randn(count)
    u = loc + scale * noise
    batch = Batch(source.args, source.kwargs, count, plate=plan.program.data_plate)
    mine = sum_terms(
        [
            (t.name, bound._scaled(t, batch))
            for t in bound.named(batch, leaves, [Scored("u", q, u, False)], closed_forms=False)
        ]
    )
    log_q = q.log_prob(u)
    if model is global_class:
        log_q = log_q[:2]  # a masked latent does not count
    theirs = brute_force(model, X, leaves, u, sizes) - log_q.sum()
    assert float(mine.detach()) == pytest.approx(float(theirs.detach()), abs=BRUTE_FORCE)
    inputs = [*leaves.values(), loc, scale]
    ours, expected = (torch.autograd.grad(v, inputs, retain_graph=True) for v in (mine, theirs))
    for a, b in zip(ours, expected, strict=True):
        assert torch.allclose(a, b, atol=GRADIENT, rtol=GRADIENT)


def test_closed_forms_have_the_gradient_of_their_sampled_estimates_on_average() -> None:
    source, plan = plan_of(plain, X)
    bound = Bound(plan, plain, mean_field=True)
    loc = torch.zeros(3, requires_grad=True)
    batch = Batch(source.args, source.kwargs, 3, plate="data")
    totals: dict[bool, list[Tensor]] = {True: [], False: []}
    for _ in range(400):
        q = dist.Normal(loc, 0.7)
        u = q.rsample()
        for closed in (True, False):
            terms = bound.named(batch, {}, [Scored("u", q, u, False)], closed_forms=closed)
            (gradient,) = torch.autograd.grad(sum_terms([(t.name, bound._scaled(t, batch)) for t in terms]), loc)
            totals[closed].append(gradient)
    closed_form, sampled = (torch.stack(totals[c]) for c in (True, False))
    difference = (closed_form - sampled).mean(0)
    error = (closed_form - sampled).std(0) / 20
    assert bool((difference.abs() < 4 * error + 1e-12).all())
    assert closed_form.var(0).sum() < sampled.var(0).sum()


def plain(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        u = pyro.sample("u", dist.Normal(0.4, 1.5))
        pyro.sample("x", dist.Normal(u.unsqueeze(-1).sin(), 0.5).expand([len(x), 2]).to_event(1), obs=x)


def both(x: Tensor) -> None:
    """A guide that draws the class, by enumeration, and the code given the class."""
    logits = pyro.param("logits", torch.tensor([[0.3, -0.2], [0.1, 1.0], [-1.0, 0.5]]))
    shift = pyro.param("shift", torch.tensor([0.4, -0.6]))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
        pyro.sample("u", dist.Normal(shift[k], 0.5))


def code_only(x: Tensor) -> None:
    shift = pyro.param("shift", torch.tensor([0.4, -0.6, 0.1]))
    with pyro.plate("data", len(x)):
        pyro.sample("u", dist.Normal(shift, 0.5))


@pytest.mark.parametrize("guide", [both, code_only], ids=["class in the guide", "class summed"])
def test_a_users_guide_scores_as_under_pyro(guide: Callable[..., Any]) -> None:
    from ppl_em.trace.tracing import Source

    seen = trace_guide(guide, Source(cluster_codes, (X,), {}), {})
    source, plan = plan_of(cluster_codes, X, variational=frozenset(seen.names), coupled=seen.coupled, guided=seen.names)
    run = UserRun(guide, seen, plan.program)
    bound = Bound(plan, cluster_codes, mean_field=False)
    parameters = {n: p.init for n, p in {**plan.program.parameters, **run.parameters}.items()}
    batch = Batch(source.args, source.kwargs, 3, plate="data")
    torch.manual_seed(1)  # both draw the same codes
    mine = float(sum_terms(bound.terms(batch, parameters, run.draw(batch, parameters))))
    torch.manual_seed(1)
    elbo = TraceEnum_ELBO(max_plate_nesting=1)
    model = config_enumerate(cluster_codes) if guide is code_only else cluster_codes
    with pyro.get_param_store().scope():
        theirs = -float(elbo.differentiable_loss(model, guide, X).detach())
    assert mine == pytest.approx(theirs, abs=BRUTE_FORCE)


def test_a_subsampled_plate_under_a_scale_counts_as_under_pyro() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x), subsample_size=2) as i, poutine.scale(scale=0.3):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x[i, 0])

    source, plan = plan_of(model, X)
    bound = Bound(plan, model, mean_field=True)
    totals = []
    for rows in ([0, 1], [0, 2], [1, 2]):
        index = torch.tensor(rows)
        batch = Batch(source.args, source.kwargs, 2, indices={"data": index}, plate="data", rows=index)
        mine = float(sum_terms(bound.terms(batch, {}, [])))
        assert mine == pytest.approx(
            0.3 * 1.5 * float(dist.Normal(0.0, 1.0).log_prob(X[index, 0]).sum()), abs=BRUTE_FORCE
        )
        totals.append(mine)
    torch.manual_seed(0)
    theirs = [-Trace_ELBO().loss(model, lambda x: None, X) for _ in range(60)]
    assert {round(t, 9) for t in theirs} == {round(t, 9) for t in totals}


@pytest.mark.parametrize(
    ("q", "p"),
    [
        (dist.Normal(torch.randn(3), torch.rand(3) + 0.2).to_event(1), dist.Normal(0.5, 2.0).expand([3]).to_event(1)),
        (
            dist.MultivariateNormal(torch.randn(3), scale_tril=torch.eye(3) + 0.3 * torch.ones(3, 3).tril(-1)),
            dist.Normal(torch.randn(3), torch.rand(3) + 0.2).to_event(1),
        ),
        (dist.LogNormal(0.1, 0.4), dist.LogNormal(-0.3, 1.1)),
        (dist.Normal(torch.randn(3), 0.7).to_event(1), dist.Normal(torch.zeros(3), 1.0)),
    ],
    ids=["diagonal", "full against diagonal", "positive", "fewer event dimensions"],
)
def test_closed_form_divergences_equal_their_averages(q: Any, p: Any) -> None:
    value = analytic_kl(q, p)
    assert value is not None
    draws = q.sample((200_000,))
    log_p = p.log_prob(draws)
    estimate = q.log_prob(draws) - (log_p.sum(-1) if log_p.dim() > 1 else log_p)
    error = estimate.std() / len(draws) ** 0.5
    assert abs(float(value.sum() - estimate.mean())) < 4 * float(error)


def test_a_change_of_variables_has_no_closed_form() -> None:
    assert analytic_kl(dist.Delta(torch.tensor(0.3), -2.0), dist.Normal(0.0, 1.0)) is None
    assert analytic_kl(dist.StudentT(3.0), dist.Normal(0.0, 1.0)) is None
