"""EM from a loader: the same fit as on the concatenated tensors, step by step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import ppl_em
from ppl_em import EM, Auto, Status
from ppl_em.errors import DataError, PlanError, PplEmError
from tests.tolerances import BRUTE_FORCE
from tests.unit.em import streamed_programs as programs
from tests.unit.em.streamed_programs import covariate, normals, symbols, three_kinds

COUNT, BATCH = 500, 85
X, UY = three_kinds(COUNT), covariate(COUNT)


def loader(*data: Tensor, size: int = BATCH) -> DataLoader:
    return DataLoader(TensorDataset(*data), batch_size=size)


def plain(steps: int, **more: Any) -> EM:
    return EM(max_steps=steps, tol=0, **more)


def gap(a: ppl_em.FitResult, b: ppl_em.FitResult) -> float:
    """Largest difference of the estimates of two fits."""
    one, two = ({**r.params, **r.point_estimates} for r in (a, b))
    assert one.keys() == two.keys()
    return max(float((one[n] - two[n]).abs().max()) for n in one)


CASES: dict[str, tuple[Callable[[], Any], tuple[Tensor, ...]]] = {
    "closed forms": (lambda: programs.normals, (X,)),
    "covariances": (lambda: programs.vectors, (X,)),
    "conjugate priors": (lambda: programs.priors, (X,)),
    "priors of precisions": (lambda: programs.precisions, (X,)),
    "missing entries": (lambda: programs.with_holes, (X,)),
    "least squares": (lambda: programs.lines, UY),
    "newton": (lambda: programs.gate, UY),
    "data one by one": (lambda: programs.heavy_tails, (X,)),
    "arguments that vary with the data": (lambda: programs.exposures, UY),
    "chains": (lambda: programs.chains, (symbols(120, 6),)),
    "network": (programs.Curve, UY),
    "subsampled plate": (lambda: programs.Subsampled(COUNT), (X,)),
}


@pytest.mark.parametrize("name", CASES)
def test_batches_give_the_fit_of_the_whole_step_by_step(name: str) -> None:
    make, data = CASES[name]
    size = 85 if name != "subsampled plate" else 100
    whole = ppl_em.fit(make(), *data, init="params", method=plain(6))
    parts = ppl_em.fit(make(), loader(*data, size=size), init="params", method=plain(6))
    # An inner iteration (Newton's) is run to rounding by two routes.
    torch.testing.assert_close(parts.history, whole.history, rtol=1e-10, atol=BRUTE_FORCE)
    assert gap(parts, whole) < 10 * BRUTE_FORCE
    assert parts.num_observations == len(data[0])
    assert parts.log_likelihood == pytest.approx(whole.log_likelihood, abs=1e-6)
    assert parts.objective_name == whole.objective_name
    assert parts.exact


@pytest.mark.parametrize("name", ["closed forms", "least squares", "network", "newton"])
def test_batches_that_do_not_fit_into_memory_are_traced_anew(name: str) -> None:
    make, data = CASES[name]
    plainly = plain(2, m_step_steps=2)
    method, size = Auto(em=plainly, memory_bytes=5e4), 250
    plan = ppl_em.explain(make(), loader(*data, size=size), method=method)
    assert plan.method == "em" and "streamed: traced anew at every pass" in str(plan)
    streamed = ppl_em.fit(make(), loader(*data, size=size), init="params", method=method)
    kept = ppl_em.fit(make(), loader(*data, size=size), init="params", method=plainly)
    assert "kept in memory" in str(kept.plan)
    torch.testing.assert_close(streamed.history, kept.history, rtol=0, atol=BRUTE_FORCE)
    assert gap(streamed, kept) < BRUTE_FORCE


@pytest.mark.slow
def test_a_run_to_the_end_with_starts_and_acceleration() -> None:
    whole = ppl_em.fit(normals, X, method="em")
    parts = ppl_em.fit(normals, loader(X, size=250), method="em", restarts=3)
    assert parts.status is Status.CONVERGED
    assert len(parts.restarts) == 3
    assert parts.objective == pytest.approx(whole.objective, abs=1e-5)
    assert parts.objective == pytest.approx(float(parts.log_prob(X).sum()), abs=1e-8)


def test_auto_takes_exact_em_and_shuffling_changes_nothing() -> None:
    shuffled = DataLoader(TensorDataset(X), batch_size=BATCH, shuffle=True)
    parts = ppl_em.fit(normals, shuffled, init="params", method=Auto(em=plain(4)))
    whole = ppl_em.fit(normals, X, init="params", method=plain(4))
    assert gap(parts, whole) < BRUTE_FORCE
    assert "batches of a loader (data=85 each)" in str(ppl_em.explain(normals, shuffled))


def test_loaders_leave_no_footprint(no_footprint: Callable) -> None:
    shuffled = DataLoader(TensorDataset(X), batch_size=BATCH, shuffle=True)
    with no_footprint():
        result = ppl_em.fit(normals, shuffled, init="params", method=Auto(em=plain(2), memory_bytes=5e4))
        result = ppl_em.fit(normals, shuffled, method=EM(variant="stepwise", passes=1), init=result)
        result.update(X[:50])
        result.log_prob(loader(X))
        list(ppl_em.iterate(normals, shuffled, method=plain(1), init="params"))


def test_variants_of_the_e_step_take_batches() -> None:
    whole = ppl_em.fit(normals, X, init="params", method=plain(4, e_step="hard"))
    parts = ppl_em.fit(normals, loader(X), init="params", method=plain(4, e_step="hard"))
    assert gap(parts, whole) < BRUTE_FORCE


def test_the_data_of_a_loader_are_not_at_hand_afterwards() -> None:
    result = ppl_em.fit(normals, loader(X), init="params", method=plain(2))
    with pytest.raises(PplEmError, match="not at hand"):
        result.posterior()
    with pytest.raises(PplEmError, match="not at hand"):
        result.log_prob()
    assert result.posterior(X).marginal("z").probs.shape == (COUNT, 3)
    assert result.plan.engine_of("z") == "mixture"
    assert result.plan.rule_of("loc") == "closed form"
    whole = ppl_em.fit(normals, X, init="params", method=plain(2))
    errors = result.with_data(X).standard_errors()
    torch.testing.assert_close(errors["loc"], whole.standard_errors()["loc"])


def test_queries_take_a_loader() -> None:
    result = ppl_em.fit(normals, loader(X), init="params", method=plain(2))
    torch.testing.assert_close(result.log_prob(loader(X)), result.log_prob(X))
    drawn = result.predict(loader(X), num_samples=3, seed=0)
    assert drawn["x"].shape == (3, COUNT)
    torch.testing.assert_close(result.posterior(loader(X)).marginal("z").probs, result.posterior(X).marginal("z").probs)


def test_iterate_and_interrupts() -> None:
    states = list(ppl_em.iterate(normals, loader(X), init="params", method=plain(3)))
    whole = list(ppl_em.iterate(normals, X, init="params", method=plain(3)))
    assert [s.step for s in states] == [0, 1, 2, 3]
    for a, b in zip(states, whole, strict=True):
        assert a.objective == pytest.approx(b.objective, abs=1e-8)
    for ask in (states[1].posterior, states[1].terms):
        with pytest.raises(PplEmError, match="loader are not at hand"):
            ask()

    def stop(state: Any) -> None:
        if state.step == 2:
            raise KeyboardInterrupt

    result = ppl_em.fit(normals, loader(X), init="params", method=plain(9, callback=stop))
    assert result.status is Status.INTERRUPTED
    assert result.objective == pytest.approx(whole[2].objective, abs=1e-8)


def shared(x: Tensor) -> None:
    z = pyro.sample("mood", dist.Bernoulli(0.5))
    loc = pyro.param("loc", torch.tensor([0.0, 1.0]))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc[z.long()], 1.0), obs=x)


def unplated(x: Tensor) -> None:
    pyro.sample("x", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0).expand([len(x)]).to_event(1), obs=x)


def with_total(x: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("total", dist.Normal(loc, 100.0), obs=x.sum())
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


@pytest.mark.parametrize(
    ("kind", "match", "program"),
    [
        (PlanError, "'mood'.*not independent", shared),
        (PlanError, "batches need a plate", unplated),
        (DataError, "'total'.*counted once", with_total),
    ],
)
def test_what_cannot_be_taken_in_parts_is_refused(kind: type[Exception], match: str, program: Any) -> None:
    with pytest.raises(kind, match=match):
        ppl_em.fit(program, loader(X), method="em")


def test_weights_and_empty_loaders_are_refused() -> None:
    with pytest.raises((PlanError, DataError), match="weights"):
        ppl_em.fit(normals, loader(X), method="em", weights=torch.ones(BATCH))
    with pytest.raises(DataError, match="no batches"):
        ppl_em.fit(normals, loader(X[:0]), method="em")
