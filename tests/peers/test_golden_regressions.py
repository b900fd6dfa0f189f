"""The recorded EM trajectory of a mixture of three regressions, step by step, in several spellings of one program."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ppl_em
from tests.tolerances import TRAJECTORY

STEPS = 20
Predict = Callable[[Tensor, Tensor, Tensor], Tensor]


def record() -> dict[str, Tensor]:
    with np.load(Path(__file__).parents[1] / "golden" / "molr.npz") as file:
        return {k: torch.from_numpy(np.asarray(file[k])) for k in file.files if file[k].dtype.kind in "fi"}


SPELLINGS: dict[str, Predict] = {
    "sum": lambda x, b, z: (x * b[z]).sum(-1),
    "einsum": lambda x, b, z: torch.einsum("nd,...nd->...n", x, b[z].expand(*z.shape[:-1], len(x), -1)),
    "matrix product, then gather": lambda x, b, z: (
        (x @ b.T).gather(1, z.reshape(-1, 1).expand(-1, 1)).reshape(z.shape)
        if z.numel() == len(x)
        else (x @ b.T).T[z[..., 0]]
    ),
    "one column at a time": lambda x, b, z: sum(x[:, i] * b[z, i] for i in range(x.shape[1])),  # type: ignore[misc]
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_steps_of_a_mixture_of_regressions(spelling: str) -> None:
    predict = SPELLINGS[spelling]

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.param("w", torch.ones(3) / 3, constraint=constraints.simplex)
        b = pyro.param("B", torch.zeros(3, 4))
        s2 = pyro.param("s2", torch.ones(3), constraint=constraints.positive)
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("y", dist.Normal(predict(x, b, z), s2[z].sqrt()), obs=y)

    known = record()
    x, y = known["data_X"], known["data_y"]
    init = {n: known[f"init_{n}"] for n in ("w", "B", "s2")}
    first: dict[str, Tensor] = {}
    method = ppl_em.EM(
        max_steps=STEPS,
        tol=0,
        accelerate=False,
        callback=lambda state: first.update(state.params) if state.step == 1 else None,
    )
    result = ppl_em.fit(model, x, y, init=init, method=method)
    assert result.plan.rule_of("B") == "least squares"
    assert result.plan.rule_of("w") == result.plan.rule_of("s2") == "closed form"
    for peer in ("ref_numpy_wls", "ref_numpy_suffstat"):
        gap = result.history[:STEPS] / len(y) - known[f"lls_{peer}"]
        assert float(gap.abs().max()) < TRAJECTORY
        for name in init:
            assert float((first[name] - known[f"p1_{peer}_{name}"]).abs().max()) < TRAJECTORY
            assert float((result.params[name] - known[f"p20_{peer}_{name}"]).abs().max()) < TRAJECTORY
