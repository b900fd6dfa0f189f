"""Law 12: two shards of the data give the same fit as one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

import ppl_em
from ppl_em import EM
from tests.tolerances import BRUTE_FORCE
from tests.unit.em import streamed_programs as programs

SEEDS = st.integers(0, 2**20)


class Split:
    """Two batches, cut anywhere: positions of the data for a ``DataLoader``."""

    def __init__(self, order: torch.Tensor, cut: int) -> None:
        self.parts = [order[:cut].tolist(), order[cut:].tolist()]

    def __iter__(self):  # noqa: ANN204
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def compare(program: object, data: tuple[torch.Tensor, ...], cut: int, order: torch.Tensor, **settings: object) -> None:
    method = EM(max_steps=5, tol=0, **settings)  # type: ignore[arg-type]
    shards = DataLoader(TensorDataset(*data), batch_sampler=Split(order, cut))  # type: ignore[arg-type]
    one = ppl_em.fit(program, *data, init="params", method=method)
    two = ppl_em.fit(program, shards, init="params", method=method)
    torch.testing.assert_close(two.history, one.history, rtol=1e-11, atol=BRUTE_FORCE)
    for name, value in {**one.params, **one.point_estimates}.items():
        torch.testing.assert_close({**two.params, **two.point_estimates}[name], value, rtol=0, atol=BRUTE_FORCE)


@settings(max_examples=8)
@given(SEEDS, st.integers(1, 79), st.booleans())
def test_12_two_shards_are_one(seed: int, cut: int, accelerate: bool) -> None:
    x = programs.three_kinds(80, seed)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(seed))
    compare(programs.normals, (x,), cut, order, accelerate=accelerate)


@settings(max_examples=4)
@given(SEEDS, st.integers(2, 38))
def test_12_shards_of_sequences(seed: int, cut: int) -> None:
    x = programs.symbols(40, 4, seed)
    compare(programs.chains, (x,), cut, torch.arange(40))


@pytest.mark.parametrize("program", [programs.precisions, programs.heavy_tails, programs.vectors])
@settings(max_examples=4)
@given(SEEDS, st.integers(5, 75))
def test_12_priors_are_in_one_shard_only(program: object, seed: int, cut: int) -> None:
    compare(program, (programs.three_kinds(80, seed),), cut, torch.arange(80))


@settings(max_examples=4)
@given(SEEDS, st.integers(5, 75))
def test_12_shards_of_regressions(seed: int, cut: int) -> None:
    compare(programs.lines, programs.covariate(80, seed), cut, torch.arange(80))
