"""What sites send to a global latent: additions to the natural parameters of its factor, element by element."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_em.exact.engine import Weights
from ppl_em.ir import Factor, Site
from ppl_em.mstep.block import Argument
from ppl_em.mstep.conjugate import ENTRIES, Message
from ppl_em.mstep.sample import WeightedSample
from ppl_em.variational_em.arguments import (
    Beliefs,
    Location,
    Precision,
    Values,
    location,
    matrix_precision,
    precision,
    slope_of,
    vector_location,
)
from ppl_em.variational_em.nodes import LOCATIONS, Child, Node
from ppl_em.variational_em.statistics import Drawn, Observed, Rows
from ppl_em.variational_em.sticks import break_counts


@dataclass(frozen=True)
class Places:
    """Which element of a latent stands behind each row of a site, and how.

    Args:
        index: (R, *event) position of the element, −1 where there is none.
        slope, offset: (R, *event) of the affine map; None where there is none.
    """

    index: Tensor
    slope: Tensor
    offset: Tensor | None

    @classmethod
    def of(cls, child: Child, rows: Rows) -> Places:
        """The places of one link."""
        link, value = child.link, child.site.arguments[child.argument].value
        index = rows.spread(Factor(link.index, value.dims))
        slope = rows.spread(Factor(slope_of(link, value.tensor.detach()), value.dims)).double()
        if link.slope is None or link.offset is None:
            return cls(index, slope, None)
        offset = rows.spread(Factor(link.offset, value.dims)).double()
        return cls(index, slope, torch.where(index >= 0, offset, 0.0))


def message(
    node: Node,
    child: Child,
    data: Observed | Drawn,
    places: Places,
    weights: Weights,
    beliefs: Beliefs,
    values: Values,
    *,
    joint: bool,
) -> Message:
    """What one site adds to the natural parameters of a latent's factor.

    Args:
        node: the latent.
        child: the site and the argument that the latent feeds.
        data: its statistics.
        places: where the rows of the site belong among the latent's elements.
        weights: expected posterior weights of the site.
        beliefs: expectations under the factors.
        values: parameters, posterior means of those that have a factor.
        joint: the site is the prior of a location that shares its factor with this precision.

    Returns:
        By name as :data:`~ppl_em.mstep.conjugate.ENTRIES` has them, one entry for each element of the latent.
    """
    site = child.site
    own = beliefs.get(site.point) if site.point is not None else None
    arguments, spread = _expected_arguments(site, data.rows, node, beliefs, values)
    if not joint and node.family not in LOCATIONS:
        variance = data.variance(own)
        spread = variance if spread is None else spread if variance is None else spread + variance
    sample = WeightedSample(
        {n: Argument(t) for n, t in arguments.items()},
        data.blocks(weights, own),
        data.rows.count,
        site.value.event_dim,
    )
    found = child.pair.message(sample, None if joint else spread)
    if joint:  # with the location integrated out its own dimension counts no more
        counted = "df" if "df" in found else "concentration"
        found = {**found, counted: torch.zeros_like(found[counted])}
    return _by_element(node, child, places, found)


def _expected_arguments(
    site: Site, rows: Rows, node: Node, beliefs: Beliefs, values: Values
) -> tuple[dict[str, Tensor], Tensor | None]:
    """Arguments by row at which a pair's message is the expected one; variance of a location by row."""
    assert site.family is not None
    kind = site.family.__name__
    if kind in ("Normal", "LogNormal"):
        m, p = location(site, beliefs, values), precision(site, beliefs, values)
        tau = p.multiple if node.joint is not None else p.mean
        return {"loc": rows.spread(m.mean).double(), "scale": rows.spread(tau).double().rsqrt()}, _spread(m, rows)
    if kind == "MultivariateNormal":
        return _vector_arguments(
            node, rows, vector_location(site, beliefs, values), matrix_precision(site, beliefs, values)
        )
    found = {
        n: rows.spread(Factor(a.evaluate(values).detach(), a.value.dims)).double() for n, a in site.arguments.items()
    }
    for name, value in site.options.items():
        if isinstance(value, (int, float)):
            found[name] = torch.full((rows.count,), float(value), dtype=torch.float64)
    return found, None


def _vector_arguments(node: Node, rows: Rows, m: Location, p: Precision) -> tuple[dict[str, Tensor], Tensor | None]:
    matrix = rows.spread(p.mean).double()
    if node.joint is not None:
        matrix = rows.spread(p.multiple).double()[:, None, None] * torch.eye(matrix.shape[-1], dtype=torch.float64)
    return {"loc": rows.spread(m.mean).double(), "precision_matrix": matrix}, _spread(m, rows)


def _spread(m: Location, rows: Rows) -> Tensor:
    return rows.spread(m.variance).double()


def _by_element(node: Node, child: Child, places: Places, found: Message) -> Message:
    """Rows added up where they share an element of the latent."""
    index = places.index
    here = index >= 0
    if child.pair.prior == "Dirichlet":
        return _by_probability(node, child, places, found["counts"])
    if node.family == "Wishart":
        found = {**found, "scatter": found["scatter"] * places.slope[:, :1, :1]}
        here, index = here[:, 0, 0], index[:, 0, 0] // node.shape[-1] ** 2
    elif node.family == "MultivariateNormal":
        here, index = here[:, 0], index[:, 0] // node.shape[-1]
    elif child.pair.affine is not None and places.offset is not None:
        found = child.pair.affine(found, places.slope, places.offset)
    total = {}
    for name, part in found.items():
        zeros = part.new_zeros((node.entries, *part.shape[1:]))
        total[name] = zeros.index_add_(0, index[here], part[here])
    return total


def _by_probability(node: Node, child: Child, places: Places, counts: Tensor) -> Message:
    """Counts of categories as those of a Dirichlet, of two sides of a probability, or of the pieces of a stick."""
    if node.family == "Beta" and not child.link.transform.longer:
        won = places.slope > 0
        sides = {"successes": torch.where(won, counts, 0.0).sum(-1), "failures": torch.where(won, 0.0, counts).sum(-1)}
        return {n: t.new_zeros(node.entries).index_add_(0, places.index[:, 0], t) for n, t in sides.items()}
    table = _table(node, child, counts, places.index)
    if not child.link.transform.longer:
        return {"counts": table.reshape(-1, node.shape[-1])}
    won, lost = break_counts(table)
    return {"successes": won.reshape(-1), "failures": lost.reshape(-1)}


def _table(node: Node, child: Child, counts: Tensor, index: Tensor) -> Tensor:
    """Counts of the elements of probability vectors, in the shape of the table that the argument is gathered from."""
    shape = torch.Size(child.link.transform.image_shape(torch.Size(node.shape)))
    here = index >= 0
    flat = counts.new_zeros(shape.numel())
    return flat.index_add_(0, index[here], counts[here]).reshape(shape)


def no_message(node: Node) -> Message:
    """Zero for every element of a latent."""
    size = node.shape[-1] if node.shape else 1
    return {
        n: torch.zeros((node.entries, *[size] * events), dtype=torch.float64)
        for n, events in ENTRIES[node.family].items()
    }


def add(first: Message, second: Mapping[str, Tensor]) -> Message:
    """The sum of two messages."""
    return {n: t + second[n].reshape(t.shape) for n, t in first.items()}
