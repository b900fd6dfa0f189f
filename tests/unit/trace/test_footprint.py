"""Nothing that the user has is touched: stores, random states, flags, data, graphs."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ppl_em
from ppl_em import EM
from tests.unit.programs import mixture, two_kinds

X = two_kinds(15)
QUICK = EM(max_steps=2)


def test_a_store_with_content_stays_and_does_not_leak_in(no_footprint: Callable) -> None:
    pyro.param("loc", torch.tensor([7.0, 8.0]))
    pyro.param("other", torch.ones(()))
    with no_footprint():
        result = ppl_em.fit(mixture, X, init="params", method=EM(max_steps=0))
    assert result.params["loc"].tolist() == [-1.0, 1.0]  # the program's own, not the store's
    assert set(result.params) == {"weights", "loc", "scale"}


@pytest.mark.parametrize("enabled", [True, False])
def test_the_validation_flag(enabled: bool, no_footprint: Callable) -> None:
    before = torch.distributions.Distribution._validate_args
    try:
        pyro.enable_validation(enabled)
        with no_footprint():
            ppl_em.fit(mixture, X, method=QUICK)
    finally:
        pyro.enable_validation(before)


def test_a_program_that_fails_half_way(no_footprint: Callable) -> None:
    def broken(x: Tensor) -> None:
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(0)
        with pyro.plate("data", len(x)):
            raise LookupError("mine")

    with no_footprint(), pytest.raises(LookupError, match="mine"):
        ppl_em.fit(broken, X)
    # Plates can be made as before: no dimension is left taken.
    with pyro.plate("again", 2) as index:
        assert len(index) == 2


def test_data_are_not_changed() -> None:
    x = X.clone()
    ppl_em.fit(mixture, x, method=QUICK)
    assert torch.equal(x, X)
    assert not x.requires_grad and x.grad is None


def test_initial_values_are_not_changed() -> None:
    start = torch.tensor([0.0, 3.0])

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", start)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.4)).long()
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    ppl_em.fit(model, X, method=QUICK)
    assert start.tolist() == [0.0, 3.0]
    assert not start.requires_grad


def test_fits_do_not_depend_on_the_users_random_state() -> None:
    torch.manual_seed(1)
    one = ppl_em.fit(mixture, X, seed=2, method=QUICK)
    torch.manual_seed(99)
    two = ppl_em.fit(mixture, X, seed=2, method=QUICK)
    assert torch.equal(one.history, two.history)


def test_a_fit_within_a_fit(no_footprint: Callable) -> None:
    inner = []

    def callback(state: object) -> None:
        if not inner:
            inner.append(ppl_em.fit(mixture, X, init="params", method=QUICK))

    with no_footprint():
        outer = ppl_em.fit(mixture, X, init="params", method=EM(max_steps=2, callback=callback))
    alone = ppl_em.fit(mixture, X, init="params", method=QUICK)
    assert torch.equal(outer.history, alone.history)
    assert torch.equal(inner[0].history, alone.history)


def test_training_mode_of_a_module_is_left_alone() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            self.modes: list[bool] = []

        def forward(self, x: Tensor) -> None:
            pyro.module("net", self)
            self.modes.append(self.layer.training)
            with pyro.plate("data", len(x)):
                pyro.sample("x", dist.Normal(self.layer(x[:, None])[:, 0], 1.0), obs=x)

    net = Net().eval()
    ppl_em.fit(net, X, method=QUICK)
    assert not net.training
    assert set(net.modes) == {False}
