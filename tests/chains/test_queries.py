"""Questions about time: prediction, forecasts and k-best paths against enumeration of shorter and longer data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

import ppl_em
from ppl_em.errors import PplEmError
from ppl_em.plan.plan import Plan
from ppl_em.posterior import Posterior
from tests.chains import programs as p
from tests.chains.cases import CASES, SINGLE
from tests.styles.checks import random_values
from tests.styles.oracle import Truth, enumerate_program
from tests.tolerances import BRUTE_FORCE


@cache
def prepared(name: str) -> tuple[Plan, dict[str, Tensor], Posterior]:
    case = CASES[name]
    plan = ppl_em.explain(case.model, *case.args, method="em")
    values = random_values(plan, 23)
    return plan, values, Posterior(plan, values)


_SEEN: dict[Any, Truth] = {}


def enumerated(name: str, x: Tensor, *rest: Any) -> Truth:
    key = (name, *(tuple(a.flatten().tolist()) if isinstance(a, Tensor) else a for a in (x, *rest)))
    if key not in _SEEN:
        _SEEN[key] = enumerate_program(CASES[name].model, (x, *rest), prepared(name)[1])
    return _SEEN[key]


def close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, atol=BRUTE_FORCE, rtol=0)


def step(family: str, t: int, names: Iterable[str]) -> str:
    """The latent of a family at a step."""
    return next(z for z in names if z in (f"{family}_{t}", f"{family}[{t}]"))


# Enumerating one more step of three chains takes a minute; they are two chains and one.
LONG = ("factorial", "hierarchical", "semi-Markov", "orders two and one", "mixture emission")
AHEAD = [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in SINGLE if n != "factorial, numbered"]


@pytest.mark.parametrize("name", AHEAD)
def test_forecast(name: str) -> None:
    """Also where a latent follows the last observation already in the data (third order)."""
    case = CASES[name]
    posterior, x = prepared(name)[2], case.args[0]
    truth = enumerated(name, x, 1)
    for family in case.families:
        if name == "mixture emission" and family == "m":
            with pytest.raises(PplEmError, match="single step"):
                posterior.forecast(1, family)
            continue
        found = posterior.forecast(1, family).probs
        z = step(family, len(x), truth.values[0])
        close(found[0], truth.marginal(z, torch.arange(found.shape[-1]), 0).reshape(-1))


Values = Mapping[str, Tensor]
LOCATIONS: dict[tuple[str, str], Callable[[Values, Callable[[str], Tensor]], Tensor]] = {
    ("first order", "x"): lambda v, z: v["loc"][z("z")],
    ("second order", "x"): lambda v, z: v["loc"][z("z")],
    ("factorial", "x"): lambda v, z: v["loc"][z("z"), z("w")],
    ("coupled", "x"): lambda v, z: v["left"][z("z")],
    ("coupled", "y"): lambda v, z: v["right"][z("w")],
    ("hierarchical", "x"): lambda v, z: v["loc"][z("z")],
    ("class of a series", "x"): lambda v, z: v["loc"][z("c"), z("z")],
}


@pytest.mark.parametrize(("name", "site"), LOCATIONS)
def test_forecast_of_observations(name: str, site: str) -> None:
    _, values, posterior = prepared(name)
    x, value = CASES[name].args[0], torch.tensor(0.37)
    truth = enumerated(name, x, 1)
    locations = torch.stack(
        [
            LOCATIONS[name, site](
                values, lambda f, run=run: run[f] if f in run else run[step(f, len(x), run)]
            ).squeeze()
            for run in truth.values
        ]
    )
    wanted = (truth.scores + torch.distributions.Normal(locations, 0.8).log_prob(value)).logsumexp(0) - truth.log_z
    found = posterior.forecast(2, site)
    assert found.batch_shape == (2,)
    close(found.log_prob(value)[0], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ragged", "ragged, factorial"])
def test_forecast_in_plates(name: str) -> None:
    """Each series goes on from its own last step, not from the end of the padding."""
    posterior = prepared(name)[2]
    found = posterior.forecast(3, "x")
    assert found.batch_shape == (2, 3)
    value = torch.tensor([0.2, -0.2]) if found.event_shape else torch.tensor(0.2)
    for row, length in enumerate(p.LENGTHS.tolist()):
        x = p.MANY[row : row + 1, :length]
        truth = enumerated(name, x, torch.tensor([length]))
        longer = enumerated(name, torch.cat([x, torch.tensor([[0.2]])], 1), torch.tensor([length + 1]))
        close(found.log_prob(value)[row, 0], longer.log_z - truth.log_z)
        for family in CASES[name].families:
            state = posterior.forecast(1, family).probs[row, 0]
            ahead = enumerated(name, torch.cat([x, x[:, :1]], 1), torch.tensor([length]))
            close(state, ahead.marginal(f"{family}_{length}", torch.arange(len(state)), 0).reshape(-1))


@pytest.mark.parametrize("name", ["time-varying", "input-driven", "ragged, time-varying"])
def test_no_forecast_of_what_varies(name: str) -> None:
    with pytest.raises(PplEmError, match="vary over time"):
        prepared(name)[2].forecast(1)


def test_no_forecast_from_earlier_observations() -> None:
    posterior = prepared("autoregressive")[2]
    with pytest.raises(PplEmError, match="no forecast of this observation"):
        posterior.forecast(1, "x")


def test_predicted_states() -> None:
    _, _, posterior = prepared("first order")
    x = CASES["first order"].args[0]
    for t in range(len(x)):
        truth = enumerated("first order", x[:t], 1)
        close(posterior.predicted("z").probs[t], truth.marginal(f"z_{t}", torch.arange(3), 0).reshape(-1))


MANY = ["ragged", "ragged, second order", "ragged, factorial", "ragged, time-varying", "class of many, ragged"]


@pytest.mark.parametrize("name", [*SINGLE, "class of many", "impossible moves", *MANY])
def test_k_best(name: str) -> None:
    """Of each series up to its own length: padding does not multiply the paths."""
    case, k = CASES[name], 5
    _, _, posterior = prepared(name)
    found, log_probs = posterior.k_best(k)
    rows = len(case.args[0]) if case.rows else 1
    for row in range(rows):
        args = tuple(a[row : row + 1] for a in case.args) if case.rows else case.args
        if len(args) == 2:
            args = (args[0][:, : int(args[1])], args[1])
        truth = enumerated(name, *args)
        order = truth.scores.argsort(descending=True)[:k]
        mine = log_probs[:, row] if case.rows else log_probs
        wanted = torch.full((k,), -torch.inf)
        wanted[: len(order)] = truth.scores[order] - truth.log_z
        close(mine, wanted)
        for rank, i in enumerate(order.tolist()):
            for family, values in found.items():
                drawn = (values[rank, row] if case.rows else values[rank]).reshape(-1).tolist()
                members = [z for z in truth.values[i] if z == family or z.startswith((f"{family}_", f"{family}["))]
                assert [int(truth.values[i][z]) for z in members] == drawn[: len(members)]


def test_k_best_beyond_all() -> None:
    _, _, posterior = prepared("time-varying")
    _, log_probs = posterior.k_best(40)
    assert int(log_probs.isfinite().sum()) == 2**4
    close(log_probs.exp().sum(), torch.ones(()))


def test_paths_of_families() -> None:
    plan, _, posterior = prepared("coupled")
    for family in ("z", "w"):
        stacked = torch.stack([posterior.marginal(f"{family}[{t}]").probs for t in range(3)])
        close(posterior.path(family).probs, stacked)
        mode = posterior.mode()
        assert torch.equal(posterior.mode_path(family), torch.stack([mode[f"{family}[{t}]"] for t in range(3)]))
    with pytest.raises(PplEmError, match="no chain of this name"):
        posterior.path("y")


def test_new_data() -> None:
    """Every query of a fit on data that it was not fitted to, of another length."""
    result = ppl_em.fit(p.factorial, p.X, init="params", restarts=1, method=ppl_em.EM(max_steps=1))
    new = torch.tensor([0.1, 0.2, -0.4])
    truth = enumerate_program(p.factorial, (new,), result.params)
    posterior = result.posterior(new)
    assert float(result.log_prob(new)) == pytest.approx(float(truth.log_z), abs=BRUTE_FORCE)
    close(posterior.marginal("w_2").probs, truth.marginal("w_2", torch.arange(3), 0).reshape(-1))
    best = truth.values[int(truth.scores.argmax())]
    assert {z: int(v) for z, v in posterior.mode().items()} == {z: int(v) for z, v in best.items()}
