"""Chains, trees, lattices, cliques and their combinations with plates, without a word about structure."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from tests.styles.programs_indexing import X, locs, scale, weights


def rows(size: int = 3) -> Tensor:
    start = torch.arange(1.0, size * size + 1).reshape(size, size).sqrt()
    return pyro.param("A", start / start.sum(-1, keepdim=True), constraint=constraints.simplex)


def chain(x: Tensor) -> None:
    w, a, loc, s = weights(), rows(), locs(), scale()
    z: Any = None
    for t in range(len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(w if z is None else a[z]))
        pyro.sample(f"x_{t}", dist.Normal(loc[z], s), obs=x[t])


def chain_markov(x: Tensor) -> None:
    w, a, loc, s = weights(), rows(), locs(), scale()
    z: Any = None
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(w if z is None else a[z]))
        pyro.sample(f"x_{t}", dist.Normal(loc[z], s), obs=x[t])


def chain_second_order(x: Tensor) -> None:
    w, loc, s = weights(2), locs(2), scale()
    b = torch.tensor([[[0.2, 0.8], [0.6, 0.4]], [[0.7, 0.3], [0.5, 0.5]]])
    before, last = pyro.sample("z_a", dist.Categorical(w)), pyro.sample("z_b", dist.Categorical(w))
    for t in pyro.markov(range(len(x)), history=2):
        before, last = last, pyro.sample(f"z_{t}", dist.Categorical(b[before, last]))
        pyro.sample(f"x_{t}", dist.Normal(loc[last], s), obs=x[t])


def chain_of_plates(x: Tensor) -> None:
    """A global chain whose leaves are plates."""
    w, a, loc, s = weights(), rows(), locs(), scale()
    data = torch.stack([x, x + 0.3])
    z: Any = None
    for t in range(3):
        z = pyro.sample(f"z_{t}", dist.Categorical(w if z is None else a[z]))
        with pyro.plate(f"data_{t}", 2):
            pyro.sample(f"x_{t}", dist.Normal(loc[z], s), obs=data[:, t])


def chains_in_plate(x: Tensor) -> None:
    w, a, loc, s = weights(2), rows(2), locs(2), scale()
    data = x.reshape(2, 2)
    with pyro.plate("sequences", 2):
        z: Any = None
        for t in range(2):
            z = pyro.sample(f"z_{t}", dist.Categorical(w if z is None else a[z]))
            pyro.sample(f"x_{t}", dist.Normal(loc[z], s), obs=data[:, t])


def chain_autoregressive(x: Tensor) -> None:
    w, a, s = weights(), rows(), scale()
    phi = pyro.param("phi", torch.tensor([0.5, -0.3, 0.9]))
    z: Any = None
    last: Any = 0.0
    for t in range(len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(w if z is None else a[z]))
        last = pyro.sample(f"x_{t}", dist.Normal(phi[z] * last, s), obs=x[t])


def chain_with_choice(x: Tensor) -> None:
    """A latent that stays alive through a whole chain: a mixture of hidden Markov models."""
    w, loc, s = weights(2), locs(2), scale()
    a = torch.tensor([[[0.2, 0.8], [0.6, 0.4]], [[0.9, 0.1], [0.1, 0.9]]])
    c = pyro.sample("c", dist.Bernoulli(0.4)).long()
    z: Any = None
    for t in range(len(x)):
        z = pyro.sample(f"z_{t}", dist.Categorical(w if z is None else a[c, z]))
        pyro.sample(f"x_{t}", dist.Normal(loc[z], s), obs=x[t])


def chains_coupled(x: Tensor) -> None:
    """A factorial chain: two chains, each observation depends on both."""
    a, b, s = rows(2), torch.tensor([[0.3, 0.7], [0.8, 0.2]]), scale()
    y = z = torch.tensor(0)
    for t in range(3):
        y = pyro.sample(f"y_{t}", dist.Categorical(a[y]))
        z = pyro.sample(f"z_{t}", dist.Categorical(b[z]))
        pyro.sample(f"x_{t}", dist.Normal(y - 2.0 * z, s), obs=x[t])


def gaps(x: Tensor) -> None:
    """A chain with observations at some steps only."""
    w, a, loc, s = weights(), rows(), locs(), scale()
    z: Any = None
    for t in range(4):
        z = pyro.sample(f"z_{t}", dist.Categorical(w if z is None else a[z]))
        if t % 2:
            pyro.sample(f"x_{t}", dist.Normal(loc[z], s), obs=x[t])


def tree(x: Tensor) -> None:
    w, a, loc, s = weights(2), rows(2), locs(2), scale()
    leaves = iter(x)

    def node(parent: Any, depth: int, name: str) -> None:
        z = pyro.sample(f"z{name}", dist.Categorical(w if parent is None else a[parent]))
        if depth == 0:
            pyro.sample(f"x{name}", dist.Normal(loc[z], s), obs=next(leaves))
            return
        node(z, depth - 1, name + "l")
        node(z, depth - 1, name + "r")

    node(None, 2, "")


def recursion(x: Tensor) -> None:
    """Recursion under a re-entrant ``pyro.markov``."""
    w, a, loc, s = weights(2), rows(2), locs(2), scale()
    leaves = iter(x)

    @pyro.markov
    def node(parent: Any, depth: int, name: str) -> None:
        z = pyro.sample(f"z{name}", dist.Categorical(w if parent is None else a[parent]))
        if depth == 0:
            pyro.sample(f"x{name}", dist.Normal(loc[z], s), obs=next(leaves))
            return
        node(z, depth - 1, name + "l")
        node(z, depth - 1, name + "r")

    node(None, 2, "")


def lattice(x: Tensor) -> None:
    s = scale()
    z: dict[tuple[int, int], Any] = {}
    for i in range(2):
        for j in range(3):
            z[i, j] = pyro.sample(f"z_{i}_{j}", dist.Bernoulli(0.4))
            for near in ((i - 1, j), (i, j - 1)):
                if near in z:
                    pyro.factor(f"f_{i}_{j}_{near[0]}_{near[1]}", 0.7 * (z[i, j] == z[near]).double())
    pyro.sample("x", dist.Normal(z[0, 0] + z[1, 2], s), obs=x[0])
    pyro.sample("y", dist.Normal(z[0, 1] - z[1, 0], s), obs=x[1])


def clique(x: Tensor) -> None:
    s = scale()
    z = [pyro.sample(f"z_{i}", dist.Bernoulli(0.2 + 0.1 * i)) for i in range(5)]
    pyro.sample("x", dist.Normal(sum(z), s), obs=x[2])


def noisy_or(x: Tensor) -> None:
    with pyro.plate("data", 2):
        causes = [pyro.sample(f"c_{i}", dist.Bernoulli(0.2 + 0.1 * i)) for i in range(3)]
        off = torch.ones(())
        for i, c in enumerate(causes):
            off = off * (1 - (0.5 + 0.1 * i) * c)
        pyro.sample("x", dist.Bernoulli(1 - 0.9 * off), obs=torch.tensor([1.0, 0.0]))


def explaining_away(x: Tensor) -> None:
    """The prior of one latent depends on another through a table and arithmetic."""
    w, s = weights(), scale()
    with pyro.plate("data", 2):
        a = pyro.sample("a", dist.Categorical(w))
        b = pyro.sample("b", dist.Bernoulli(torch.sigmoid(a - 1.0)))
        c = pyro.sample("c", dist.Binomial(2, 0.2 + 0.3 * b))
        pyro.sample("x", dist.Normal(a + b - c, s), obs=x[:2])


def independent_chains(x: Tensor) -> None:
    w, a, loc, s = weights(2), rows(2), locs(2), scale()
    for n, length in enumerate((3, 2, 3)):
        z: Any = None
        for t in range(length):
            z = pyro.sample(f"z_{n}_{t}", dist.Categorical(w if z is None else a[z]))
            pyro.sample(f"x_{n}_{t}", dist.Normal(loc[z], s), obs=x[t] * (n + 1))


def ragged_subsampled(x: Tensor) -> None:
    """Sites come and go with the subsample of a sequential plate."""
    w, a, loc, s = weights(2), rows(2), locs(2), scale()
    lengths = (2, 3, 1)
    for n in pyro.plate("sequences", 3, subsample_size=2):
        z: Any = None
        for t in pyro.markov(range(lengths[n])):
            z = pyro.sample(f"z_{n}_{t}", dist.Categorical(w if z is None else a[z]))
            pyro.sample(f"x_{n}_{t}", dist.Normal(loc[z], s), obs=x[t] * (n + 1))


def ragged_full(x: Tensor) -> None:
    """Equal to :func:`ragged_subsampled` over all sequences."""
    w, a, loc, s = weights(2), rows(2), locs(2), scale()
    for n, length in enumerate((2, 3, 1)):
        z: Any = None
        for t in range(length):
            z = pyro.sample(f"z_{n}_{t}", dist.Categorical(w if z is None else a[z]))
            pyro.sample(f"x_{n}_{t}", dist.Normal(loc[z], s), obs=x[t] * (n + 1))


def sum_over_plate(x: Tensor) -> None:
    """An observation of the sum over a plate: its elements depend on each other."""
    p = pyro.param("p", torch.tensor([0.3, 0.6, 0.5]), constraint=constraints.unit_interval)
    with pyro.plate("items", 3):
        z = pyro.sample("z", dist.Bernoulli(p))
        pyro.sample("x", dist.Normal(z, scale()), obs=x[:3])
    pyro.sample("total", dist.Normal(z.sum(-1), 0.5), obs=torch.tensor(1.7))


def sum_inside_groups(x: Tensor) -> None:
    with pyro.plate("groups", 2, dim=-2):
        top = pyro.sample("top", dist.Bernoulli(0.4))
        with pyro.plate("items", 2, dim=-1):
            z = pyro.sample("z", dist.Bernoulli(0.2 + 0.4 * top))
        pyro.sample("total", dist.Normal(z.sum(-1, keepdim=True) + top, scale()), obs=x[:2].unsqueeze(-1))


def sibling_plates_joined(x: Tensor) -> None:
    """Two plates whose latents meet in a global observation."""
    with pyro.plate("left", 2):
        a = pyro.sample("a", dist.Bernoulli(torch.tensor([0.3, 0.6])))
    with pyro.plate("right", 2):
        b = pyro.sample("b", dist.Bernoulli(torch.tensor([0.2, 0.7])))
    pyro.sample("x", dist.Normal(a.sum(-1) - b.sum(-1), scale()), obs=x[0])


PROGRAMS: dict[str, tuple[Any, ...]] = {
    "chain": (chain, (X,)),
    "markov": (chain_markov, (X,)),
    "second-order": (chain_second_order, (X,)),
    "chain-of-plates": (chain_of_plates, (X,)),
    "chains-in-plate": (chains_in_plate, (X,)),
    "autoregressive": (chain_autoregressive, (X,)),
    "mixture-of-chains": (chain_with_choice, (X,)),
    "factorial-chain": (chains_coupled, (X,)),
    "gaps": (gaps, (X,)),
    "tree": (tree, (X,)),
    "recursion": (recursion, (X,)),
    "lattice": (lattice, (X,)),
    "clique": (clique, (X,)),
    "noisy-or": (noisy_or, (X,)),
    "explaining-away": (explaining_away, (X,)),
    "independent-chains": (independent_chains, (X,)),
    "ragged-subsampled": (ragged_subsampled, (X,), {"reference": ragged_full}),
    "sum-over-plate": (sum_over_plate, (X,)),
    "sum-inside-groups": (sum_inside_groups, (X,)),
    "sums-of-two-plates": (sibling_plates_joined, (X,)),
}
