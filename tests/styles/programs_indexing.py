"""One mixture, written in every way in which a latent can pick its parameters."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import constraints

X = torch.tensor([-1.3, 0.2, 0.9, 2.4], dtype=torch.float64)


def weights(size: int = 3) -> Tensor:
    start = torch.arange(1.0, size + 1, dtype=torch.float64)
    return pyro.param("w", start / start.sum(), constraint=constraints.simplex)


def locs(size: int = 3) -> Tensor:
    return pyro.param("loc", torch.linspace(-1.0, 2.0, size, dtype=torch.float64))


def scale() -> Tensor:
    return pyro.param("scale", torch.tensor(0.8, dtype=torch.float64), constraint=constraints.positive)


def bracket(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], s), obs=x)


def vindex(x: Tensor) -> None:
    w, s = weights(), scale()
    table = pyro.param("table", torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 3.0]], dtype=torch.float64))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        y = pyro.sample("y", dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)))
        pyro.sample("x", dist.Normal(Vindex(table)[z, y.long()], s), obs=x)


def vindex_ellipsis(x: Tensor) -> None:
    w, s = weights(), scale()
    table = pyro.param("table", torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 3.0]], dtype=torch.float64))
    data = torch.stack([x, -x], -1)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(Vindex(table)[..., z, :], s).to_event(1), obs=data)


def gather(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        wide = loc.expand(*z.shape, 3)
        pyro.sample("x", dist.Normal(wide.gather(-1, z.unsqueeze(-1)).squeeze(-1), s), obs=x)


def index_select(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc.index_select(0, z.reshape(-1)).reshape(z.shape), s), obs=x)


def take(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(torch.take(loc, z), s), obs=x)


def where(x: Tensor) -> None:
    s = scale()
    a = pyro.param("a", torch.tensor(-1.0, dtype=torch.float64))
    b = pyro.param("b", torch.tensor(2.0, dtype=torch.float64))
    p = pyro.param("p", torch.tensor(0.4, dtype=torch.float64), constraint=constraints.unit_interval)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.sample("x", dist.Normal(torch.where(z == 1, a, b), s), obs=x)


def arithmetic(x: Tensor) -> None:
    s = scale()
    a = pyro.param("a", torch.tensor(-1.0, dtype=torch.float64))
    b = pyro.param("b", torch.tensor(2.0, dtype=torch.float64))
    p = pyro.param("p", torch.tensor(0.4, dtype=torch.float64), constraint=constraints.unit_interval)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.sample("x", dist.Normal(z * a + (1 - z) * b, s), obs=x)


def one_hot_product(x: Tensor) -> None:
    w, s = weights(), scale()
    table = pyro.param("table", torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 3.0]], dtype=torch.float64))
    data = torch.stack([x, -x], -1)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(w))
        pyro.sample("x", dist.Normal(z @ table, s).to_event(1), obs=data)


def one_hot_function(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        hot = torch.nn.functional.one_hot(z, 3).to(loc.dtype)
        pyro.sample("x", dist.Normal((hot * loc).sum(-1), s), obs=x)


def einsum(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(w))
        pyro.sample("x", dist.Normal(torch.einsum("...k,k->...", z, loc), s), obs=x)


class Embedded(torch.nn.Module):
    """Means looked up by ``nn.Embedding``."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(3, 2).double()
        with torch.no_grad():
            self.table.weight.copy_(torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 3.0]]))

    def model(self, x: Tensor) -> None:
        pyro.module("table", self.table)
        w, s = weights(), scale()
        data = torch.stack([x, -x], -1)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Normal(self.table(z), s).to_event(1), obs=data)


def negative_position(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[-1 - z], s), obs=x)


def computed_position(x: Tensor) -> None:
    w, s = weights(), scale()
    flat = pyro.param("flat", torch.arange(6.0, dtype=torch.float64))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        y = pyro.sample("y", dist.Categorical(torch.tensor([0.3, 0.7], dtype=torch.float64)))
        pyro.sample("x", dist.Normal(flat[2 * z + y], s), obs=x)


def observed_position(x: Tensor) -> None:
    """Which row a datum uses is observed, which column is latent."""
    w, s = weights(2), scale()
    table = pyro.param("table", torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 3.0]], dtype=torch.float64))
    row = torch.tensor([0, 2, 1, 0])
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(table[row, z], s), obs=x)


def logits(x: Tensor) -> None:
    loc, s = locs(), scale()
    v = pyro.param("v", torch.tensor([0.1, -0.4, 0.8], dtype=torch.float64))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(logits=v))
        pyro.sample("x", dist.Normal(loc[z], s), obs=x)


def value_of_latents(x: Tensor) -> None:
    """What is observed is itself a function of latents."""
    loc = pyro.param("m", torch.tensor(0.7, dtype=torch.float64))
    z0 = pyro.sample("z0", dist.Categorical(weights()))
    z1 = pyro.sample("z1", dist.Bernoulli(torch.tensor(0.3, dtype=torch.float64)))
    pyro.sample("y", dist.Normal(loc, scale()), obs=z0 + 2 * z1)
    pyro.sample("x", dist.Normal(z0 - z1, 1.0).expand([4]).to_event(1), obs=x)


def support_function(x: Tensor) -> None:
    """A function of the value, not a table: the mean is the state itself, squared."""
    w, s = weights(), scale()
    slope = pyro.param("slope", torch.tensor(0.4, dtype=torch.float64))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(slope * z**2 - z, s), obs=x)


PROGRAMS: dict[str, tuple[Any, ...]] = {
    "bracket": (bracket, (X,)),
    "vindex": (vindex, (X,)),
    "vindex-ellipsis": (vindex_ellipsis, (X,)),
    "gather": (gather, (X,)),
    "index-select": (index_select, (X,)),
    "take": (take, (X,)),
    "where": (where, (X,)),
    "arithmetic": (arithmetic, (X,)),
    "one-hot-product": (one_hot_product, (X,)),
    "one-hot-function": (one_hot_function, (X,)),
    "einsum": (einsum, (X,)),
    "embedding": (Embedded().model, (X,)),
    "negative-position": (negative_position, (X,)),
    "computed-position": (computed_position, (X[:3],)),
    "observed-position": (observed_position, (X,)),
    "logits": (logits, (X,)),
    "obs-of-latents": (value_of_latents, (X,)),
    "function-of-value": (support_function, (X,)),
}
