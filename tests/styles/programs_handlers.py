"""Masks, scales, conditions, factors and annotations."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor

from tests.styles.programs_indexing import X, bracket, locs, scale, weights

MASK = torch.tensor([True, False, True, True])


def mask_data(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        with poutine.mask(mask=MASK):
            pyro.sample("x", dist.Normal(loc[z], s), obs=x)


def mask_everything(x: Tensor) -> None:
    """A masked latent counts one, not K."""
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)), poutine.mask(mask=MASK):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], s), obs=x)


def mask_method(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w).mask(MASK))
        pyro.sample("x", dist.Normal(loc[z], s).mask(MASK), obs=x)


def mask_false(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], s), obs=x)
        pyro.sample("y", dist.Normal(-loc[z], s).mask(False), obs=x)


def mask_of_latent(x: Tensor) -> None:
    """Whether a datum counts is latent."""
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], s).mask(z > 0), obs=x)
        with poutine.mask(mask=z < 2):
            pyro.sample("y", dist.Normal(loc[z], s), obs=-x)


def mask_event(x: Tensor) -> None:
    """A mask inside an event: some coordinates are missing."""
    w, s = weights(2), scale()
    table = pyro.param("table", torch.tensor([[0.0, 1.0], [2.0, -1.0]]))
    seen = torch.tensor([[True, True], [False, True]])
    with pyro.plate("data", 2):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(table[z], s).mask(seen).to_event(1), obs=x.reshape(2, 2))


def mask_nan(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    holes = torch.where(MASK, x, torch.nan)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], s).mask(MASK), obs=holes)


def mask_changed(x: Tensor) -> None:
    """The mask tensor is changed in place after the sample statement: it counts as it stood there."""
    w, loc, s = weights(), locs(), scale()
    mask = MASK.clone()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        with poutine.mask(mask=mask):
            pyro.sample("x", dist.Normal(loc[z], s), obs=x)
    mask.fill_(False)


def mask_loop(x: Tensor) -> None:
    """A ragged chain: one mask, narrowed step by step."""
    w, loc, s = weights(), locs(), scale()
    table = pyro.param(
        "table", torch.tensor([[0.2, 0.8, 0.0], [0.6, 0.2, 0.2], [0.3, 0.3, 0.4]]), constraint=dist.constraints.simplex
    )
    lengths = torch.tensor([3, 2])
    data = torch.stack([x[:3], x[1:]])
    with pyro.plate("sequences", 2):
        z: Any = None
        for t in range(3):
            with poutine.mask(mask=t < lengths):
                z = pyro.sample(f"z_{t}", dist.Categorical(w if z is None else table[z]))
                pyro.sample(f"x_{t}", dist.Normal(loc[z], s), obs=data[:, t])


def obs_mask(x: Tensor) -> None:
    """Labels known for some."""
    w, loc, s = weights(), locs(), scale()
    labels = torch.tensor([0, 2, 1, 0])
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w), obs=labels, obs_mask=torch.tensor([True, False, True, False]))
        pyro.sample("x", dist.Normal(loc[z], s), obs=x)


def obs_mask_data(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    labels = torch.tensor([1.0, 0.0, 1.0, 0.0])
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        y = pyro.sample("y", dist.Bernoulli(0.2 + 0.3 * z), obs=labels, obs_mask=MASK)
        pyro.sample("x", dist.Normal(loc[z] + y, s), obs=x)


def semi_supervised_loop(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    labels = [2, None, 0, None]
    for i in range(len(x)):
        known = None if labels[i] is None else torch.tensor(labels[i])
        z = pyro.sample(f"z_{i}", dist.Categorical(w), obs=known)
        pyro.sample(f"x_{i}", dist.Normal(loc[z], s), obs=x[i])


def scaled(x: Tensor) -> None:
    with poutine.scale(scale=2.5):
        bracket(x)


def factor(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    b = pyro.param("b", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], s), obs=x)
        pyro.factor("bonus", b * z * x)


def factor_global(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    a = pyro.sample("a", dist.Categorical(w))
    b = pyro.sample("b", dist.Bernoulli(0.3))
    pyro.factor("link", (a == 2 * b).double() * 0.7)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc[a] - b, s), obs=x)


def deterministic(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        mean = pyro.deterministic("mean", loc[z])
        pyro.sample("x", dist.Normal(mean, s), obs=x)


def conditioned(x: Tensor) -> None:
    def model() -> None:
        w, loc, s = weights(), locs(), scale()
        top = pyro.sample("top", dist.Bernoulli(0.3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Normal(loc[z] + top, s))

    pyro.condition(model, data={"x": x, "top": torch.tensor(1.0)})()


def intervened(x: Tensor) -> None:
    def model() -> None:
        w, loc, s = weights(), locs(), scale()
        top = pyro.sample("top", dist.Bernoulli(0.3))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(w))
            pyro.sample("x", dist.Normal(loc[z] + top, s), obs=x)

    pyro.do(model, data={"top": torch.tensor(1.0)})()


@config_enumerate
def annotated(x: Tensor) -> None:
    bracket(x)


def annotated_site(x: Tensor) -> None:
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w), infer={"enumerate": "parallel"})
        y = pyro.sample("y", dist.Bernoulli(0.3), infer={"enumerate": "sequential"})
        pyro.sample("x", dist.Normal(loc[z] + y, s), obs=x)


def delta_latent(x: Tensor) -> None:
    w, loc = weights(), locs()
    s = pyro.sample("s", dist.Delta(torch.tensor(0.9)))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], s), obs=x)


def delta_likelihood(x: Tensor) -> None:
    """A hard constraint: an observation that is a function of latents."""
    a = pyro.sample("a", dist.Categorical(weights()))
    b = pyro.sample("b", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
    pyro.sample("total", dist.Delta((a + b).double()), obs=torch.tensor(2.0))
    pyro.sample("x", dist.Normal(locs()[a], scale()), obs=x[0])


def no_latents_in_plain_sites(x: Tensor) -> None:
    bracket(x)
    with poutine.scale(scale=1.0), poutine.mask(mask=True):
        pyro.sample("extra", dist.Normal(locs()[0], 1.0), obs=x[0])


def block_inside(x: Tensor) -> None:
    with poutine.infer_config(config_fn=lambda site: {"note": 1}):
        bracket(x)


def mask_filled(x: Tensor) -> None:
    """Equal to :func:`mask_nan`: what is masked has a harmless value."""
    w, loc, s = weights(), locs(), scale()
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(w))
        pyro.sample("x", dist.Normal(loc[z], s).mask(MASK), obs=torch.where(MASK, x, 0.0))


PROGRAMS: dict[str, tuple[Any, ...]] = {
    "mask": (mask_data, (X,)),
    "mask-everything": (mask_everything, (X,)),
    "mask-method": (mask_method, (X,)),
    "mask-false": (mask_false, (X,)),
    "mask-of-latent": (mask_of_latent, (X,)),
    "mask-event": (mask_event, (X,)),
    "mask-nan": (mask_nan, (X,), {"reference": mask_filled}),
    "mask-changed": (mask_changed, (X,)),
    "mask-loop": (mask_loop, (X,)),
    "obs-mask": (obs_mask, (X,)),
    "obs-mask-data": (obs_mask_data, (X,)),
    "semi-supervised-loop": (semi_supervised_loop, (X,)),
    "scale": (scaled, (X,), {"reference": bracket, "scale": 2.5}),
    "factor": (factor, (X,)),
    "factor-global": (factor_global, (X,)),
    "deterministic": (deterministic, (X,)),
    "condition": (conditioned, (X,)),
    "do": (intervened, (X,)),
    "config-enumerate": (annotated, (X,)),
    "annotated-site": (annotated_site, (X,)),
    "delta-latent": (delta_latent, (X,)),
    "delta-likelihood": (delta_likelihood, (X,)),
    "plain-sites": (no_latents_in_plain_sites, (X,)),
    "infer-config": (block_inside, (X,)),
}
