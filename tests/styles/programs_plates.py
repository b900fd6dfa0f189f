"""Plates and loops in every spelling, nested, sibling, crossed, sequential, undeclared, subsampled."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.styles.programs_indexing import X, bracket, locs, scale, weights


def decorator(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()

    @pyro.plate("data", len(x))
    def body() -> None:
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], s), obs=x)

    body()


def subsample(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x), subsample_size=2) as index:
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], s), obs=x[index])


def subsample_given(x: Tensor) -> None:
    """A minibatch: each datum stands for two."""
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", 2 * len(x), subsample=torch.arange(len(x))) as index:
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], s), obs=x[index])


def sequential(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z_{i}", dist.Categorical(w))
        pyro.sample(f"x_{i}", dist.Normal(loc[z], s), obs=x[i])


def sequential_subsample(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    for i in pyro.plate("data", len(x), subsample_size=2):
        z = pyro.sample(f"z_{i}", dist.Categorical(w))
        pyro.sample(f"x_{i}", dist.Normal(loc[z], s), obs=x[i])


def loop(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    for i in range(len(x)):
        z = pyro.sample(f"z_{i}", dist.Categorical(w))
        pyro.sample(f"x_{i}", dist.Normal(loc[z], s), obs=x[i])


def undeclared(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    z = pyro.sample("z", dist.Categorical(w.expand(len(x), 3)))
    pyro.sample("x", dist.Normal(loc[z], s), obs=x)


def undeclared_same_size(x: Tensor) -> None:
    """The batch has as many elements as the latent has values."""
    w, loc, s = weights(), locs(), scale()
    z = pyro.sample("z", dist.Categorical(w).expand([3]))
    pyro.sample("x", dist.Normal(loc[z], s), obs=x[:3])


def global_latent(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    z = pyro.sample("z", dist.Categorical(w))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc[z], s), obs=x)


def global_above_local(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    table = pyro.param("table", torch.tensor([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5]]), constraint=dist.constraints.simplex)
    top = pyro.sample("top", dist.Categorical(w))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(table[top]))
        pyro.sample("x", dist.Normal(loc[z + top // 2], s), obs=x)


def nested(x: Tensor) -> None:
    data = torch.stack([x[:3], x[1:], x[:3].flip(0) * 0.3], -1)[:2]
    w, loc, s = weights(2), locs(), scale()
    table = pyro.param("table", torch.tensor([[0.2, 0.8], [0.6, 0.4]]), constraint=dist.constraints.simplex)
    with pyro.plate("groups", 2, dim=-2):
        group = pyro.sample("group", dist.Categorical(w))
        with pyro.plate("members", 3, dim=-1):
            z = pyro.sample("z", dist.Categorical(table[group]))
            pyro.sample("x", dist.Normal(loc[z + group], s), obs=data)


def siblings(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    top = pyro.sample("top", dist.Categorical(w))
    with pyro.plate("left", 2):
        a = pyro.sample("a", dist.Bernoulli(0.2 + 0.2 * top))
        pyro.sample("x", dist.Normal(loc[top] + a, s), obs=x[:2])
    with pyro.plate("right", 3):
        b = pyro.sample("b", dist.Bernoulli(0.7 - 0.2 * top))
        pyro.sample("y", dist.Normal(loc[top] - b, s), obs=x[1:])


def crossed(x: Tensor) -> None:
    """A factor crosses two plates each of which has latents."""
    data = x[:3].unsqueeze(-1) * torch.tensor([1.0, -0.5])
    table = pyro.param("table", torch.tensor([[0.0, 1.0], [2.0, -1.0], [0.5, 3.0]]))
    rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1)
    with rows:
        a = pyro.sample("a", dist.Categorical(weights()))
    with columns:
        b = pyro.sample("b", dist.Bernoulli(torch.tensor([0.3, 0.6])))
    with rows, columns:
        pyro.sample("x", dist.Normal(table[a, b.long()], scale()), obs=data)


def crossed_inside(x: Tensor) -> None:
    """Crossed plates with a latent in each cell, under a global latent."""
    data = x[:2].unsqueeze(-1) * torch.tensor([1.0, -0.5])
    table = pyro.param("table", torch.tensor([[0.0, 1.0], [2.0, -1.0]]))
    rows, columns = pyro.plate("rows", 2, dim=-2), pyro.plate("columns", 2, dim=-1)
    top = pyro.sample("top", dist.Bernoulli(0.4))
    with rows:
        a = pyro.sample("a", dist.Categorical(weights(2)))
    with columns:
        b = pyro.sample("b", dist.Bernoulli(0.3 + 0.3 * top))
    with rows, columns:
        c = pyro.sample("c", dist.Bernoulli(0.2 + 0.3 * b))
        pyro.sample("x", dist.Normal(table[a, b.long()] + c, scale()), obs=data)


def plate_without_dim_order(x: Tensor) -> None:
    data = torch.stack([x[:2], x[2:]])
    w, loc, s = weights(2), locs(2), scale()
    with pyro.plate("inner", 2, dim=-1), pyro.plate("outer", 2, dim=-3):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], s), obs=data.unsqueeze(1))


def plate_names_reused(x: Tensor) -> None:
    """One plate object entered twice."""
    w, loc, s = weights(), locs(), scale()
    data = pyro.plate("data", len(x))
    with data:
        z = pyro.sample("z", dist.Categorical(w))
    with data:
        pyro.sample("x", dist.Normal(loc[z], s), obs=x)
        pyro.sample("y", dist.Normal(-loc[z], s), obs=x.flip(0))


def plate_of_two_sizes(x: Tensor) -> None:
    """A name serves for plates of different sizes, one after the other."""
    w, loc, s = weights(), locs(), scale()
    for t, size in enumerate((2, 3)):
        with pyro.plate("data", size):
            z = pyro.sample(f"z_{t}", dist.Categorical(w))
            pyro.sample(f"x_{t}", dist.Normal(loc[z], s), obs=x[:size])


def loop_of_plates(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    for t in range(2):
        with pyro.plate(f"data_{t}", 2):
            z = pyro.sample(f"z_{t}", dist.Categorical(w))
            pyro.sample(f"x_{t}", dist.Normal(loc[z], s), obs=x[2 * t : 2 * t + 2])


def several_blocks(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], s), obs=x)
    y = pyro.sample("y", dist.Bernoulli(0.3))
    pyro.sample("v", dist.Normal(y, s), obs=x[0])
    pyro.sample("u", dist.Normal(loc.sum(), s), obs=x[1])


def one_state(x: Tensor) -> None:
    """A mixture of a single component."""
    loc, s = locs(1), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(torch.ones(1)))
        pyro.sample("x", dist.Normal(loc[z], s), obs=x)


def one_datum(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", 1):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], s), obs=x[:1])


def unused(x: Tensor) -> None:
    """A latent that no observation depends on."""
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("idle", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(loc[z], s), obs=x)


def per_component(x: Tensor) -> None:
    """Discrete latents in a plate of components, picked by observed positions."""
    s = scale()
    group = torch.tensor([0, 1, 1, 0])
    with pyro.plate("groups", 2):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.3, 0.6])))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z[..., group], s), obs=x)


PROGRAMS: dict[str, tuple[Any, ...]] = {
    "decorator": (decorator, (X,)),
    "subsample": (subsample, (X,), {"reference": bracket}),
    "sequential": (sequential, (X,)),
    "sequential-subsample": (sequential_subsample, (X,), {"reference": loop}),
    "subsample-given": (subsample_given, (X,), {"reference": bracket, "scale": 2.0}),
    "picked-by-index": (per_component, (X,)),
    "loop": (loop, (X,)),
    "undeclared": (undeclared, (X,)),
    "undeclared-same-size": (undeclared_same_size, (X,)),
    "global": (global_latent, (X,)),
    "global-above-local": (global_above_local, (X,)),
    "nested": (nested, (X,)),
    "siblings": (siblings, (X,)),
    "crossed": (crossed, (X,)),
    "crossed-inside": (crossed_inside, (X,)),
    "gap-between-dims": (plate_without_dim_order, (X,)),
    "entered-twice": (plate_names_reused, (X,)),
    "two-sizes": (plate_of_two_sizes, (X,)),
    "loop-of-plates": (loop_of_plates, (X,)),
    "several-blocks": (several_blocks, (X,)),
    "one-state": (one_state, (X,)),
    "one-datum": (one_datum, (X,)),
    "unused": (unused, (X,)),
}
