"""Observed symbols whose probabilities an observed index picks from a table: annotators, items, places, seasons.

A datum's evidence is a sum of a few rows of the table of log-probabilities, and the expected counts are the
responsibilities added to the same rows: both are products with one sparse matrix of zeros and ones.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ppl_em.ir import Argument, Factor, Site
from ppl_em.ir.block import Block
from ppl_em.ir.rows import distinct_rows
from ppl_em.lower.families import SiteMoments, log_probabilities
from ppl_em.lower.mixture import Lowered
from ppl_em.lower.posterior import DatumLatent

#: Names of the dimensions of the table: its cells, and the symbols that stand for data where a rule is verified.
CELL, SYMBOL = "cell", "symbol"


@dataclass(frozen=True)
class Lookup:
    """An observed site as a table with one cell for each different row of its argument.

    Args:
        site: the site over (cell, state), each symbol observed once.
        state: name of the latent's dimension.
        data: plates of the latent, outermost first.
        uses: (N, R·V) sparse, how often datum n shows symbol v in cell r.
        used: (R·V, N) its transpose, float64.
    """

    site: Site
    state: str
    data: tuple[str, ...]
    uses: Tensor
    used: Tensor

    @property
    def argument(self) -> Argument:
        """The table."""
        return next(iter(self.site.arguments.values()))

    def evidence(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Log-probability of each datum's symbols in each state, (N, K)."""
        name, argument = next(iter(self.site.arguments.items()))
        table = Factor(argument.evaluate(parameters).detach(), argument.value.dims).align((CELL, self.state))
        logs = log_probabilities({name: table}).mT
        return self.uses @ logs.reshape(-1, logs.shape[-1]).to(self.uses.dtype)

    def moments(self, responsibilities: Tensor) -> SiteMoments:
        """Expected counts of the symbols by cell and state, from (N, K)."""
        counts = self.used @ responsibilities.double()
        cells = self.argument.value.sizes[CELL]
        histogram = counts.reshape(cells, -1, counts.shape[-1]).mT.flatten(0, 1)
        return SiteMoments(histogram.sum(-1), torch.zeros((), dtype=torch.float64), histogram=histogram)


def look_up(site: Site, state: str, data: tuple[str, ...], sizes: Mapping[str, int]) -> Lookup | None:
    """The table behind a site; None where its argument is no gather of parameters by observed indices.

    Args:
        site: an observed site.
        state: name of the latent's dimension.
        data: plates of the latent, outermost first.
        sizes: size of every named dimension.
    """
    if not _admissible(site, state, data):
        return None
    name, argument = next(iter(site.arguments.items()))
    dims = argument.value.dims
    picks = tuple(d for d in dims if d != state)
    order = (*picks, state)
    index = Factor(argument.links[0].index, dims).align(order)
    rows = index.flatten(0, len(picks) - 1) if picks else index[None]
    first, cells = distinct_rows(rows.flatten(1))
    values = argument.value.align(order).flatten(0, len(picks) - 1)[first]
    link = replace(argument.links[0], index=rows[first])
    table = replace(argument, value=Factor(values, (CELL, state)), links=(link,))
    num_values = values.shape[-1]
    everything = (*data, *(d for d in site.plates if d not in data))
    shape = [sizes[d] for d in everything]
    num_data = math.prod(sizes[d] for d in data)
    cell = Factor(cells.reshape([sizes[d] for d in picks]), picks).align(everything).expand(shape)
    symbol = site.value.align(everything).expand(shape).long()
    column = (cell * num_values + symbol).reshape(num_data, -1)
    row = torch.arange(num_data, device=column.device)[:, None].expand_as(column)
    at = torch.stack([row.reshape(-1), column.reshape(-1)])
    if site.mask is not None:
        at = at[:, site.mask.align(everything).expand(shape).reshape(-1).bool()]
    uses = _sparse(at, (num_data, len(first) * num_values))
    compact = replace(
        site,
        arguments={name: table},
        value=Factor(torch.arange(num_values, device=column.device), (SYMBOL,)),
        mask=None,
        plates=(CELL, SYMBOL),
        dims=(CELL, state, SYMBOL),
    )
    dtype = argument.value.tensor.dtype
    return Lookup(compact, state, data, _rows(uses.to(dtype)), _rows(uses.t().coalesce()))


def _admissible(site: Site, state: str, data: tuple[str, ...]) -> bool:
    if site.role != "observed" or not site.lowered or site.family is None or site.family.__name__ != "Categorical":
        return False
    if site.scope != (state,) or site.inner or site.options or len(site.arguments) != 1:
        return False
    if not set(data) <= set(site.plates) or not set(site.value.dims) <= set(site.plates):
        return False
    if site.mask is not None and not set(site.mask.dims) <= set(site.plates):
        return False
    argument = next(iter(site.arguments.values()))
    if argument.opaque or argument.design is not None or len(argument.links) != 1:
        return False
    picks = set(argument.value.dims) - {state}
    link = argument.links[0]
    return (
        state in argument.value.dims
        and bool(picks)
        and picks <= set(site.plates)
        and link.slope is None
        and link.offset is None
        and bool((link.index >= 0).all())
    )


def _sparse(at: Tensor, shape: tuple[int, int]) -> Tensor:
    ones = torch.ones(at.shape[1], dtype=torch.float64, device=at.device)
    return torch.sparse_coo_tensor(at, ones, shape, check_invariants=False).coalesce()


def _rows(matrix: Tensor) -> Tensor:
    """The matrix in compressed rows, which multiplies fastest."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch calls its compressed matrices a beta
        return matrix.to_sparse_csr()


class LoweredLookup:
    """One latent per datum whose observations are looked up.

    Args:
        block: a mixture block.
        lookups: its observed sites by name.
    """

    def __init__(self, block: Block, lookups: Mapping[str, Lookup]) -> None:
        self.lookups = dict(lookups)
        dtype = next(iter(self.lookups.values())).uses.dtype
        self.latent = DatumLatent(block, dtype)
        self._buffers: tuple[Tensor, Tensor] | None = None

    def run(self, parameters: Mapping[str, Tensor]) -> Lowered:
        """E-step and expected counts."""
        evidence = [k.evidence(parameters) for k in self.lookups.values()]
        logits = sum(evidence[1:], evidence[0]).mT.contiguous()
        logits += self.latent.log_prior(parameters)[:, None]
        if self._buffers is None:
            self._buffers = logits.new_empty(logits.shape[1]), logits.new_empty(logits.shape[1])
        likelihood = self.latent.normalise(logits, *self._buffers)
        responsibilities = logits.mT.contiguous()
        moments = {n: k.moments(responsibilities) for n, k in self.lookups.items()}
        return Lowered(likelihood, moments, self.latent.weights(logits.sum(1, dtype=torch.float64)))
