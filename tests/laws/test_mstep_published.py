"""Dempster, Laird and Rubin's linkage example: every iterate of the paper's table."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints

import ppl_em

COUNTS = (125, 18, 20, 34)
# Table 1 of the paper, from the start 0.5; the maximum is the root of 197 p² − 15 p − 68.
PUBLISHED = (
    0.5, 0.608247423, 0.624321051, 0.626488879, 0.626777323, 0.626815632, 0.626820719, 0.626821395, 0.626821484,
)  # fmt: skip
MAXIMUM = (15 + (15**2 + 4 * 197 * 68) ** 0.5) / (2 * 197)
# Which of the four observed cells each of the five hidden ones shows as: the first observed cell is split in two.
SHOWN = torch.tensor([0, 0, 1, 2, 3])


def linkage(cells: torch.Tensor) -> None:
    """197 animals in four cells of probabilities (½ + p/4, (1−p)/4, (1−p)/4, p/4)."""
    p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
    hidden = torch.stack([torch.tensor(0.5), p / 4, (1 - p) / 4, (1 - p) / 4, p / 4])
    with pyro.plate("animals", len(cells)):
        origin = pyro.sample("origin", dist.Categorical(hidden))
        table = torch.nn.functional.one_hot(SHOWN, 4).to(torch.get_default_dtype())
        pyro.sample("cell", dist.Categorical(table[origin]), obs=cells)


def cells() -> torch.Tensor:
    return torch.arange(4).repeat_interleave(torch.tensor(COUNTS))


def test_the_published_iterates() -> None:
    steps = len(PUBLISHED) - 1
    seen: list[float] = []
    method = ppl_em.EM(
        max_steps=steps, tol=0, accelerate=False, callback=lambda state: seen.append(float(state.params["p"]))
    )
    result = ppl_em.fit(linkage, cells(), init="params", method=method)
    assert seen == pytest.approx(PUBLISHED, abs=1.1e-9)
    assert result.exact


def test_its_maximum() -> None:
    result = ppl_em.fit(linkage, cells(), method=ppl_em.EM(tol=1e-12))
    assert pytest.approx(0.626821498, abs=5e-10) == MAXIMUM
    assert float(result.params["p"]) == pytest.approx(MAXIMUM, abs=1e-7)
