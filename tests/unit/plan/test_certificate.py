"""A certificate holds when it is checked again, and fails where it or the program was changed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_em
from ppl_em.errors import EngineError
from ppl_em.plan.certificate import Certificate
from ppl_em.verify import rerun

X = torch.tensor([0.3, -1.0, 2.2])


def pair(x: Tensor, coupled: bool = True) -> None:
    weight = pyro.param("weight", torch.tensor([0.4, 0.6]), constraint=dist.constraints.simplex)
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Categorical(weight))
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a)) if coupled else pyro.sample("b", dist.Bernoulli(0.2))
        pyro.sample("x", dist.Normal(a - b, 1.0), obs=x)


def test_it_holds_for_its_program_and_lists_the_witnesses() -> None:
    certificate = ppl_em.explain(pair, X).certificate
    fresh = rerun(certificate, pair, X)
    assert fresh.treatment == {"a": "summed", "b": "summed"}
    assert fresh.scopes["x"] == ("a", "b")
    assert {"provenance", "replay", "brute force"} <= set(fresh.witnesses)
    copy = Certificate.from_dict(json.loads(json.dumps(certificate.to_dict())))
    assert copy == certificate
    assert rerun(copy, pair, X) == fresh


CORRUPTIONS: dict[str, Any] = {
    "treatment": lambda c: replace(c, treatment={**c.treatment, "b": "approximated"}),
    "a latent left out": lambda c: replace(c, treatment={"a": "summed"}),
    "a dependence left out": lambda c: replace(c, scopes={**c.scopes, "x": ("a",)}),
    "a witness invented": lambda c: replace(c, witnesses={**c.witnesses, "time": "steps compared"}),
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corrupted_certificate_fails(name: str) -> None:
    corrupted = CORRUPTIONS[name](ppl_em.explain(pair, X).certificate)
    with pytest.raises(EngineError, match="certificate does not hold"):
        rerun(corrupted, pair, X)


def test_another_program_fails() -> None:
    certificate = ppl_em.explain(pair, X).certificate
    with pytest.raises(EngineError, match=r"site 'b' depends on \['b'\]"):
        rerun(certificate, pair, X, model_kwargs={"coupled": False})


def test_randomness_that_has_come_in_fails() -> None:
    noise = [0.0]

    def noisy(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("x", dist.Normal(z + noise[0] * torch.rand(()), 1.0), obs=x) if noise[0] else pyro.sample(
                "x", dist.Normal(z, 1.0), obs=x
            )

    certificate = ppl_em.explain(noisy, X).certificate
    assert not certificate.unproven
    noise[0] = 1.0
    with pytest.raises(EngineError, match="unproven"):
        rerun(certificate, noisy, X)


def test_a_wrong_engine_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = ppl_em.explain(pair, X)
    engine = type(plan.blocks[0].engine)
    expected = engine.expected

    def off(self: Any, block: Any, factors: Any) -> Any:
        found = expected(self, block, factors)
        return replace(found, log_z=found.log_z.map(lambda t: t + 1e-3))

    monkeypatch.setattr(engine, "expected", off)
    with pytest.raises(EngineError, match="log Z is off"):
        rerun(plan.certificate, pair, X)
