"""Starts for tables of hidden structures: symbols that are alike must not stay alike.

With a uniform start every symbol of a grammar plays the same part and EM never tells them apart: it is a
saddle. Zeros of a table are structure and stay zero.

Reference:
    Lari, K. and Young, S. J. (1990). The estimation of stochastic context-free grammars using the
    inside–outside algorithm. Computer Speech and Language 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_em.em.tables import Tables, _simplex
from ppl_em.em.updates import Parameters


def has_tables(updaters: Sequence[Any]) -> bool:
    """Whether some parameters are tables of a hidden structure."""
    return any(isinstance(u, Tables) for u in updaters)


def random_tables(updaters: Sequence[Any], base: Parameters, generator: torch.Generator) -> Parameters:
    """Values with every table drawn from the uniform distribution over the simplex of its non-zero elements.

    Args:
        updaters: of the M-step.
        base: constrained values; other parameters keep them.
        generator: randomness.
    """
    return _drawn(updaters, base, generator, None)


def broken_tables(
    updaters: Sequence[Any], base: Parameters, generator: torch.Generator, size: float = 0.05
) -> Parameters:
    """Values with every table moved a little, so that no two symbols are alike.

    Args:
        updaters: of the M-step.
        base: constrained values; other parameters keep them.
        generator: randomness.
        size: standard deviation of the move, in log-probability.
    """
    return _drawn(updaters, base, generator, size)


def _drawn(updaters: Sequence[Any], base: Parameters, generator: torch.Generator, size: float | None) -> Parameters:
    values = dict(base)
    for updater in updaters:
        if isinstance(updater, Tables):
            for name in updater.update.parameters:
                values[name] = _table(updater.constraints[name], base[name].detach(), generator, size)
    return values


def _table(constraint: Any, base: Tensor, generator: torch.Generator, size: float | None) -> Tensor:
    noise = torch.randn(base.shape, generator=generator, dtype=torch.float64).to(base)
    simplex = _simplex(constraint)
    if simplex is None and constraint in (constraints.real, constraints.real_vector):
        return noise if size is None else base + size * noise
    drawn = torch.rand(base.shape, generator=generator, dtype=torch.float64).to(base)
    table = base * (size * noise).exp() if size is not None else -torch.log1p(-drawn) * (base != 0)
    if simplex is None:
        return table
    return table / table.sum(tuple(range(-simplex.event_dim, 0)), keepdim=True)
