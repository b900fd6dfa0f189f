"""Small programs with a time axis, of every kind; ``ahead`` more steps are drawn than are observed."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions import constraints
from torch import Tensor

X = torch.tensor([0.3, -1.2, 0.8, 1.9], dtype=torch.float64)
MANY = torch.tensor([[0.3, -1.2, 0.8], [1.1, 0.4, -0.7]], dtype=torch.float64)
LENGTHS = torch.tensor([3, 2])
NET = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()


def table(name: str, *shape: int) -> Tensor:
    """Random rows of probabilities, a parameter; the same at each run."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)) + len(shape))
    start = torch.randn(shape, generator=generator, dtype=torch.float64).softmax(-1)
    return pyro.param(name, start, constraint=constraints.simplex)


def numbers(name: str, *shape: int) -> Tensor:
    """Random numbers, a parameter."""
    generator = torch.Generator().manual_seed(sum(map(ord, name)))
    return pyro.param(name, torch.randn(shape, generator=generator, dtype=torch.float64))


def emit(t: Any, x: Tensor, loc: Tensor, name: str = "x") -> None:
    if t < len(x):
        pyro.sample(f"{name}_{t}", dist.Normal(loc, 0.8), obs=x[t])


def first_order(x: Tensor, ahead: int = 0) -> None:
    init, trans, loc = table("init", 3), table("trans", 3, 3), numbers("loc", 3)
    z: Any = None
    for t in range(len(x) + ahead):
        z = pyro.sample(f"z_{t}", dist.Categorical(init if t == 0 else trans[z]))
        emit(t, x, loc[z])


def second_order(x: Tensor, ahead: int = 0) -> None:
    init, early, trans = table("init", 3), table("early", 3, 3), table("trans", 3, 3, 3)
    loc, z = numbers("loc", 3), []
    for t in range(len(x) + ahead):
        probs = init if t == 0 else early[z[-1]] if t == 1 else trans[z[-2], z[-1]]
        z.append(pyro.sample(f"z_{t}", dist.Categorical(probs)))
        emit(t, x, loc[z[-1]])


def third_order(x: Tensor, ahead: int = 0) -> None:
    """Looks three steps back through a sum; the first steps begin from state 0."""
    trans, loc = table("trans", 2, 2, 2, 2), numbers("loc", 2)
    z: list[Any] = [torch.tensor(0)] * 3
    for t in range(len(x) + 1 + ahead):
        z.append(pyro.sample(f"z_{t}", dist.Categorical(trans[z[-3], z[-2], z[-1]])))
        emit(t, x, loc[z[-1]])


def factorial(x: Tensor, ahead: int = 0) -> None:
    a, b, loc = table("a", 2, 2), table("b", 3, 3), numbers("loc", 2, 3)
    z = w = torch.tensor(0)
    for t in range(len(x) + ahead):
        z = pyro.sample(f"z_{t}", dist.Categorical(a[z]))
        w = pyro.sample(f"w_{t}", dist.Categorical(b[w]))
        emit(t, x, loc[z, w])


def factorial_numbered(x: Tensor, ahead: int = 0) -> None:
    """Chains are numbered too, and come before the step in the sites' names."""
    a, loc = table("a", 3, 2, 2), numbers("loc", 2, 2, 2)
    z = [torch.tensor(0)] * 3
    for t in range(len(x) + ahead):
        z = [pyro.sample(f"z_{i}_{t}", dist.Categorical(a[i][z[i]])) for i in range(3)]
        emit(t, x, loc[z[0], z[1], z[2]])


def coupled(x: Tensor, ahead: int = 0) -> None:
    a, b = table("a", 2, 2, 2), table("b", 2, 2, 2)
    left, right = numbers("left", 2), numbers("right", 2)
    z = w = torch.tensor(0)
    for t in range(len(x) + ahead):
        z, w = (
            pyro.sample(f"z[{t}]", dist.Categorical(a[z, w])),
            pyro.sample(f"w[{t}]", dist.Categorical(b[w, z])),
        )
        emit(t, x, left[z])
        emit(t, x + 1, right[w], "y")


def hierarchical(x: Tensor, ahead: int = 0) -> None:
    """A slow chain above chooses the transitions of the one below."""
    slow, fast, loc = table("slow", 2, 2), table("fast", 2, 3, 3), numbers("loc", 3)
    z = w = torch.tensor(0)
    for t in range(len(x) + ahead):
        w = pyro.sample(f"w_{t}", dist.Categorical(slow[w]))
        z = pyro.sample(f"z_{t}", dist.Categorical(fast[w, z]))
        emit(t, x, loc[z])


def longer_and_shorter(x: Tensor, ahead: int = 0) -> None:
    """One chain looks two steps back, the other one."""
    a, b, loc = table("a", 2, 2, 2), table("b", 2, 2), numbers("loc", 2, 2)
    old = z = w = torch.tensor(0)
    for t in range(len(x) + ahead):
        old, z = z, pyro.sample(f"z_{t}", dist.Categorical(a[old, z]))
        w = pyro.sample(f"w_{t}", dist.Categorical(b[w]))
        emit(t, x, loc[z, w])


def mixture_emission(x: Tensor, ahead: int = 0) -> None:
    """A latent that lives within its step."""
    trans, weight, loc = table("trans", 2, 2), table("weight", 2, 3), numbers("loc", 2, 3)
    z = torch.tensor(0)
    for t in range(len(x) + ahead):
        z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
        m = pyro.sample(f"m_{t}", dist.Categorical(weight[z]))
        emit(t, x, loc[z, m])


def time_varying(x: Tensor) -> None:
    trans, loc = table("trans", len(x), 2, 2), numbers("loc", 2)
    z = torch.tensor(0)
    for t in range(len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(trans[t][z]))
        emit(t, x, loc[z])


def input_driven(x: Tensor) -> None:
    """Logits of the transitions are linear in an input; the input acts on the emission too."""
    weight, bias, loc, slope = numbers("weight", 3, 3), numbers("bias", 3, 3), numbers("loc", 3), numbers("slope", 3)
    u, z = x.flip(0), torch.tensor(0)
    for t in range(len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(logits=weight[z] * u[t] + bias[z]))
        pyro.sample(f"x_{t}", dist.Normal(loc[z] + slope[z] * u[t], 0.7), obs=x[t])


def autoregressive(x: Tensor) -> None:
    trans, loc, slope = table("trans", 3, 3), numbers("loc", 3), numbers("slope", 3)
    z = torch.tensor(0)
    for t in range(1, len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
        pyro.sample(f"x_{t}", dist.Normal(loc[z] + slope[z] * x[t - 1], 0.6), obs=x[t])


def edge_emission(x: Tensor) -> None:
    """What is seen depends on the move, not only on where it leads."""
    trans, loc = table("trans", 2, 2), numbers("loc", 2, 2)
    z = torch.tensor(0)
    for t in range(len(x)):
        before, z = z, pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
        emit(t, x, loc[before, z])


def impossible_moves(x: Tensor) -> None:
    """A state once left is never entered again; two latents advance together."""
    trans = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.6, 0.4], [0.0, 0.0, 1.0]], dtype=torch.float64)
    loc, b = numbers("loc", 3), table("b", 2, 2)
    z = w = torch.tensor(0)
    for t in range(len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
        w = pyro.sample(f"w_{t}", dist.Categorical(b[w]))
        emit(t, x, loc[z] + w)


def semi_markov(x: Tensor, ahead: int = 0) -> None:
    """A segment's remaining duration counts down; a new regime is drawn when it has run out."""
    follow, lasts, loc = table("follow", 2, 2), table("lasts", 2, 3), numbers("loc", 2)
    z = left = torch.tensor(0)
    for t in range(len(x) + ahead):
        over = (left == 0).double().unsqueeze(-1)
        z_stays = torch.nn.functional.one_hot(torch.as_tensor(z), 2).double()
        z = pyro.sample(f"z_{t}", dist.Categorical(over * follow[z] + (1 - over) * z_stays))
        counts = torch.nn.functional.one_hot((torch.as_tensor(left) - 1).clamp_min(0), 3).double()
        left = pyro.sample(f"left_{t}", dist.Categorical(over * lasts[z] + (1 - over) * counts))
        emit(t, x, loc[z])


def network_emission(x: Tensor) -> None:
    pyro.module("net", NET)
    trans, z = table("trans", 3, 3), torch.tensor(0)
    for t in range(len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
        emit(t, x, NET(torch.nn.functional.one_hot(z, 3).double()).squeeze(-1))


def class_of_series(x: Tensor, ahead: int = 0) -> None:
    """A latent alive through the whole chain."""
    weight, trans, loc = table("weight", 3), table("trans", 3, 2, 2), numbers("loc", 3, 2)
    c = pyro.sample("c", dist.Categorical(weight))
    z = torch.tensor(0)
    for t in range(len(x) + ahead):
        z = pyro.sample(f"z_{t}", dist.Categorical(trans[c, z]))
        emit(t, x, loc[c, z])


def class_of_many(x: Tensor, lengths: Tensor | None = None) -> None:
    """Each series of a plate has its class; transitions are everyone's."""
    weight, trans, loc = table("weight", 2), table("trans", 2, 2), numbers("loc", 2, 2)
    with pyro.plate("series", len(x)):
        c = pyro.sample("c", dist.Categorical(weight))
        z = torch.tensor(0)
        for t in range(x.shape[1]):
            with poutine.mask(mask=True if lengths is None else lengths > t):
                z = pyro.sample(f"z_{t}", dist.Categorical(trans[z]))
                pyro.sample(f"x_{t}", dist.Normal(loc[c, z], 0.9), obs=x[:, t])


def class_of_all(x: Tensor) -> None:
    """One class for all series of a plate, and one of each series."""
    weight, own, trans, loc = table("weight", 2), table("own", 2, 2), table("trans", 2, 2, 2), numbers("loc", 2, 2)
    c = pyro.sample("c", dist.Categorical(weight))
    with pyro.plate("series", len(x)):
        d = pyro.sample("d", dist.Categorical(own[c]))
        z = torch.tensor(0)
        for t in range(x.shape[1]):
            z = pyro.sample(f"z_{t}", dist.Categorical(trans[c, z]))
            pyro.sample(f"x_{t}", dist.Normal(loc[d, z], 0.9), obs=x[:, t])


def ragged(x: Tensor, lengths: Tensor) -> None:
    """Padding is masked; what is seen has two independent columns."""
    init, trans, loc = table("init", 3), table("trans", 3, 3), numbers("loc", 3, 2)
    with pyro.plate("series", len(x)):
        z: Any = None
        for t in range(x.shape[1]):
            with poutine.mask(mask=lengths > t):
                z = pyro.sample(f"z_{t}", dist.Categorical(init if t == 0 else trans[z]))
                value = torch.stack([x[:, t], -x[:, t]], -1)
                pyro.sample(f"x_{t}", dist.Normal(loc[z], 0.9).to_event(1), obs=value)


def ragged_second_order(x: Tensor, lengths: Tensor) -> None:
    init, trans, loc = table("init", 2), table("trans", 2, 2, 2), numbers("loc", 2)
    with pyro.plate("series", len(x)):
        z = [torch.tensor(0), torch.tensor(0)]
        for t in range(x.shape[1] + 1):
            with poutine.mask(mask=lengths >= t):
                z.append(pyro.sample(f"z_{t}", dist.Categorical(init if t == 0 else trans[z[-2], z[-1]])))
                if t:
                    pyro.sample(f"x_{t}", dist.Normal(loc[z[-1]], 0.9), obs=x[:, t - 1])


def ragged_factorial(x: Tensor, lengths: Tensor) -> None:
    a, b, loc = table("a", 2, 2), table("b", 2, 2), numbers("loc", 2, 2)
    with pyro.plate("series", len(x)):
        z = w = torch.tensor(0)
        for t in range(x.shape[1]):
            with poutine.mask(mask=lengths > t):
                z = pyro.sample(f"z_{t}", dist.Categorical(a[z]))
                w = pyro.sample(f"w_{t}", dist.Categorical(b[w]))
                pyro.sample(f"x_{t}", dist.Normal(loc[z, w], 0.9), obs=x[:, t])


def ragged_time_varying(x: Tensor, lengths: Tensor) -> None:
    """A transition of its own for each step, shared by series of unequal length."""
    trans, loc = table("trans", x.shape[1], 3, 3), numbers("loc", 3)
    with pyro.plate("series", len(x)):
        z = torch.tensor(0)
        for t in range(x.shape[1]):
            with poutine.mask(mask=lengths > t):
                z = pyro.sample(f"z_{t}", dist.Categorical(trans[t][z]))
                pyro.sample(f"x_{t}", dist.Normal(loc[z], 0.9), obs=x[:, t])


def python_slices(x: Tensor, lengths: Tensor) -> None:
    """Sequences are a Python loop, each cut to its length."""
    init, trans, loc = table("init", 2), table("trans", 2, 2), numbers("loc", 2)
    for i in range(len(x)):
        z: Any = None
        for t in range(int(lengths[i])):
            z = pyro.sample(f"z_{i}_{t}", dist.Categorical(init if t == 0 else trans[z]))
            pyro.sample(f"x_{i}_{t}", dist.Normal(loc[z], 0.9), obs=x[i, t])


def scaled(x: Tensor) -> None:
    with poutine.scale(scale=2.5):
        factorial(x)
