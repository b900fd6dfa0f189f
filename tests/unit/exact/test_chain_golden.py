"""Plain EM written with `expected_counts` walks hmmlearn's trajectory, step by step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ppl_em.exact.forward_backward import ChainCounts, expected_counts
from tests.tolerances import TRAJECTORY

GOLDEN = Path(__file__).parents[2] / "golden"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def padded(flat: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenated sequences as (B, T, ...) with zeros behind, and which steps are alive (B, T)."""
    alive = torch.arange(int(lengths.max())) < lengths.unsqueeze(-1)
    rows = flat.new_zeros(*alive.shape, *flat.shape[1:])
    rows[alive] = flat
    return rows, alive


def normalised(counts: Tensor) -> Tensor:
    return counts / counts.sum(-1, keepdim=True)


def counts_of(init: Tensor, trans: Tensor, log_obs: Tensor, alive: Tensor) -> ChainCounts:
    return expected_counts(init.log(), trans.log(), log_obs.masked_fill(~alive.unsqueeze(-1), 0.0), alive)


@pytest.mark.parametrize("peer", ["hmmlearn_scaling", "hmmlearn_log"])
def test_categorical_em_follows_hmmlearn(peer: str) -> None:
    golden = load("hmm_cat_ragged")
    x, alive = padded(torch.from_numpy(golden["data_X"]), torch.from_numpy(golden["data_lengths"]))
    init, trans, emit = (torch.from_numpy(golden[f"init_{name}"]) for name in ("pi", "A", "B"))
    for expected in golden[f"lls_{peer}"]:
        counts = counts_of(init, trans, emit.log().T[x], alive)
        assert counts.log_z.sum().item() / int(alive.sum()) == pytest.approx(expected, abs=TRAJECTORY)
        gamma = counts.gamma * alive.unsqueeze(-1)
        init, trans = normalised(gamma[:, 0].sum(0)), normalised(counts.xi)
        symbols = torch.nn.functional.one_hot(x, emit.shape[-1]).to(gamma.dtype)
        emit = normalised(torch.einsum("btk,btv->kv", gamma, symbols))
    for name, ours in (("pi", init), ("A", trans), ("B", emit)):
        theirs = torch.from_numpy(golden[f"p20_{peer}_{name}"])
        torch.testing.assert_close(ours, theirs, atol=TRAJECTORY, rtol=0)


def test_gaussian_em_follows_hmmlearn() -> None:
    golden = load("hmm_gauss_ragged")
    x, alive = padded(torch.from_numpy(golden["data_X"]), torch.from_numpy(golden["data_lengths"]))
    init, trans, loc, var = (torch.from_numpy(golden[f"init_{name}"]) for name in ("pi", "A", "mu", "var"))
    for expected in golden["lls_hmmlearn_scaling"]:
        log_obs = torch.distributions.Normal(loc, var.sqrt()).log_prob(x.unsqueeze(-2)).sum(-1)
        counts = counts_of(init, trans, log_obs, alive)
        assert counts.log_z.sum().item() / int(alive.sum()) == pytest.approx(expected, abs=TRAJECTORY)
        gamma = counts.gamma * alive.unsqueeze(-1)
        init, trans = normalised(gamma[:, 0].sum(0)), normalised(counts.xi)
        weight = gamma.sum((0, 1)).unsqueeze(-1)
        loc = torch.einsum("btk,btd->kd", gamma, x) / weight
        var = torch.einsum("btk,btkd->kd", gamma, (x.unsqueeze(-2) - loc).square()) / weight
