"""Random small programs in random styles: what depends on what is drawn, and how it is written is drawn beside it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from pyro.ops.indexing import Vindex
from torch import Tensor
from torch.distributions import constraints

#: Ways in which a latent picks a row of a table.
PICKS = ("bracket", "vindex", "gather", "index_select", "where", "one hot product", "embedding")
#: Ways in which data are written down.
LAYOUTS = ("plate", "decorator", "loop", "unrolled plate", "nested", "chain", "crossed")
LATENTS = ("categorical", "logits", "bernoulli", "one hot", "binomial", "vector")
EXTRAS = (
    "factor", "deterministic", "mask", "latent mask", "masked latent", "scale", "condition", "labels",
    "branch", "annotated", "module", "written in place",
)  # fmt: skip
OBSERVATIONS = ("normal", "poisson", "bernoulli", "categorical", "function")


def pick(table: Tensor, index: Tensor, how: str) -> Tensor:
    """Elements of a table (K,) at whole numbers of any shape."""
    index = index.long()
    if how == "vindex":
        return Vindex(table)[index]
    if how == "gather":
        return table.expand(*index.shape, -1).gather(-1, index.unsqueeze(-1)).squeeze(-1)
    if how == "index_select":
        return table.index_select(0, index.reshape(-1)).reshape(index.shape)
    if how == "where":
        found = table[0].expand(index.shape)
        for k in range(1, len(table)):
            found = torch.where(index == k, table[k], found)
        return found
    if how == "one hot product":
        return torch.nn.functional.one_hot(index, len(table)).to(table.dtype) @ table
    if how == "embedding":
        return torch.nn.functional.embedding(index, table.unsqueeze(-1)).squeeze(-1)
    return table[index]


@dataclass
class StyleProgram:
    """A random program; calling it with its data runs it.

    Args:
        seed: of all choices.

    Attributes:
        choices: what was drawn, by what it decides.
        data: one row for each datum.
        scale: of every site.
    """

    seed: int
    choices: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        size = rng.choice((1, 2, 2))
        count = rng.choice((1, 1, 2))
        self.choices = {
            "layout": rng.choice(LAYOUTS),
            "size": size,
            "latents": [rng.choice(LATENTS) for _ in range(count)],
            "picks": [rng.choice(PICKS) for _ in range(4)],
            "observation": rng.choice(OBSERVATIONS),
            "chained": rng.random() < 0.7,
            "extras": rng.sample(EXTRAS, rng.choice((0, 1, 1, 2))),
            "above": rng.random() < 0.4,
        }
        if self.choices["layout"] == "crossed":  # four elements: more latents would be too many to list
            del self.choices["latents"][1:]
        generator = torch.Generator().manual_seed(self.seed)
        kind = self.choices["observation"]
        self.data = torch.randn(size, generator=generator)
        if kind in ("poisson", "bernoulli", "categorical"):
            self.data = torch.randint(2, (size,), generator=generator).to(torch.get_default_dtype())
        if kind == "function":
            self.data = torch.randint(3, (size,), generator=generator).to(torch.get_default_dtype())
        self.tables = 0.7 * torch.randn(8, 3, generator=generator)
        self.scale = 2.5 if "scale" in self.choices["extras"] else 1.0
        self.module = PyroModule[torch.nn.Embedding](8, 3)
        self.module.weight.data.copy_(self.tables)

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.choices}"

    def has(self, extra: str) -> bool:
        """Whether an extra was drawn."""
        return extra in self.choices["extras"]

    def __call__(self, data: Tensor) -> None:
        if self.scale != 1.0:
            with poutine.scale(scale=self.scale):
                self._program(data)
        else:
            self._program(data)

    def _program(self, data: Tensor) -> None:
        above = None
        if self.choices["above"] or self.has("branch"):
            above = pyro.sample("above", dist.Categorical(logits=pyro.param("above_logits", torch.tensor([0.2, -0.4]))))
        shift: Any = 0.0
        if self.has("branch"):
            assert above is not None
            shift = pyro.param("shift", torch.tensor(0.6)) if above > 0 else -0.3
        elif above is not None:
            shift = pick(pyro.param("shifts", torch.tensor([0.5, -0.8])), above, self.choices["picks"][3])
        layout = self.choices["layout"]
        size = len(data)
        if self.has("module"):
            pyro.module("tables", self.module)
        if layout == "chain":
            before = None
            for n in pyro.markov(range(size)):
                before = self._datum(f"_{n}", data[n], shift, n, before)
        elif layout == "crossed":
            row = pyro.plate("rows", size, dim=-2)
            with row, pyro.plate("columns", 2, dim=-1):
                self._datum("", data.unsqueeze(-1).expand(size, 2), shift, (slice(None), None))
        elif layout == "loop":
            for n in range(size):
                self._datum(f"_{n}", data[n], shift, n)
        elif layout == "unrolled plate":
            for n in pyro.plate("data", size):
                self._datum(f"_{n}", data[n], shift, int(n))
        elif layout == "decorator":
            pyro.plate("data", size)(lambda: self._datum("", data, shift, slice(None)))()
        elif layout == "nested":
            with pyro.plate("outer", size, dim=-2), pyro.plate("inner", 1, dim=-1):
                self._datum("", data.unsqueeze(-1), shift, (slice(None), None))
        else:
            with pyro.plate("data", size):
                self._datum("", data, shift, slice(None))

    def _datum(self, suffix: str, data: Tensor, shift: Any, row: Any, before: Tensor | None = None) -> Tensor:
        """Latents and observation of one datum, or of all data at once; returns the first latent."""
        names = self.choices["latents"]
        values: list[Tensor] = []
        known = self.has("labels") and self.choices["layout"] in ("loop", "unrolled plate") and suffix == "_0"
        shown = torch.tensor([True, False])[: self.choices["size"]][row]
        for i, kind in enumerate(names):
            parent = values[-1] if values and self.choices["chained"] else before
            label = torch.tensor(0.0) if known and i == 0 and kind in ("bernoulli", "binomial") else None
            if self.has("masked latent") and i == 0 and label is None:
                with poutine.mask(mask=shown):
                    values.append(self._latent(f"z{i}{suffix}", kind, i, parent, label))
            else:
                values.append(self._latent(f"z{i}{suffix}", kind, i, parent, label))
        eta = shift + sum(pick(self._table(2 + i), z, self.choices["picks"][2]) for i, z in enumerate(values))
        if self.has("deterministic"):
            eta = pyro.deterministic(f"eta{suffix}", eta)
        if self.has("factor"):
            pyro.factor(f"tilt{suffix}", 0.3 * eta * values[0])
        if self.has("written in place"):
            eta = eta.clone()
            eta += 0.1 * values[-1]
        if self.has("mask"):
            with poutine.mask(mask=shown):
                self._observe(f"x{suffix}", eta, values, data)
        elif self.has("latent mask"):
            with poutine.mask(mask=values[0] > 0):
                self._observe(f"x{suffix}", eta, values, data)
        elif self.has("condition"):
            self._observe(f"x{suffix}", eta, values, data, conditioned=True)
        else:
            self._observe(f"x{suffix}", eta, values, data)
        return values[0]

    def _table(self, number: int) -> Tensor:
        if self.has("module"):
            return self.module(torch.tensor(number))
        return pyro.param(f"table_{number}", self.tables[number].clone())

    def _latent(self, name: str, kind: str, i: int, parent: Tensor | None, label: Tensor | None) -> Tensor:
        """A discrete latent as a whole number up to two."""
        table = self._table(i)
        infer = {"enumerate": "parallel"} if self.has("annotated") and label is None else {}
        lean: Any = 0.0 if parent is None else pick(self._table(6), parent, self.choices["picks"][i])
        if kind == "bernoulli":
            return pyro.sample(name, dist.Bernoulli(logits=table[0] + lean), obs=label, infer=infer)
        if kind == "binomial":
            return pyro.sample(name, dist.Binomial(2, logits=table[0] + lean), obs=label, infer=infer)
        if kind == "vector":
            pair = torch.stack(torch.broadcast_tensors(table[0] + lean, table[1]), -1)
            return pyro.sample(name, dist.Bernoulli(logits=pair).to_event(1), infer=infer).sum(-1)
        logits = table + torch.as_tensor(lean).unsqueeze(-1) * torch.tensor([1.0, 0.0, -1.0])
        if kind == "one hot":
            return (pyro.sample(name, dist.OneHotCategorical(logits=logits), infer=infer) * torch.arange(3.0)).sum(-1)
        if kind == "categorical":
            return pyro.sample(name, dist.Categorical(logits.softmax(-1)), infer=infer)
        return pyro.sample(name, dist.Categorical(logits=logits), infer=infer)

    def _observe(self, name: str, eta: Tensor, values: list[Tensor], data: Tensor, conditioned: bool = False) -> None:
        kind = self.choices["observation"]
        fn: Any = dist.Normal(eta, pyro.param("sigma", torch.tensor(0.9), constraint=constraints.positive))
        if kind == "poisson":
            fn = dist.Poisson(eta.exp())
        elif kind == "bernoulli":
            fn = dist.Bernoulli(torch.sigmoid(eta))
        elif kind == "categorical":
            fn = dist.Categorical(logits=torch.stack([eta, -eta], -1))
        elif kind == "function":
            total = sum(z.to(data.dtype) for z in values)
            pyro.sample(name, dist.Normal(eta, 1.1), obs=data - 0.5 * total)
            return
        if conditioned:
            observe: Callable[[], Any] = lambda: pyro.sample(name, fn)  # noqa: E731
            poutine.condition(observe, data={name: data})()
        else:
            pyro.sample(name, fn, obs=data)
