"""Programs as modules equal brute force; randomness inside them is never called exact."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_em
from tests.styles.checks import check_steps, check_style
from tests.styles.programs_indexing import X
from tests.styles.programs_modules import PROGRAMS


@pytest.mark.parametrize("style", PROGRAMS)
def test_equals_brute_force(style: str) -> None:
    kind, args = PROGRAMS[style]
    check_style(kind(), *args)


@pytest.mark.parametrize("style", PROGRAMS)
def test_em_ascends(style: str) -> None:
    kind, args = PROGRAMS[style]
    check_steps(kind(), *args)


class Noisy(torch.nn.Module):
    """A mixture whose means go through a layer."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), layer, torch.nn.Linear(4, 1))

    def forward(self, x: Tensor) -> None:
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(self.net(z.reshape(-1, 3)).reshape(z.shape[:-1]), 1.0), obs=x)


def outside(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
        pyro.sample("x", dist.Normal(z + torch.rand(()), 1.0), obs=x)


def numpy_outside(x: Tensor) -> None:
    import numpy as np

    shift = float(np.random.rand())
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
        pyro.sample("x", dist.Normal(z + shift, 1.0), obs=x)


RANDOM = {
    "dropout": lambda: Noisy(torch.nn.Dropout(0.5)),
    "batch-norm": lambda: Noisy(torch.nn.BatchNorm1d(4)),
    "torch-rand": lambda: outside,
    "numpy-rand": lambda: numpy_outside,
}


@pytest.mark.parametrize("kind", RANDOM)
def test_randomness_outside_sample_sites_is_never_exact(kind: str) -> None:
    plan = ppl_em.explain(RANDOM[kind](), X)
    assert not plan.exact
    assert plan.certificate.unproven
    assert "not claimed" in str(plan)
