"""Programs as modules: PyroModule, PyroSample, pyro.module, neural networks inside."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroParam, PyroSample
from torch import Tensor
from torch.distributions import constraints

from tests.styles.programs_indexing import X, scale, weights


class Mixture(PyroModule):
    """Parameters as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.w = PyroParam(torch.tensor([0.2, 0.3, 0.5]), constraint=constraints.simplex)
        self.loc = PyroParam(torch.tensor([-1.0, 0.5, 2.0]))
        self.log_scale = torch.nn.Parameter(torch.tensor(0.1))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(self.w))
            pyro.sample("x", dist.Normal(self.loc[z], self.log_scale.exp()), obs=x)


class LatentAttributes(PyroModule):
    """A discrete latent that is a module's attribute, read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.z = PyroSample(dist.Categorical(torch.tensor([0.2, 0.3, 0.5])))
        self.flag = PyroSample(lambda self: dist.Bernoulli(0.2 + 0.2 * self.z))

    def forward(self, x: Tensor) -> None:
        loc = torch.tensor([-1.0, 0.5, 2.0])
        with pyro.plate("inner_data", len(x)):
            pyro.sample("x", dist.Normal(loc[self.z] + self.flag, 0.8), obs=x)
            pyro.sample("y", dist.Normal(loc[self.z] - self.flag, 0.9), obs=-x)


class Nested(PyroModule):
    """Modules inside modules."""

    def __init__(self) -> None:
        super().__init__()
        self.net = PyroModule[torch.nn.Linear](1, 2)
        self.inner = LatentAttributes()

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            y = pyro.sample("y0", dist.Categorical(logits=self.net(x.unsqueeze(-1))))
            pyro.sample("x0", dist.Normal(y - 0.5, 1.0), obs=x)
        self.inner(x[:1])


class Gate(torch.nn.Module):
    """A network registered by ``pyro.module`` whose output depends on a latent."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))

    def forward(self, x: Tensor) -> None:
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(weights()))
            pyro.sample("x", dist.Normal(self.net(z).squeeze(-1), scale()), obs=x)


class Quiet(torch.nn.Module):
    """Dropout and batch normalisation that are switched off."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 1)).eval()

    def forward(self, x: Tensor) -> None:
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(weights()))
            pyro.sample("x", dist.Normal(self.net(z).squeeze(-1), scale()), obs=x)


PROGRAMS: dict[str, tuple[Any, ...]] = {
    "pyro-module": (Mixture, (X,)),
    "pyro-sample": (LatentAttributes, (X,)),
    "nested-modules": (Nested, (X,)),
    "network": (Gate, (X,)),
    "dropout-off": (Quiet, (X,)),
}
