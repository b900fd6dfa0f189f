"""``result.update(batch)``: one step on new data, as a new result."""

from __future__ import annotations

from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch.utils.data import DataLoader, TensorDataset

import ppl_em
from ppl_em import EM, SVI
from ppl_em.errors import PplEmError
from tests.unit.em import streamed_programs as programs
from tests.unit.em.streamed_programs import covariate, normals, three_kinds

X = three_kinds(300)


def fitted(**more: object) -> ppl_em.FitResult:
    return ppl_em.fit(normals, X, init="params", method=EM(**more))  # type: ignore[arg-type]


def test_a_stream_comes_within_a_hundredth_of_a_nat_of_the_full_fit() -> None:
    first, stream, held = three_kinds(1000, 5), three_kinds(50_000, 6), three_kinds(20_000, 7)
    result = ppl_em.fit(normals, first, init="params", method="em")
    before = float(result.log_prob(held).mean())
    full = ppl_em.fit(normals, torch.cat([first, stream]), init="params", method="em")
    best = float(full.log_prob(held).mean())
    for batch in stream.split(2500):
        result = result.update(batch)
    after = float(result.log_prob(held).mean())
    assert after > before
    assert best - after < 0.01
    assert result._averages.num_data == 51_000


def test_the_old_result_is_unchanged() -> None:
    result = fitted()
    params = {n: v.clone() for n, v in result.params.items()}
    history, text = result.history.clone(), str(result)
    new = result.update(three_kinds(100, 1))
    assert all(torch.equal(result.params[n], v) for n, v in params.items())
    assert torch.equal(result.history, history) and str(result) == text
    assert not torch.equal(new.params["loc"], result.params["loc"])


def test_the_new_result_speaks_of_the_batch() -> None:
    batch = three_kinds(100, 1)
    new = fitted().update(batch)
    assert new.num_observations == 100
    assert new.objective == pytest.approx(float(new.log_prob(batch).sum()), abs=1e-9)
    assert new.objective == float(new.history[-1])
    assert new.num_steps == fitted().num_steps + 1
    assert not new.converged
    assert new.posterior().marginal("z").probs.shape == (100, 3)


def test_with_exponent_one_a_complete_model_keeps_the_running_mean() -> None:
    """Without latents the averages are plain means, and updates are maximum likelihood on all data."""

    def normal(x: torch.Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    parts = X.split(100)
    result = ppl_em.fit(normal, parts[0], method=EM(step_exponent=1.0))
    for part in parts[1:]:
        result = result.update(part)
    torch.testing.assert_close(result.params["loc"], X.mean())
    torch.testing.assert_close(result.params["scale"], X.std(correction=0))


def test_priors_are_counted_once_however_many_updates() -> None:
    result = ppl_em.fit(programs.precisions, X[:100], init="params", method=EM(step_exponent=1.0))
    for part in X[100:].split(100):
        result = result.update(part)
    full = ppl_em.fit(programs.precisions, X, init="params", method="em")
    torch.testing.assert_close(result.point_estimates["precision"], full.point_estimates["precision"], rtol=0.1, atol=0)


@pytest.mark.parametrize("variant", ["batch", "stepwise", "incremental"])
def test_fits_from_loaders_carry_their_statistics(variant: str) -> None:
    loader = DataLoader(TensorDataset(X), batch_size=60)
    method = EM(variant=variant, max_steps=30, tol=0)  # type: ignore[arg-type]
    result = ppl_em.fit(normals, loader, init="params", method=method)
    new = result.update(three_kinds(60, 1))
    assert bool(torch.isfinite(new.params["loc"]).all())
    assert float((new.params["loc"] - result.params["loc"]).abs().max()) < 1.0


def test_least_squares_and_chains() -> None:
    u, y = covariate(400)
    result = ppl_em.fit(programs.lines, u[:200], y[:200], init="params", method="em")
    new = result.update(u[200:], y[200:])
    full = ppl_em.fit(programs.lines, u, y, init="params", method="em")
    torch.testing.assert_close(new.params["slope"], full.params["slope"], rtol=0, atol=0.1)
    x = programs.symbols(400, 6)
    chains = ppl_em.fit(programs.chains, x[:200], init="params", method=EM(max_steps=20)).update(x[200:])
    assert bool(torch.isfinite(chains.params["trans"]).all())


def test_what_has_no_statistics_is_refused_by_name() -> None:
    u, y = covariate(200)
    result = ppl_em.fit(programs.gate, u, y, init="params", method=EM(max_steps=3))
    with pytest.raises(PplEmError, match="gate.*no statistics of fixed size"):
        result.update(u, y)


def test_a_loaded_result_asks_for_its_data(tmp_path: Path) -> None:
    fitted().save(tmp_path)
    loaded = ppl_em.load(tmp_path, normals)
    batch = three_kinds(100, 1)
    with pytest.raises(PplEmError, match="with_data"):
        loaded.update(batch)
    torch.testing.assert_close(loaded.with_data(X).update(batch).params["loc"], fitted().update(batch).params["loc"])


# gradient steps ---------------------------------------------------------------------------------------------


def codes(x: torch.Tensor) -> None:
    """A code of one dimension, a loading that is learned, and a noise scale; x (n, 3)."""
    loading = pyro.param("loading", torch.tensor([0.5, 0.5, 0.5]))
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[..., None] * loading, scale).to_event(1), obs=x)


def coded(count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    z, noise = torch.randn(count, 1, generator=generator), torch.randn(count, 3, generator=generator)
    return (z * torch.tensor([2.0, -1.0, 1.0]) + 0.5 * noise).double()


def test_gradient_steps_on_a_stream_raise_the_held_out_bound() -> None:
    held = coded(2000, 3)
    result = ppl_em.fit(codes, coded(200, 1), method=SVI(max_steps=60, lr=0.02, hidden=(8,)))
    before, start = float(result.log_prob(held).mean()), result
    for batch in coded(6000, 2).split(100):
        result = result.update(batch)
    assert float(result.log_prob(held).mean()) > before + 0.05
    assert float(start.log_prob(held).mean()) == before
    assert result.num_steps == 120 and len(result.history) == 121
    assert result.num_trained == 6200 and result.num_observations == 100


def test_an_updated_fit_is_that_of_its_batch_and_the_old_one_stays() -> None:
    x, batch = coded(100, 1), coded(40, 2)
    result = ppl_em.fit(codes, x, method=SVI(max_steps=30, lr=0.02, hidden=(8,)))
    kept = {n: v.clone() for n, v in {**result.params, **result.guide_params}.items()}
    mean = result.posterior().marginal("z").mean
    new = result.update(batch)
    assert new.posterior().marginal("z").mean.shape == (40,)
    assert all(torch.equal({**result.params, **result.guide_params}[n], v) for n, v in kept.items())
    torch.testing.assert_close(result.posterior().marginal("z").mean, mean, rtol=0, atol=0)
    assert any(not torch.equal(new.guide_params[n], kept[n]) for n in new.guide_params)
    again = result.update(batch)
    assert all(torch.equal(again.params[n], new.params[n]) for n in new.params)


def test_the_optimiser_goes_on_where_it_was() -> None:
    """Adam's first step has the size of its learning rate whatever the gradient; a later one has a memory."""
    x = coded(100, 1)
    settings = SVI(max_steps=1, lr=0.1, schedule="constant", closed_form=False, hidden=())
    short = ppl_em.fit(codes, x, method=settings)
    state = short._training.optimiser["state"]
    assert all(int(s["step"]) == 1 for s in state.values())
    assert all(int(s["step"]) == 2 for s in short.update(x)._training.optimiser["state"].values())


def test_a_loaded_fit_has_no_optimiser(tmp_path: Path) -> None:
    result = ppl_em.fit(codes, coded(50, 1), method=SVI(max_steps=3, hidden=()))
    loaded = ppl_em.load(result.save(tmp_path), codes)
    with pytest.raises(PplEmError, match="state of the optimiser.*init=result"):
        loaded.update(coded(20, 2))
