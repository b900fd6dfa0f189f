"""The generator of small random programs."""

from __future__ import annotations

import random

import torch
from torch import Tensor
from torch.distributions import transform_to

from ppl_em.testing.programs import DISCRETE, OTHERS, Family, Node, RandomProgram, Table

#: Latents of a program at most, chains counted by their steps.
MAX_LATENTS = 4


def random_program(seed: int, *, max_assignments: int = 200, local: bool = False) -> RandomProgram:
    """A small random program with data drawn from it.

    It has up to four discrete latents, global, in a plate or in a plate within a plate, on each of which later ones may
    depend; sometimes a chain with shared transitions; observations of mixed families that depend on up to two latents;
    parameters that are shared between sites or differ by plate element; masks on latents and on observations.

    Args:
        seed: the same seed gives the same program.
        max_assignments: joint assignments of its latents at most, so that brute force can list them.
        local: put every site into the outermost plate, so that its elements are independent data.

    Returns:
        The program; ``program(program.data)`` runs it and ``str(program)`` describes it.

    Example:
        >>> program = random_program(3)
        >>> program.num_assignments <= 200
        True
    """
    rng = random.Random(seed)
    while True:
        draft = _Draft(rng, local).program()
        if 2 <= draft.num_assignments <= max_assignments:
            return draft.redrawn(rng.randrange(2**31))


class _Draft:
    """A program in the making.

    Args:
        rng: source of all choices.
        local: everything is in the outer plate.
    """

    def __init__(self, rng: random.Random, local: bool) -> None:
        self.rng, self.local = rng, local
        self.sizes = {"outer": rng.choice((1, 2, 3)), "inner": rng.choice((1, 2))}
        self.nodes: list[Node] = []
        self.tables: dict[str, Table] = {}
        self.cardinality: dict[str, int] = {}
        self.columns: dict[str, int] = {}
        self.generator = torch.Generator().manual_seed(rng.randrange(2**31))

    def program(self) -> RandomProgram:
        """Draw latents, then observations; every latent without a child gets one."""
        if self.rng.random() < 0.3:
            self._chain()
        else:
            for i in range(self.rng.randint(1, MAX_LATENTS)):
                self._latent(f"z{i}")
        latents = [n for n in self.nodes if not n.observed]
        used = {p for node in self.nodes for p in node.parents}
        often = 0.4 if len(latents) == len(self.nodes) else 0.15  # seldom beside a chain, so that it stays one
        for node in latents:
            if node.name not in used or self.rng.random() < often:
                self._observation(f"x_{node.name}", node)
        return RandomProgram(tuple(self.nodes), self.tables, self.sizes, self.cardinality, {})

    def _plates(self) -> tuple[str, ...]:
        choices = [("outer",), ("outer", "inner")] if self.local else [(), ("outer",), ("outer", "inner")]
        return self.rng.choice(choices)

    def _latent(self, name: str) -> None:
        plates = self._plates()
        fitting = [n.name for n in self.nodes if set(n.plates) <= set(plates)]
        parents = tuple(self.rng.sample(fitting, min(len(fitting), self.rng.randint(0, 2))))
        family = self.rng.choice(list(DISCRETE))
        size = DISCRETE[family].values or self.rng.choice((2, 3))
        self.cardinality[name] = size
        tables = self._tables(name, family, parents, plates, size)
        self.nodes.append(Node(name, plates, parents, family, tables, False, self._mask(plates)))

    def _chain(self) -> None:
        plates, size, steps = self._plates(), self.rng.choice((2, 3)), self.rng.randint(2, MAX_LATENTS)
        family = self.rng.choice([f for f in DISCRETE if DISCRETE[f].values == 0])
        emission = self.rng.choice(list(OTHERS))
        shared: tuple[str, ...] = ()
        for t in range(steps):
            name, parents = f"z_{t}", (f"z_{t - 1}",) if t else ()
            self.cardinality[name] = size
            if t < 2:
                shared = self._tables(name, family, parents, plates, size)
            self.nodes.append(Node(name, plates, parents, family, shared, False, None))
        tables = self._tables("e", emission, ("z_0",), plates, 0)
        for t in range(steps):
            mask = self._mask(plates)
            self.columns[f"z_{t}"], self.columns[f"e_{t}"] = size, 0
            self.nodes.append(Node(f"e_{t}", plates, (f"z_{t}",), emission, tables, True, mask))

    def _observation(self, name: str, latent: Node) -> None:
        extra = ("outer", "inner")[len(latent.plates) : self.rng.randint(len(latent.plates), 2)]
        plates = latent.plates + extra
        others = [
            n.name
            for n in self.nodes
            if n.name in self.cardinality and n is not latent and set(n.plates) <= set(plates)
        ]
        parents = (latent.name, *self.rng.sample(others, min(len(others), self.rng.randint(0, 1))))
        family = self.rng.choice([*DISCRETE, *OTHERS])
        size = (DISCRETE[family].values or 3) if family in DISCRETE else 0
        tables = self._tables(name, family, parents, plates, size)
        self.nodes.append(Node(name, plates, parents, family, tables, True, self._mask(plates)))

    def _mask(self, plates: tuple[str, ...]) -> Tensor | None:
        if self.rng.random() < 0.7:
            return None
        shape = [self.sizes[p] if p in plates else 1 for p in self.sizes]
        return torch.rand(shape, generator=self.generator) < 0.7

    def _tables(
        self, name: str, family: str, parents: tuple[str, ...], plates: tuple[str, ...], size: int
    ) -> tuple[str, ...]:
        kind = DISCRETE.get(family) or OTHERS[family]
        self.columns[name] = size
        rows = [self.cardinality[p] for p in parents]
        like = [n for n in self.nodes if self._alike(n, family, rows, size)]
        if like and self.rng.random() < 0.3:
            return self.rng.choice(like).tables
        by_plate = not self.local and "outer" in plates and self.rng.random() < 0.15
        made = []
        for argument, constraint in kind.arguments.items():
            shape = [*([self.sizes["outer"]] if by_plate else []), *rows, *_event(kind, argument, size)]
            made.append(f"{name}_{argument}")
            self.tables[made[-1]] = Table(made[-1], self._value(constraint, shape), constraint, by_plate)
        return tuple(made)

    def _alike(self, node: Node, family: str, rows: list[int], size: int) -> bool:
        """Whether a site's parameters can serve another one."""
        same = node.family == family and [self.cardinality[p] for p in node.parents] == rows
        free = not any(self.tables[t].by_plate for t in node.tables)
        return same and free and self.columns[node.name] == size

    def _value(self, constraint: object, shape: list[int]) -> Tensor:
        """A random value inside a constraint."""
        transform = transform_to(constraint)
        free = transform.inverse_shape(torch.Size(shape))
        return transform(torch.randn(free, generator=self.generator, dtype=torch.float64))


def _event(kind: Family, argument: str, size: int) -> list[int]:
    return [size if n == "K" else int(n) for n in kind.event[argument]]
