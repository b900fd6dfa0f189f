"""Small random Pyro programs, described by data so that a failure can be read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from ppl_em.trace.footprint import isolated


@dataclass(frozen=True)
class Family:
    """A distribution that a random program may use.

    Args:
        make: arguments by name to the distribution; what is left of the batch shape is the plates'.
        arguments: constraint of each argument.
        event: shape of each argument's event, K standing for the number of values.
        values: number of values where discrete and finite, 0 for K of the program's choice, None otherwise.
        index: value to position in the support.
    """

    make: Callable[..., Any]
    arguments: Mapping[str, Any]
    event: Mapping[str, tuple[str | int, ...]]
    values: int | None = None
    index: Callable[[Tensor], Tensor] = Tensor.long


_REAL, _POSITIVE = constraints.real, constraints.positive
_UNIT, _SIMPLEX = constraints.unit_interval, constraints.simplex

#: Families of latents.
DISCRETE: dict[str, Family] = {
    "Categorical(probs)": Family(lambda p: dist.Categorical(p), {"p": _SIMPLEX}, {"p": ("K",)}, 0),
    "Categorical(logits)": Family(lambda a: dist.Categorical(logits=a), {"a": _REAL}, {"a": ("K",)}, 0),
    "OneHotCategorical(probs)": Family(
        lambda p: dist.OneHotCategorical(p), {"p": _SIMPLEX}, {"p": ("K",)}, 0, lambda v: v.argmax(-1)
    ),
    "Bernoulli(probs)": Family(lambda p: dist.Bernoulli(p), {"p": _UNIT}, {"p": ()}, 2),
    "Bernoulli(logits)": Family(lambda a: dist.Bernoulli(logits=a), {"a": _REAL}, {"a": ()}, 2),
    "Binomial(2, probs)": Family(lambda p: dist.Binomial(2, p), {"p": _UNIT}, {"p": ()}, 3),
}

#: Families of observations, besides these.
OTHERS: dict[str, Family] = {
    "Normal": Family(lambda m, s: dist.Normal(m, s), {"m": _REAL, "s": _POSITIVE}, {"m": (), "s": ()}),
    "Normal, known scale": Family(lambda m: dist.Normal(m, 0.7), {"m": _REAL}, {"m": ()}),
    "Normal vector": Family(
        lambda m, s: dist.Normal(m, s).to_event(1), {"m": _REAL, "s": _POSITIVE}, {"m": (2,), "s": (2,)}
    ),
    "Poisson": Family(lambda r: dist.Poisson(r), {"r": _POSITIVE}, {"r": ()}),
    "Exponential": Family(lambda r: dist.Exponential(r), {"r": _POSITIVE}, {"r": ()}),
    "Poisson, log rate": Family(lambda a: dist.Poisson(a.exp()), {"a": _REAL}, {"a": ()}),
}


@dataclass(frozen=True)
class Table:
    """A parameter: one row of arguments for each combination of the parents' values.

    Args:
        name: of the parameter.
        init: (*plate elements if ``by_plate``, *values of the parents, *event).
        constraint: its support.
        by_plate: each element of the outer plate has rows of its own.
    """

    name: str
    init: Tensor
    constraint: Any
    by_plate: bool = False


@dataclass(frozen=True)
class Node:
    """A sample statement.

    Args:
        name: of the site.
        plates: its plates, outermost first.
        parents: discrete latents that choose its row.
        family: key of ``DISCRETE`` or ``OTHERS``.
        tables: parameters of its arguments, in order.
        observed: whether it is observed.
        mask: (outer size or 1, inner size or 1), False where the site does not count; None for no mask.
    """

    name: str
    plates: tuple[str, ...]
    parents: tuple[str, ...]
    family: str
    tables: tuple[str, ...]
    observed: bool
    mask: Tensor | None = None

    def __str__(self) -> str:
        parts = [f"{self.name} ~ {self.family}", f"[{', '.join(self.tables)}]"]
        parts += [f"given {', '.join(self.parents)}"] if self.parents else []
        parts += [f"in {' / '.join(self.plates)}"] if self.plates else []
        parts += ["observed"] if self.observed else []
        parts += [f"masked {self.mask.int().tolist()}"] if self.mask is not None else []
        return " ".join(parts)


@dataclass(frozen=True, eq=False)
class RandomProgram:
    """A Pyro program: call it with its data, or with ``{}`` to draw data.

    Args:
        nodes: sample statements in order.
        tables: parameters by name.
        sizes: plates with their sizes, outermost first.
        cardinality: number of values of each latent.
        data: observed values by site.
    """

    nodes: tuple[Node, ...]
    tables: Mapping[str, Table]
    sizes: Mapping[str, int]
    cardinality: Mapping[str, int]
    data: dict[str, Tensor]

    def __call__(self, data: Mapping[str, Tensor]) -> None:
        """Run the program, an ordinary Pyro model."""
        params = {n: pyro.param(n, t.init.clone(), constraint=t.constraint) for n, t in self.tables.items()}
        dims = {name: i - len(self.sizes) for i, name in enumerate(self.sizes)}
        plates = {name: pyro.plate(name, size, dim=dims[name]) for name, size in self.sizes.items()}
        index: dict[str, Tensor] = {}
        for node in self.nodes:
            with ExitStack() as stack:
                for name in node.plates:
                    stack.enter_context(plates[name])
                if node.mask is not None:
                    stack.enter_context(poutine.mask(mask=node.mask))  # type: ignore[arg-type]
                rows = [self._rows(params[t], self.tables[t], [index[p] for p in node.parents]) for t in node.tables]
                family = family_of(node)
                value = pyro.sample(node.name, family.make(*rows), obs=data.get(node.name))
                if node.name in self.cardinality:
                    index[node.name] = family.index(value)

    def _rows(self, value: Tensor, table: Table, index: Sequence[Tensor]) -> Tensor:
        if table.by_plate:
            first = torch.arange(value.shape[0]).reshape((-1,) + (1,) * (len(self.sizes) - 1))
            return value[(first, *index)]
        return value[tuple(index)]

    def __str__(self) -> str:
        plates = ", ".join(f"{n}={size}" for n, size in self.sizes.items())
        return "\n".join([f"plates {plates}", *map(str, self.nodes)])

    @property
    def num_assignments(self) -> int:
        """Joint assignments of all latents."""
        total = 1
        for node in self.nodes:
            if not node.observed:
                elements = torch.Size([self.sizes[p] for p in node.plates]).numel()
                total *= self.cardinality[node.name] ** elements
        return total

    def params(self) -> dict[str, Tensor]:
        """The parameters' initial values."""
        return {name: table.init for name, table in self.tables.items()}

    def redrawn(self, seed: int) -> RandomProgram:
        """The same program with other data, drawn from it."""
        with isolated(seed):
            trace = poutine.trace(self).get_trace({})
        observed = [n.name for n in self.nodes if n.observed]
        return replace(self, data={name: trace.nodes[name].get("value") for name in observed})

    def repeated(self, times: int) -> RandomProgram:
        """The program with every element of the outermost plate repeated (only where all sites are in it)."""
        outer = next(iter(self.sizes))
        assert all(outer in n.plates for n in self.nodes) and not any(t.by_plate for t in self.tables.values())
        nodes = tuple(
            n if n.mask is None or n.mask.shape[0] == 1 else replace(n, mask=n.mask.repeat(times, 1))
            for n in self.nodes
        )
        data = {name: torch.cat([value] * times) for name, value in self.data.items()}
        return replace(self, nodes=nodes, data=data, sizes={**self.sizes, outer: times * self.sizes[outer]})

    def with_plate_permuted(self, order: Tensor) -> RandomProgram:
        """The program with the elements of its outermost plate in another order."""
        outer, size = next(iter(self.sizes.items()))

        def moved(tensor: Tensor) -> Tensor:
            return tensor[order] if tensor.shape[0] == size and size > 1 else tensor

        nodes = tuple(n if n.mask is None else replace(n, mask=moved(n.mask)) for n in self.nodes)
        inside = {n.name for n in self.nodes if outer in n.plates}
        data = {name: moved(value) if name in inside else value for name, value in self.data.items()}
        tables = {n: replace(t, init=moved(t.init)) if t.by_plate else t for n, t in self.tables.items()}
        return replace(self, nodes=nodes, data=data, tables=tables)

    def with_states_permuted(self, latent: str, order: Tensor) -> RandomProgram | None:
        """The program with a latent's values in another order; None where a parameter is shared with other sites."""
        tables = dict(self.tables)
        own = next(n for n in self.nodes if n.name == latent)
        if not own.family.startswith(("Categorical", "OneHot")):
            return None
        users: dict[str, int] = {}
        for node in self.nodes:
            for table in set(node.tables):
                users[table] = users.get(table, 0) + 1
        for node in self.nodes:
            axes = [i for i, p in enumerate(node.parents) if p == latent]
            if (axes or node is own) and any(users[t] > 1 for t in node.tables):
                return None
            for name in node.tables:
                init, first = tables[name].init, int(tables[name].by_plate)
                for axis in axes:
                    init = init.index_select(first + axis, order)
                if node is own:
                    init = init.index_select(init.dim() - 1, order)
                tables[name] = replace(tables[name], init=init)
        return replace(self, tables=tables)


def family_of(node: Node) -> Family:
    """The family of a sample statement."""
    return DISCRETE.get(node.family) or OTHERS[node.family]
