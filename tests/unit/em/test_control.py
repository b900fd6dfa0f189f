"""Watching and stopping a fit: callbacks, interrupts, ``iterate``, the progress line."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch

import ppl_em
from ppl_em import EM, Status
from tests.tolerances import BRUTE_FORCE
from tests.unit.programs import chain, mixture, two_kinds

X = two_kinds()


def plain(max_steps: int, **more: object) -> EM:
    return EM(max_steps=max_steps, tol=0, accelerate=False, **more)  # type: ignore[arg-type]


def test_a_callback_sees_every_state() -> None:
    seen = []
    result = ppl_em.fit(mixture, X, init="params", method=plain(5, callback=seen.append))
    assert [s.step for s in seen][:6] == [0, 1, 2, 3, 4, 5]
    assert [s.objective for s in seen][:6] == result.history.tolist()
    assert seen[-1].status is Status.ALL_STEPS
    assert seen[0].params["loc"].tolist() == [-1.0, 1.0]
    torch.testing.assert_close(seen[-1].params["loc"], result.params["loc"])


def test_a_callback_cannot_change_the_fit() -> None:
    def vandal(state: object) -> None:
        state.params["loc"].zero_()  # type: ignore[attr-defined]

    calm = ppl_em.fit(mixture, X, init="params", method=plain(4))
    torn = ppl_em.fit(mixture, X, init="params", method=plain(4, callback=vandal))
    assert torch.equal(calm.history, torn.history)
    assert torch.equal(calm.params["loc"], torn.params["loc"])


@pytest.mark.parametrize("restarts", [1, 3, None])
def test_stop_iteration_ends_the_whole_fit(restarts: int | None) -> None:
    starts = set()

    def stop(state: object) -> None:
        starts.add(state.start)  # type: ignore[attr-defined]
        if state.step == 3:  # type: ignore[attr-defined]
            raise StopIteration

    result = ppl_em.fit(mixture, X, restarts=restarts, method=EM(callback=stop))
    assert result.status is Status.STOPPED
    assert not result.converged
    assert starts == {0}
    assert result.num_steps == 3
    assert result.history.shape == (4,)
    assert result.objective == float(result.history[-1])


def test_another_error_in_a_callback_is_the_users() -> None:
    def fail(state: object) -> None:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        ppl_em.fit(mixture, X, method=EM(callback=fail))


def interrupt_at(start: int, step: int) -> Callable[[object], None]:
    def callback(state: object) -> None:
        if state.start == start and state.step >= step:  # type: ignore[attr-defined]
            raise KeyboardInterrupt

    return callback


@pytest.mark.parametrize(("start", "step"), [(0, 2), (2, 0), (2, 1)])
def test_an_interrupted_fit_returns_the_best_so_far(start: int, step: int, no_footprint: Callable) -> None:
    with no_footprint():
        result = ppl_em.fit(mixture, X, restarts=4, method=EM(callback=interrupt_at(start, step)))
    assert result.status is Status.INTERRUPTED
    assert not result.converged
    assert len(result.restarts) == start + 1
    again = ppl_em.fit(mixture, X, init=result, method=EM(max_steps=0))
    assert again.objective == pytest.approx(result.objective, abs=BRUTE_FORCE)
    assert result.objective >= max(r.objective for r in result.restarts) - 1e-9


def test_an_interrupt_during_screening_returns_the_best_so_far() -> None:
    result = ppl_em.fit(mixture, X, method=EM(callback=interrupt_at(4, 3)))
    assert result.status is Status.INTERRUPTED
    assert len(result.restarts) == 5


def test_iterate_is_the_loop_that_fit_runs() -> None:
    states = list(ppl_em.iterate(mixture, X, init="params", method=plain(6)))
    result = ppl_em.fit(mixture, X, init="params", method=plain(6))
    assert [s.step for s in states] == [*range(7)]
    assert [s.objective for s in states] == result.history.tolist()
    assert [s.status for s in states[:-1]] == [None] * 6
    assert states[-1].status is Status.ALL_STEPS
    torch.testing.assert_close(states[-1].params["loc"], result.params["loc"])


def test_each_iterate_answers_queries(no_footprint: Callable) -> None:
    with no_footprint():
        for state in ppl_em.iterate(chain, X[:6], init="params", method=plain(2)):
            probs = state.posterior().marginal("z_3").probs
            assert float(probs.sum()) == pytest.approx(1.0)
            terms = state.terms()
            assert terms["elbo"] == pytest.approx(state.objective, abs=BRUTE_FORCE)
            assert terms["kl"] == pytest.approx(0.0, abs=BRUTE_FORCE)


def test_iterate_can_be_left_at_any_time(no_footprint: Callable) -> None:
    with no_footprint():
        for state in ppl_em.iterate(mixture, X, init="params"):
            if state.step == 2:
                break


def test_the_users_random_numbers_do_not_depend_on_the_loop() -> None:
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    drawn = []
    for _, _state in zip(range(3), ppl_em.iterate(mixture, X, init="params"), strict=False):
        drawn.append(torch.rand(()))
    assert torch.equal(torch.stack(drawn), expected)


def test_progress_says_where_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    ppl_em.fit(mixture, X, restarts=2, progress=True)
    shown = capsys.readouterr().err
    assert "start 1/2" in shown
    assert re.search(r"objective -\d+\.\d+", shown)
    assert "nats to gain" in shown or "gaining" in shown


@pytest.mark.parametrize("progress", [False, None])
def test_progress_is_silent_where_nobody_looks(progress: bool | None, capsys: pytest.CaptureFixture[str]) -> None:
    ppl_em.fit(mixture, X, restarts=2, progress=progress)
    captured = capsys.readouterr()
    assert captured.err == "" and captured.out == ""


def test_a_fit_does_not_mind_where_it_is_called(no_footprint: Callable) -> None:
    """Gradient mode and the caller's handlers have no part in it."""
    import pyro.poutine as poutine

    expected = ppl_em.fit(mixture, X, init="params", method=plain(3))
    with no_footprint(), torch.no_grad():
        quiet = ppl_em.fit(mixture, X, init="params", method=plain(3))
        assert not torch.is_grad_enabled()
    with poutine.trace() as tracer, poutine.scale(scale=2.0):
        inside = ppl_em.fit(mixture, X, init="params", method=plain(3))
    assert list(tracer.trace.nodes) == []
    assert torch.equal(expected.history, quiet.history)
    assert torch.equal(expected.history, inside.history)
