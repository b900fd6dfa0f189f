"""A plan can be asked: who does what, why, at what cost, what was rejected; as text, HTML and JSON."""

from __future__ import annotations

import json

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ppl_em
from ppl_em import EM, Auto
from tests.unit.programs import chain, mixture, two_kinds

X = two_kinds(12)


def grid(x: Tensor) -> None:
    """A global coin above a latent per row above one per element; x (3, 2)."""
    p = pyro.param("p", torch.tensor([0.3, 0.6]), constraint=constraints.unit_interval)
    loc = pyro.param("loc", torch.zeros(2, 2) + torch.arange(2.0))
    coin = pyro.sample("coin", dist.Bernoulli(0.5)).long()
    with pyro.plate("rows", 3, dim=-2):
        row = pyro.sample("row", dist.Bernoulli(p[coin])).long()
        with pyro.plate("columns", 2, dim=-1):
            cell = pyro.sample("cell", dist.Bernoulli(p[row])).long()
            pyro.sample("x", dist.Normal(loc[row, cell], 1.0), obs=x)


GRID = torch.arange(6.0).reshape(3, 2)


def test_engines_and_rules_by_name() -> None:
    plan = ppl_em.explain(chain, X)
    assert plan.engine_of("z") == plan.engine_of("z_0") == plan.engine_of("z_11") == "chain"
    assert plan.rule_of("loc") == "closed form"
    assert ppl_em.explain(mixture, X).engine_of("z") == "mixture"
    assert {ppl_em.explain(grid, GRID).engine_of(z) for z in ("coin", "row", "cell")} == {"elimination"}


@pytest.mark.parametrize("query", ["engine_of", "rule_of"])
@pytest.mark.parametrize("name", ["w", "z_1x", "", "x"])
def test_names_that_do_not_exist(query: str, name: str) -> None:
    with pytest.raises(KeyError, match=r"the program has"):
        getattr(ppl_em.explain(mixture, X), query)(name)


def test_what_was_rejected_is_kept_with_its_reason() -> None:
    plan = ppl_em.explain(grid, GRID)
    rejected = dict(plan.rejected["cell"])
    assert list(rejected) == ["mixture", "chain"]
    assert "3 connected latents" in rejected["mixture"]
    assert "not mixture: " in str(plan) and "not chain: " in str(plan)
    assert ppl_em.explain(mixture, X).rejected == {}


def test_exactness_comes_with_evidence() -> None:
    plan = ppl_em.explain(grid, GRID)
    assert plan.exact
    certificate = plan.certificate
    assert certificate.treatment == {"coin": "summed", "row": "summed", "cell": "summed"}
    assert {"provenance", "replay"} <= set(certificate.witnesses)
    assert certificate.unproven == ()


def test_randomness_outside_sample_statements_is_not_called_exact() -> None:
    def noisy(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z + torch.randn(()), 1.0), obs=x)

    plan = ppl_em.explain(noisy, X)
    assert not plan.exact
    assert "'x'" in plan.certificate.unproven[0]
    assert "not claimed" in str(plan)


def test_costs_grow_with_the_shapes_alone() -> None:
    small, large = (ppl_em.explain(mixture, two_kinds(n)).blocks[0] for n in (10, 1000))
    assert large.flops == pytest.approx(100 * small.flops)
    wide = ppl_em.explain(mixture, X, model_kwargs={"num_components": 4}).blocks[0]
    assert wide.bytes > ppl_em.explain(mixture, X).blocks[0].bytes


def test_a_budget_is_kept() -> None:
    plan = ppl_em.explain(mixture, two_kinds(100_000), method=Auto(memory_bytes=1e4))
    assert not plan.exact
    (_, why), *_ = plan.rejected["z"]
    assert "budget" in why and "Auto(memory_bytes" in why


def test_text_html_and_json_say_the_same() -> None:
    plan = ppl_em.explain(grid, GRID)
    text, page, plain = str(plan), plan._repr_html_(), plan.to_dict()
    assert text.startswith("Plan: exact EM")
    for name in ("coin", "row", "cell", "p[2]", "loc[2×2]", "rows=3, columns=2"):
        assert name in text
        assert name in page
    assert json.loads(json.dumps(plain)) == plain
    assert plain["exact"] is True and plain["method"] == "em"
    assert plain["blocks"][0]["engine"] == "elimination"
    assert {u["rule"] for u in plain["updates"]} == {plan.rule_of("p"), plan.rule_of("loc")}


def test_html_is_escaped() -> None:
    def model(x: Tensor) -> None:
        loc = pyro.param("<b>", torch.zeros(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    assert "<b>" not in ppl_em.explain(model, X)._repr_html_().replace("&lt;b&gt;", "")


def test_the_rules_of_a_chain_are_shared_over_time() -> None:
    plan = ppl_em.explain(chain, X)
    updates = {p: u for u in plan.updates for p in u.parameters}
    assert updates["trans"].family == updates["init"].family == "Categorical"
    assert updates["loc"].family == "Normal"


def test_a_parameter_that_nothing_depends_on() -> None:
    def model(x: Tensor) -> None:
        pyro.param("idle", torch.tensor(2.0))
        mixture(x)

    result = ppl_em.fit(model, X, init="params", method=EM(max_steps=2))
    assert "idle: no density depends on it" in str(result.plan)
    assert float(result.params["idle"]) == 2.0


def test_factors_make_the_objective_unnormalised_and_the_plan_says_so() -> None:
    def model(x: Tensor) -> None:
        mixture(x)
        pyro.factor("penalty", -pyro.param("loc").square().sum())

    assert "not a normalised likelihood" in str(ppl_em.explain(model, X))


def test_tensors_that_would_never_be_trained_are_named() -> None:
    stray = torch.tensor(0.5, requires_grad=True)

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(stray, 1.0), obs=x)

    with pytest.warns(UserWarning, match=r"site 'x'.*registered nowhere"):
        ppl_em.explain(model, X)


def test_explaining_runs_the_program_a_fixed_number_of_times() -> None:
    runs = []

    def counted(x: Tensor) -> None:
        runs.append(len(x))
        mixture(x)

    for n in (10, 1000):
        runs.clear()
        ppl_em.explain(counted, two_kinds(n))
        assert 1 <= len(runs) <= 12
        first = len(runs)
    assert len(runs) == first


def test_explaining_does_no_inference() -> None:
    """The text is the same whatever the parameters are; none of them is changed."""
    plan = ppl_em.explain(mixture, X, init={"loc": [5.0, 6.0]})
    assert str(plan) == str(ppl_em.explain(mixture, X))
    assert plan.program.parameters["loc"].init.tolist() == [5.0, 6.0]
