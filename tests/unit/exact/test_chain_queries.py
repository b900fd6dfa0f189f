"""Queries of chains against enumeration of all paths."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppl_em.errors import DataError, EngineError
from ppl_em.exact import chain_layout, chain_paths
from ppl_em.exact.chain_factors import chain_factors
from ppl_em.exact.chain_queries import (
    entropy,
    filtered,
    forecast,
    k_best,
    pairwise,
    pairwise_between,
    sample_paths,
    viterbi,
)
from ppl_em.exact.chain_viterbi import viterbi_in_blocks
from tests.tolerances import BRUTE_FORCE, STATISTICAL
from tests.unit.exact.chains import TRANS, brute_force, enumerate_paths, one_by_one, random_chain

SIZES = [((), 1, 3), ((), 2, 1), ((3,), 2, 2), ((2, 2), 5, 3), ((1,), 4, 4), ((0,), 3, 2)]


def weights(chain: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """All paths (P, T) of one chain and their posterior probabilities (P)."""
    paths, score = enumerate_paths(*chain)
    return paths, score.softmax(0)


def stacked(rows: list[Tensor], batch: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
    return torch.stack(rows).reshape((*batch, *shape)) if rows else torch.empty((*batch, *shape))


@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize(("batch", "steps", "states"), SIZES)
def test_filtered(trans: str, batch: tuple[int, ...], steps: int, states: int) -> None:
    factors = random_chain(batch, steps, states, trans)
    expected = []
    for init, log_trans, obs in one_by_one(factors):
        ends = [brute_force(init, log_trans[:t], obs[: t + 1])[1][-1] for t in range(steps)]
        expected.append(torch.stack(ends))
    ours = filtered(*factors)
    torch.testing.assert_close(ours, stacked(expected, batch, (steps, states)), atol=BRUTE_FORCE, rtol=0)


@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize(("batch", "steps", "states"), SIZES)
def test_pairs_and_entropy(trans: str, batch: tuple[int, ...], steps: int, states: int) -> None:
    factors = random_chain(batch, steps, states, trans)
    chains = one_by_one(factors)
    pairs = stacked([brute_force(*chain)[2] for chain in chains], batch, (steps - 1, states, states))
    torch.testing.assert_close(pairwise(*factors), pairs, atol=BRUTE_FORCE, rtol=0)
    of_paths = stacked([torch.special.entr(weights(chain)[1]).sum() for chain in chains], batch, ())
    torch.testing.assert_close(entropy(*factors), of_paths, atol=BRUTE_FORCE, rtol=0)


@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize(("s", "t"), [(0, 1), (0, 4), (1, 3), (3, 4)])
def test_pairs_of_any_two_steps(trans: str, s: int, t: int) -> None:
    factors = random_chain((2,), 5, 3, trans)
    expected = []
    for chain in one_by_one(factors):
        paths, probs = weights(chain)
        expected.append(torch.zeros(9).index_add_(0, paths[:, s] * 3 + paths[:, t], probs).reshape(3, 3))
    ours = pairwise_between(*factors, s, t)
    torch.testing.assert_close(ours, torch.stack(expected), atol=BRUTE_FORCE, rtol=0)


def test_work_arrays_are_cut_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    factors = random_chain((3,), 30, 2, "all")
    whole = pairwise(*factors), entropy(*factors), pairwise_between(*factors, 4, 29)
    monkeypatch.setattr("ppl_em.exact.chain_messages._CHUNK", 7 * 3 * 4)
    for cut, uncut in zip(
        (pairwise(*factors), entropy(*factors), pairwise_between(*factors, 4, 29)), whole, strict=True
    ):
        torch.testing.assert_close(cut, uncut, atol=BRUTE_FORCE, rtol=0)


@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize(("batch", "steps", "states"), SIZES)
@pytest.mark.parametrize("k", [1, 2, 5, 300])
def test_best_paths(trans: str, batch: tuple[int, ...], steps: int, states: int, k: int) -> None:
    factors = random_chain(batch, steps, states, trans)
    paths, log_probs = k_best(*factors, k)
    assert paths.shape == (*batch, k, steps) and log_probs.shape == (*batch, k)
    paths, log_probs = paths.reshape(-1, k, steps), log_probs.reshape(-1, k)
    for i, chain in enumerate(one_by_one(factors)):
        every, score = enumerate_paths(*chain)
        score, order = score.sort(descending=True)
        number = min(k, len(score))
        torch.testing.assert_close(log_probs[i, :number], score[:number], atol=BRUTE_FORCE, rtol=0)
        assert torch.equal(paths[i, :number], every[order[:number]])
        assert (log_probs[i, number:] == -torch.inf).all()
    path, log_prob = viterbi(*factors)
    assert torch.equal(path.reshape(-1, steps), paths[:, 0])
    assert torch.equal(log_prob.reshape(-1), log_probs[:, 0])


@pytest.mark.parametrize("steps", [96, 97, 100, 111])
@pytest.mark.parametrize("kind", ["dense", "zeros", "left to right"])
def test_viterbi_in_blocks(steps: int, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks give what the whole chain gives; where they cannot agree, the whole chain is done."""
    init, trans, obs = random_chain((2, 3), steps, 4, "shared")
    if kind != "dense":
        allowed = torch.ones(4, 4).triu() if kind == "left to right" else torch.ones(4, 4).triu(-1)
        trans, init[0, 0, 1] = trans + allowed.log(), -torch.inf
    obs[1, 2, 7] = -torch.inf
    paths, log_probs = k_best(init, trans, obs, 1)
    monkeypatch.setattr(chain_layout, "_COLUMNS", 60)
    monkeypatch.setattr(chain_layout, "_SHORTEST_BLOCK", 12)
    in_blocks = viterbi_in_blocks(chain_factors(init, trans, obs))
    assert in_blocks is not None or kind == "left to right"
    path, log_prob = viterbi(init, trans, obs)
    possible = log_prob > -torch.inf
    assert possible.sum() == 5
    assert torch.equal(path[possible], paths[possible][:, 0])
    torch.testing.assert_close(log_prob, log_probs[..., 0], atol=BRUTE_FORCE, rtol=0)


@pytest.mark.parametrize("few", [0, 1 << 30])
@pytest.mark.parametrize("trans", TRANS)
def test_draws_have_the_posterior_frequencies(trans: str, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_paths, "_FEW", few)
    factors = random_chain((2,), 3, 2, trans)
    number = 20_000
    draws = sample_paths(*factors, number, generator=torch.Generator().manual_seed(3))
    assert draws.shape == (number, 2, 3)
    code = (draws * torch.tensor([4, 2, 1])).sum(-1)
    for i, chain in enumerate(one_by_one(factors)):
        _, probs = weights(chain)
        frequency = torch.bincount(code[:, i], minlength=8) / number
        standard_error = (probs * (1 - probs) / number).sqrt()
        assert ((frequency - probs).abs() <= STATISTICAL * standard_error + 1 / number).all()


@pytest.mark.parametrize("few", [0, 1 << 30])
def test_draws_repeat_and_avoid_impossible_states(few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_paths, "_FEW", few)
    init, trans, obs = random_chain((4,), 6, 3, "shared")
    trans = torch.where(torch.tensor([[True, True, False]] * 3).triu(), trans, -torch.inf)
    trans[1:] = torch.tensor([[-torch.inf, 0.0, 0.0], [-torch.inf, -torch.inf, 0.0]])
    first = sample_paths(init, trans, obs, 500, generator=torch.Generator().manual_seed(1))
    again = sample_paths(init, trans, obs, 500, generator=torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    assert torch.isfinite(trans[first[..., :-1], first[..., 1:]]).all()


def test_no_draw_of_an_impossible_chain() -> None:
    init, trans, obs = random_chain((4,), 6, 3, "shared")
    obs[2, 3] = -torch.inf
    with pytest.raises(EngineError, match="1 of 4 chains"):
        sample_paths(init, trans, obs, 2)


def test_forecast_equals_unobserved_steps() -> None:
    init, trans, obs = random_chain((2,), 4, 3, "shared")
    trans = trans.log_softmax(-1)
    longer = torch.cat([obs, torch.zeros(2, 5, 3)], 1)
    expected = filtered(init, trans, longer)[:, 4:]
    ours = forecast(filtered(init, trans, obs)[:, -1], trans.exp(), 5)
    torch.testing.assert_close(ours, expected, atol=BRUTE_FORCE, rtol=0)
    by_step = torch.randn(2, 5, 3, 3).log_softmax(-1)
    varying = torch.cat([trans.expand(2, 3, 3, 3), by_step], 1)
    expected = filtered(init, varying, longer)[:, 4:]
    ours = forecast(filtered(init, trans, obs)[:, -1], by_step.exp(), 5)
    torch.testing.assert_close(ours, expected, atol=BRUTE_FORCE, rtol=0)


@pytest.mark.parametrize(("s", "t"), [(2, 2), (3, 1), (-1, 2), (0, 5)])
def test_wrong_steps_are_named(s: int, t: int) -> None:
    with pytest.raises(DataError, match=f"s={s} and t={t}"):
        pairwise_between(*random_chain((), 5, 2, "shared"), s, t)


def test_wrong_numbers_are_named() -> None:
    factors = random_chain((), 5, 2, "shared")
    with pytest.raises(DataError, match="k=0"):
        k_best(*factors, 0)
    with pytest.raises(DataError, match="steps=0"):
        forecast(torch.ones(1), torch.ones(1, 1), 0)
