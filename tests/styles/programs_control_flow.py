"""Python reads latents: branches, look-ups in lists, loops of latent length, writes in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from tests.styles.programs_indexing import X, locs, scale, weights
from tests.styles.programs_structure import rows


def branch(x: Tensor) -> None:
    s = scale()
    a, b = pyro.param("a", torch.tensor(-1.0)), pyro.param("b", torch.tensor(2.0))
    z = pyro.sample("z", dist.Bernoulli(0.3))
    loc = a if z > 0 else b
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, s), obs=x)


def branch_on_one_value(x: Tensor) -> None:
    """Two values of four look alike: every value must be tried."""
    s = scale()
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.1, 0.2, 0.3, 0.4])))
    loc = 3.0 if z.item() == 3 else 0.0
    pyro.sample("x", dist.Normal(loc, s), obs=x[0])


def branch_on_families(x: Tensor) -> None:
    """A site's family differs between paths."""
    z = pyro.sample("z", dist.Bernoulli(0.3))
    if z:
        pyro.sample("x", dist.Normal(1.0, scale()), obs=x[0])
    else:
        pyro.sample("x", dist.Laplace(0.0, 2.0), obs=x[0])


def branch_on_sites(x: Tensor) -> None:
    """Which sites there are differs between paths."""
    s = scale()
    z = pyro.sample("z", dist.Bernoulli(0.3))
    if z == 1:
        w = pyro.sample("w", dist.Categorical(weights()))
        pyro.sample("x", dist.Normal(locs()[w], s), obs=x[0])
    else:
        pyro.sample("y", dist.Normal(0.3, s), obs=x[1])


def list_of_values(x: Tensor) -> None:
    s = scale()
    options = [-1.0, 0.5, 2.0]
    z = pyro.sample("z", dist.Categorical(weights()))
    pyro.sample("x", dist.Normal(options[int(z)], s), obs=x[0])


def list_of_parameters(x: Tensor) -> None:
    s = scale()
    options = [pyro.param(f"m{k}", torch.tensor(float(k))) for k in range(3)]
    for i in pyro.plate("data", len(x)):
        z = pyro.sample(f"z_{i}", dist.Categorical(weights()))
        pyro.sample(f"x_{i}", dist.Normal(options[int(z)], s), obs=x[i])


def comprehension_in_plate(x: Tensor) -> None:
    s = scale()
    options = [pyro.param(f"m{k}", torch.tensor(float(k))) for k in range(3)]
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights()))
        pyro.sample("x", dist.Normal(torch.stack([options[int(k)] for k in z]), s), obs=x)


def numpy_detour(x: Tensor) -> None:
    s = scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights()))
        loc = torch.as_tensor(np.array([-1.0, 0.5, 2.0])[z.numpy()])
        pyro.sample("x", dist.Normal(loc, s), obs=x)


def markov_branches(x: Tensor) -> None:
    """A chain of any length, by the independence that pyro.markov declares."""
    w, a, s = weights(2), rows(2), scale()
    z: Any = None
    for t in pyro.markov(range(5)):
        z = pyro.sample(f"z_{t}", dist.Categorical(w if z is None else a[int(z)]))
        pyro.sample(f"x_{t}", dist.Normal(2.0 if z > 0 else -1.0, s), obs=x[t % 4])


def loop_of_latent_length(x: Tensor) -> None:
    s = scale()
    n = pyro.sample("n", dist.Categorical(weights()))
    total: Any = 0.0
    for i in range(int(n)):
        total = total + pyro.sample(f"b_{i}", dist.Bernoulli(0.4))
    pyro.sample("x", dist.Normal(total, s), obs=x[0])


def size_of_latent(x: Tensor) -> None:
    """The number of values of one latent is another."""
    s = scale()
    n = pyro.sample("n", dist.Categorical(weights()))
    size = int(n) + 1
    z = pyro.sample("z", dist.Categorical(torch.ones(size) / size))
    pyro.sample("x", dist.Normal(z - 0.5 * n, s), obs=x[0])


def in_place(x: Tensor) -> None:
    s = scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights()))
        loc = torch.zeros(len(x))
        loc[z == 1] = 1.5
        loc[z == 2] = -0.7
        pyro.sample("x", dist.Normal(loc, s), obs=x)


def in_place_value(x: Tensor) -> None:
    """The value itself is overwritten after its sample statement."""
    s = scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights()))
        z[z > 1] = 0
        pyro.sample("x", dist.Normal(locs()[z], s), obs=x)


def in_place_copy(x: Tensor) -> None:
    """Equal to :func:`in_place_value`."""
    s = scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights()))
        pyro.sample("x", dist.Normal(locs()[torch.where(z > 1, 0, z)], s), obs=x)


def subset_by_component(x: Tensor) -> None:
    """Each component's data are picked by a boolean mask: sizes depend on latents."""
    s = scale()
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Bernoulli(0.4))
    ones, zeros = x[:3][z == 1], x[:3][z == 0]
    if len(ones):
        pyro.sample("x1", dist.Normal(1.0, s).expand([len(ones)]).to_event(1), obs=ones)
    if len(zeros):
        pyro.sample("x0", dist.Normal(-1.0, s).expand([len(zeros)]).to_event(1), obs=zeros)


def elements_compared(x: Tensor) -> None:
    """Python compares elements of one plate."""
    with pyro.plate("items", 2):
        z = pyro.sample("z", dist.Categorical(weights()))
    same = bool(z[0] == z[1])
    pyro.sample("x", dist.Normal(1.0 if same else -1.0, scale()), obs=x[0])


def nested_branches(x: Tensor) -> None:
    s = scale()
    a = pyro.sample("a", dist.Bernoulli(0.3))
    b = pyro.sample("b", dist.Bernoulli(0.6 if a else 0.2))
    c = pyro.sample("c", dist.Categorical(weights()))
    loc = (float(c) if b else 2.0) if a else -1.0
    pyro.sample("x", dist.Normal(loc, s), obs=x[0])


def while_loop(x: Tensor) -> None:
    """A geometric latent, truncated: coins until the first head, at most four."""
    s = scale()
    count = 0
    while count < 4 and pyro.sample(f"coin_{count}", dist.Bernoulli(0.4)) == 0:
        count += 1
    pyro.sample("x", dist.Normal(float(count), s), obs=x[3])


def mixed(x: Tensor) -> None:
    """One latent steers Python, another is enumerated at once inside the branches."""
    w, loc, s = weights(), locs(), scale()
    mode = pyro.sample("mode", dist.Bernoulli(0.4))
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Categorical(w if mode else w.flip(0)))
        pyro.sample("x", dist.Normal(loc[z] + float(mode), s), obs=x[:3])


def iterate_elements(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Categorical(w))
        means = torch.stack([loc[k] for k in z])
        pyro.sample("x", dist.Normal(means, s), obs=x[:3])


def assertion(x: Tensor) -> None:
    """Python only looks."""
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        assert bool((z >= 0).all())
        pyro.sample("x", dist.Normal(loc[z], s), obs=x)


PROGRAMS: dict[str, tuple[Any, ...]] = {
    "if": (branch, (X,)),
    "if-item": (branch_on_one_value, (X,)),
    "if-families": (branch_on_families, (X,)),
    "if-sites": (branch_on_sites, (X,)),
    "list": (list_of_values, (X,)),
    "list-in-sequential-plate": (list_of_parameters, (X,)),
    "list-in-plate": (comprehension_in_plate, (X,)),
    "numpy": (numpy_detour, (X,)),
    "if-in-markov": (markov_branches, (X,)),
    "latent-length": (loop_of_latent_length, (X,)),
    "latent-size": (size_of_latent, (X,)),
    "in-place": (in_place, (X,)),
    "in-place-value": (in_place_value, (X,), {"reference": in_place_copy}),
    "subset-by-component": (subset_by_component, (X,)),
    "elements-compared": (elements_compared, (X,)),
    "nested-branches": (nested_branches, (X,)),
    "while": (while_loop, (X,)),
    "mixed": (mixed, (X,)),
    "iterate-elements": (iterate_elements, (X,)),
    "assertion": (assertion, (X,)),
}
