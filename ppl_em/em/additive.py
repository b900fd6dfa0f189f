"""Statistics of parts of the data that are no totals by row: they add up, and data can be counted more than once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ppl_em.mstep.block import Block
from ppl_em.mstep.totals import Totals


@dataclass(frozen=True)
class Data:
    """The data of a site with their weights, where no statistics of fixed size stand for them."""

    blocks: tuple[Block, ...]

    def __add__(self, other: Data) -> Data:
        """Both."""
        return Data(self.blocks + other.blocks)

    def scaled(self, factor: float) -> Data:
        """Every datum counted ``factor`` times."""
        return Data(tuple(replace(b, weights=b.weights * factor) for b in self.blocks))


@dataclass(frozen=True)
class Equations:
    """Normal equations: Σ w/σ² x xᵀ and Σ w/σ² x y."""

    hessian: Tensor
    pull: Tensor

    def __add__(self, other: Equations) -> Equations:
        """Those of both parts."""
        return Equations(self.hessian + other.hessian, self.pull + other.pull)

    def scaled(self, factor: float) -> Equations:
        """Every datum counted ``factor`` times."""
        return Equations(self.hessian * factor, self.pull * factor)


@dataclass(frozen=True)
class Counts:
    """Expected counts of the use of tables, by site and argument."""

    by_site: Mapping[str, Mapping[str, Tensor]]

    def __add__(self, other: Counts) -> Counts:
        """Those of both parts."""
        total = {s: dict(tables) for s, tables in self.by_site.items()}
        for s, tables in other.by_site.items():
            mine = total.setdefault(s, {})
            for a, table in tables.items():
                mine[a] = mine[a] + table if a in mine else table
        return Counts(total)

    def scaled(self, factor: float) -> Counts:
        """Every use counted ``factor`` times."""
        return Counts({s: {a: t * factor for a, t in tables.items()} for s, tables in self.by_site.items()})


@dataclass(frozen=True)
class Several:
    """Statistics of several likelihoods of one latent, by their position."""

    parts: Mapping[int, Totals | Data]

    def __add__(self, other: Several) -> Several:
        """Those of both parts."""
        total: dict[int, Any] = dict(self.parts)
        for i, more in other.parts.items():
            total[i] = total[i] + more if i in total else more
        return Several(total)

    def scaled(self, factor: float) -> Several:
        """Every datum counted ``factor`` times."""
        return Several({i: p.scaled(factor) for i, p in self.parts.items()})
