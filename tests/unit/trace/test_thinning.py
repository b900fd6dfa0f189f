"""What plates repeat is scored once, and large plates are looked at in part: nothing else may change."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints

import ppl_em
from ppl_em.ir import Plate
from ppl_em.trace import scoring, thinning
from ppl_em.trace.thinning import Thinning

K, SERIES, STEPS = 3, 9, 12


def chain(x, lengths):
    start = pyro.param("start", torch.ones(K) / K, constraint=constraints.simplex)
    moves = pyro.param("moves", torch.eye(K) * 0.4 + 0.2, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 0.0, 1.0]))
    with pyro.plate("series", len(x)):
        z = None
        for t in ppl_em.markov(x.shape[1]):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Categorical(start if z is None else moves[z]))
                pyro.sample(f"x_{t}", dist.Normal(loc[z], 1.0), obs=x[:, t])


def nested(x, lengths):
    weights = pyro.param("weights", torch.ones(K) / K, constraint=constraints.simplex)
    loc = pyro.param("loc", torch.tensor([-1.0, 0.0, 1.0]))
    with pyro.plate("steps", x.shape[1]):
        z = pyro.sample("z", dist.Categorical(weights))
        with pyro.plate("series", len(x)):
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


@pytest.mark.parametrize("program", [chain, nested])
def test_the_plan_and_the_objective_are_those_of_all_elements(program, monkeypatch):
    data = torch.randn(SERIES, STEPS), torch.randint(1, STEPS + 1, (SERIES,))
    settings = {"method": ppl_em.EM(max_steps=3, tol=0.0), "restarts": 1}
    text, objective = str(ppl_em.explain(program, *data)), ppl_em.fit(program, *data, **settings).objective
    monkeypatch.setattr(scoring, "LARGE", 0)
    monkeypatch.setattr(thinning, "MANY", 12)
    monkeypatch.setattr(thinning, "FEWEST", 3)
    assert str(ppl_em.explain(program, *data)) == text
    assert float(ppl_em.fit(program, *data, **settings).objective) == pytest.approx(float(objective), rel=1e-12)


def test_dependence_between_elements_is_seen_among_few_of_them(monkeypatch):
    monkeypatch.setattr(scoring, "LARGE", 0)
    monkeypatch.setattr(thinning, "MANY", 12)
    monkeypatch.setattr(thinning, "FEWEST", 3)

    def model(x, rolled):
        loc = pyro.param("loc", torch.tensor([-1.0, 0.0, 1.0]))
        with pyro.plate("steps", x.shape[1]), pyro.plate("series", len(x)):
            mean = loc[pyro.sample("z", dist.Categorical(torch.ones(K) / K))]
            if rolled and mean.dim() == 2:  # not enumerated: what the enumerated run does not show
                mean = mean.roll(1, -1)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    x = torch.randn(SERIES, STEPS)
    assert "not claimed" in str(ppl_em.explain(model, x, True))
    assert "not claimed" not in str(ppl_em.explain(model, x, False))


def test_plates_inside_each_other_are_thinned_together():
    plates = {
        n: Plate(n, size, size, data=True, dim=d) for n, size, d in [("a", 1000, -1), ("b", 700, -2), ("c", 5, -3)]
    }
    index = Thinning(plates, [("a", "b"), ("c",)]).index
    assert set(index) <= {"a", "b"}
    kept = [len(index.get(n, range(plates[n].size))) for n in ("a", "b")]
    assert kept[0] * kept[1] <= thinning.MANY
    assert not Thinning(plates, [("a", "c")]).index
