"""The scaled kernels, whole and in blocks, against their twin in log space."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ppl_em.exact import chain_estep, chain_groups, chain_layout, chain_scan
from ppl_em.exact.chain_buffers import ChainBuffers
from ppl_em.exact.chain_factors import ChainFactors, chain_factors
from ppl_em.exact.chain_log_space import log_backward, log_counts, log_forward
from ppl_em.exact.chain_scaled import rescaling_period, scaled_transitions
from ppl_em.exact.forward_backward import expected_counts
from tests.unit.exact.chains import TRANS, random_chain

TWIN = 1e-10


def assert_twins(factors: tuple[Tensor, Tensor, Tensor], weight: Tensor | None = None) -> None:
    """What `expectations` gives is what log space gives."""
    chain = chain_factors(*factors)
    ours = chain_estep.expectations(chain, weight)
    forward, log_z = log_forward(chain)
    gamma, xi = log_counts(chain, forward, log_backward(chain), weight)
    assert ours.gamma is not None and ours.xi is not None
    torch.testing.assert_close(ours.log_z, log_z, atol=TWIN, rtol=1e-13)
    torch.testing.assert_close(ours.gamma, gamma, atol=TWIN, rtol=0)
    torch.testing.assert_close(ours.xi, xi, atol=TWIN, rtol=TWIN)
    alone = chain_estep.expectations(chain, weight, counts=False)
    torch.testing.assert_close(alone.log_z, log_z, atol=TWIN, rtol=1e-13)


def in_blocks(monkeypatch: pytest.MonkeyPatch, columns: int, shortest: int) -> None:
    """Cut chains into about ``columns`` blocks of at least ``shortest`` steps."""
    monkeypatch.setattr(chain_layout, "_COLUMNS", columns)
    monkeypatch.setattr(chain_layout, "_SHORTEST_BLOCK", shortest)
    monkeypatch.setattr(chain_layout, "_FEWEST_BLOCKS", 2)


@pytest.fixture
def no_log_space(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fallback must not hide a fault of the scaled kernels."""

    def refuse(*_: object) -> None:
        raise AssertionError("log space was used")

    monkeypatch.setattr(chain_estep, "_in_log_space", refuse)


@pytest.mark.usefixtures("no_log_space")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize(("batch", "steps", "states"), [((), 1, 2), ((), 40, 3), ((5,), 33, 1), ((2, 3), 24, 4)])
def test_whole_chains(trans: str, batch: tuple[int, ...], steps: int, states: int, weighted: bool) -> None:
    factors = random_chain(batch, steps, states, trans)
    assert_twins(factors, torch.randn(*batch, steps) if weighted else None)


@pytest.mark.usefixtures("no_log_space")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("steps", [96, 97, 100, 111])
def test_chains_in_blocks(trans: str, steps: int, weighted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks(monkeypatch, 60, 12)
    factors = random_chain((2, 3), steps, 3, trans)
    layout = chain_layout.choose_layout(1, 6, steps, False)
    assert layout.num_blocks > 5
    assert_twins(factors, torch.randn(2, 3, steps) if weighted else None)


@pytest.mark.usefixtures("no_log_space")
@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("steps", [96, 103])
def test_chains_that_remember_across_blocks(trans: str, steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks(monkeypatch, 60, 12)
    products = []
    product = chain_scan.block_products
    monkeypatch.setattr(chain_scan, "block_products", lambda run: products.append(run) or product(run))
    init, log_trans, obs = random_chain((2, 3), steps, 3, trans)
    log_trans = (1e-3 * log_trans.softmax(-1) + torch.eye(3)).log()
    assert_twins((init, log_trans, 0.01 * obs))
    assert products, "sweeps alone should not do for a chain that never forgets"


@pytest.mark.usefixtures("no_log_space")
def test_pieces_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_groups, "_PIECE", 300)
    monkeypatch.setattr(chain_groups, "_FEWEST_COLUMNS", 2)
    for trans in TRANS:
        factors = random_chain((7,), 30, 3, trans)
        assert_twins(factors)
        assert_twins(factors, torch.rand(7, 30))


@pytest.mark.usefixtures("no_log_space")
@pytest.mark.parametrize("columns", [2, 100])
@pytest.mark.parametrize("stochastic", [True, False])
@pytest.mark.parametrize("observed", [True, False])
def test_padding(columns: int, stochastic: bool, observed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Padding is left out where that changes nothing, and worked on where it does."""
    monkeypatch.setattr(chain_groups, "_PIECE", 300)
    monkeypatch.setattr(chain_groups, "_FEWEST_COLUMNS", columns)
    init, trans, obs = random_chain((9,), 30, 3, "shared")
    trans = trans.log_softmax(-1) if stochastic else trans
    lengths = torch.tensor([5, 25, 1, 17, 17, 2, 9, 11, 24])
    alive = torch.arange(30) < lengths.unsqueeze(-1)
    obs = obs if observed else obs.masked_fill(~alive.unsqueeze(-1), 0.0)
    cells = []

    def spy(num_groups: int, num_chains: int, num_steps: int, steps_differ: bool) -> chain_layout.Layout:
        cells.append(num_chains * num_steps)
        return chain_layout.choose_layout(num_groups, num_chains, num_steps, steps_differ)

    monkeypatch.setattr(chain_estep, "choose_layout", spy)
    ours = chain_estep.expectations(chain_factors(init, trans, obs), alive.to(obs.dtype))
    assert sum(cells) <= 9 * 25 if stochastic and not observed else sum(cells) == 9 * 30
    assert ours.gamma is not None
    torch.testing.assert_close(ours.gamma.sum(-1), torch.ones(9, 30))
    assert_twins((init, trans, obs), alive.to(obs.dtype))


@pytest.mark.usefixtures("no_log_space")
@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("plain", [False, True])
def test_padding_with_weights(plain: bool, blocks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain_groups, "_PIECE", 300)
    monkeypatch.setattr(chain_groups, "_FEWEST_COLUMNS", 3)
    if blocks:
        in_blocks(monkeypatch, 30, 10)
    init, trans, obs = random_chain((7,), 90, 3, "shared")
    lengths = torch.tensor([50, 85, 1, 37, 37, 90, 12])
    alive = torch.arange(90) < lengths.unsqueeze(-1)
    obs = obs.masked_fill(~alive.unsqueeze(-1), 0.0)
    weight = alive.to(obs.dtype) if plain else torch.randn(7, 90) * alive
    assert_twins((init, trans.log_softmax(-1), obs), weight)


@pytest.mark.usefixtures("no_log_space")
def test_unnormalised_transitions_of_any_magnitude() -> None:
    init, trans, obs = random_chain((4,), 30, 3, "steps")
    for shift in (-3000.0, 700.0):
        assert_twins((init + shift, trans + shift, obs - 2 * shift))


def test_period_of_rescaling_follows_the_rarest_transition() -> None:
    for least, period in [(0.1, 8), (1e-40, 5), (1e-130, 1), (1e-200, 0), (0.0, 0)]:
        trans = torch.tensor([[1.0, least], [0.5, 0.5]])
        assert rescaling_period(trans) == period
    assert rescaling_period(torch.tensor([[1.0, 1e-6], [0.5, 0.5]], dtype=torch.float32)) == 3


def test_transitions_are_scaled_by_their_greatest_element() -> None:
    log_trans = torch.randn(2, 5, 3, 3)
    trans = scaled_transitions(log_trans)
    assert trans.differ and trans.into.shape == (6, 2, 3, 3)
    torch.testing.assert_close(trans.into[1:].amax((-2, -1)), torch.ones(5, 2))
    torch.testing.assert_close(trans.log_scale, log_trans.amax((-2, -1)))


@pytest.mark.usefixtures("no_log_space")
def test_buffers_are_used_again() -> None:
    buffers = ChainBuffers()
    small, large = random_chain((3,), 20, 3, "shared"), random_chain((4,), 30, 3, "shared")
    fresh = [expected_counts(*factors) for factors in (small, large, small)]
    for factors, expected in zip((small, large, small), fresh, strict=True):
        ours = expected_counts(*factors, buffers=buffers)
        assert torch.equal(ours.gamma, expected.gamma) and torch.equal(ours.xi, expected.xi)
    first = expected_counts(*large, buffers=buffers).gamma
    assert first.data_ptr() == expected_counts(*small, buffers=buffers).gamma.data_ptr()


def sparse_chain(batch: tuple[int, ...], steps: int, kind: str, trans: str) -> tuple[Tensor, Tensor, Tensor]:
    """Chains some of whose transitions are impossible or rarer than a float's range allows to multiply."""
    init, log_trans, obs = random_chain(batch, steps, 4, trans)
    allowed = torch.ones(4, 4)
    if kind == "left to right":
        allowed = allowed.triu()
        init = torch.tensor([0.0, -torch.inf, -torch.inf, -torch.inf]).expand_as(init)
    elif kind == "banded":
        allowed = allowed.tril(1).triu(-1)
    else:
        allowed[0, 1], allowed[2, 3] = 1e-200, 0.0
    return init, log_trans + allowed.log(), obs


@pytest.mark.usefixtures("no_log_space")
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("kind", ["left to right", "banded", "rare"])
def test_impossible_and_rare_transitions(kind: str, trans: str, weighted: bool) -> None:
    factors = sparse_chain((2, 3), 40, kind, trans)
    assert_twins(factors, torch.randn(2, 3, 40) if weighted else None)


@pytest.mark.usefixtures("no_log_space")
@pytest.mark.parametrize("trans", TRANS)
@pytest.mark.parametrize("kind", ["left to right", "banded", "rare"])
def test_impossible_and_rare_transitions_in_blocks(kind: str, trans: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks(monkeypatch, 60, 12)
    assert_twins(sparse_chain((2, 3), 103, kind, trans), torch.rand(2, 3, 103))


@pytest.mark.parametrize("blocks", [1, 8])
@pytest.mark.parametrize("trans", TRANS)
def test_log_space_decides_where_too_much_was_lost(trans: str, blocks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two states that never mix; the one that falls out of sight wins in one chain of three."""
    in_blocks(monkeypatch, 3 * blocks, 10)
    decided = []
    log_space = chain_estep._in_log_space

    def spy(chain: ChainFactors, *rest: object) -> chain_estep.Expectations:
        decided.append(chain.batch_shape)
        return log_space(chain, *rest)

    monkeypatch.setattr(chain_estep, "_in_log_space", spy)
    init, log_trans, obs = random_chain((3,), 80, 2, trans)
    log_trans = log_trans.masked_fill(torch.eye(2) == 0, -torch.inf)
    obs = 0.1 * obs
    obs[1, 5:10, 0] -= 200.0
    obs[1, 60:70, 1] -= 200.0
    assert_twins((init, log_trans, obs))
    assert decided and sum(shape.numel() for shape in decided) <= 2 * (1 if trans != "outer" else 3)


def test_float32_uses_the_range_of_float64_where_transitions_are_rare() -> None:
    init, trans, obs = (factor.float() for factor in sparse_chain((3,), 50, "banded", "shared"))
    ours = expected_counts(init, trans, obs)
    wide = expected_counts(init.double(), trans.double(), obs.double())
    assert ours.gamma.dtype == ours.xi.dtype == torch.float32
    torch.testing.assert_close(ours.log_z, wide.log_z, rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.gamma.double(), wide.gamma, rtol=0, atol=1e-7)
    alive = torch.arange(50) < torch.tensor([[20], [50], [33]])
    trans, obs = trans.double().log_softmax(-1).float(), obs.masked_fill(~alive.unsqueeze(-1), 0.0)
    ours = expected_counts(init, trans, obs, alive)
    wide = expected_counts(init.double(), trans.double(), obs.double(), alive)
    torch.testing.assert_close(ours.gamma.double(), wide.gamma, rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.xi.double(), wide.xi, rtol=1e-6, atol=1e-6)
